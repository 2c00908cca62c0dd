package server

import (
	"context"
	"strings"
	"testing"
	"time"

	"edge/internal/query"
)

// TestRequestSmugglingShapes sends what a proxy and a server could read differently. Each row
// says what is answered, in order; after a refusal the connection is closed,
// so bytes that one side took for a body are never served as a request.
func TestRequestSmugglingShapes(t *testing.T) {
	e := start(t, nil)
	f := func(name, raw string, statuses ...int) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			t.Helper()
			c := e.dial()
			c.t = t
			c.send(raw)
			for _, status := range statuses {
				c.answer().check(t, status, "")
			}
			// Whoever kept the connection open has to be told to let go.
			if err := c.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil && !strings.Contains(err.Error(), "not connected") {
				t.Fatal(err)
			}
			c.closed()
		})
	}
	const smuggled = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
	length := "Content-Length: " + itoa(len(good)) + "\r\n"
	chunked := itohex(len(good)) + "\r\n" + good + "\r\n0\r\n\r\n"
	post := "POST /events HTTP/1.1\r\nHost: a\r\n"

	f("plain", post+length+"\r\n"+good, 202)
	f("chunked", post+"Transfer-Encoding: chunked\r\n\r\n"+chunked, 202)
	f("chunked with extension and trailer", post+"Transfer-Encoding: chunked\r\n\r\n"+
		itohex(len(good))+";a=b\r\n"+good+"\r\n0\r\nX-Sum: 1\r\n\r\n", 202)
	f("pipelined", post+length+"\r\n"+good+smuggled+post+length+"\r\n"+good, 202, 200, 202)
	f("HTTP/1.0", "POST /events HTTP/1.0\r\n"+length+"\r\n"+good, 202)
	f("absolute form", "POST http://edge/events HTTP/1.1\r\nHost: edge\r\n"+length+"\r\n"+good, 202)

	// Length and chunked together: RFC 9112 6.1 lets a server take the chunks
	// if it closes afterwards.
	f("CL and TE", post+"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"+chunked+smuggled, 202)
	f("duplicate CL, same", post+length+length+"\r\n"+good+smuggled, 400)
	f("duplicate CL, other", post+length+"Content-Length: 4\r\n\r\n"+good+smuggled, 400)
	f("CL list", post+"Content-Length: 4, 4\r\n\r\n{}{}"+smuggled, 400)
	f("CL with sign", post+"Content-Length: +5\r\n\r\n{}   "+smuggled, 400)
	f("CL negative", post+"Content-Length: -5\r\n\r\n"+smuggled, 400)
	f("CL hexadecimal", post+"Content-Length: 0x5\r\n\r\n{}   "+smuggled, 400)
	f("CL beyond 64 bits", post+"Content-Length: 99999999999999999999\r\n\r\n{}"+smuggled, 400)
	f("TE xchunked", post+"Transfer-Encoding: xchunked\r\n\r\n"+chunked+smuggled, 400)
	// RFC 2616's word for no encoding: some take the length beside it, others read to
	// the end of the connection.
	f("TE identity", post+"Transfer-Encoding: identity\r\n\r\n"+smuggled, 400)
	f("TE identity and CL", post+"Transfer-Encoding: identity\r\n"+length+"\r\n"+good+smuggled, 400)
	f("CL and TE identity", post+length+"transfer-encoding:\tIdentity \r\n\r\n"+good+smuggled, 400)
	f("TE identity on GET", "GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"+smuggled, 400)
	f("TE empty", post+"Transfer-Encoding:\r\n"+length+"\r\n"+good+smuggled, 400)
	f("TE in capitals", post+"TRANSFER-ENCODING:CHUNKED \r\n\r\n"+chunked, 202)
	f("name as long as TE", post+"X-Some-Other-Name: identity\r\n"+length+"\r\n"+good+smuggled, 202, 200)
	f("TE gzip, chunked", post+"Transfer-Encoding: gzip, chunked\r\n\r\n"+chunked+smuggled, 400)
	f("duplicate TE", post+"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"+chunked+smuggled, 400)
	f("TE on HTTP/1.0", "POST /events HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"+chunked+smuggled, 400)
	f("chunk size overflow", post+"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n"+smuggled, 400)
	f("chunk size negative", post+"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n"+smuggled, 400)
	f("chunk size empty", post+"Transfer-Encoding: chunked\r\n\r\n\r\n{}\r\n0\r\n\r\n"+smuggled, 400)
	f("LF in chunk extension", post+"Transfer-Encoding: chunked\r\n\r\n2;a\n{}\r\n0\r\n\r\n"+smuggled, 400)
	f("chunk longer than its size", post+"Transfer-Encoding: chunked\r\n\r\n2\r\n{}{}\r\n0\r\n\r\n"+smuggled, 400)
	f("space before colon", post+"Content-Length : 5\r\n\r\n{}   "+smuggled, 400)
	f("bare LF in header", "GET /health HTTP/1.1\r\nX-A: b\nHost: a\r\n\r\n"+smuggled, 400)
	f("bare LF at end of header", "GET /health HTTP/1.1\r\nHost: a\r\n\n"+smuggled, 400)
	f("bare LF after the request line", "GET /health HTTP/1.1\nHost: a\r\n\r\n"+smuggled, 200, 200)
	f("bare LF", "POST /events HTTP/1.1\nHost: a\nContent-Length: 2\n\n{}"+smuggled, 400)
	f("NUL in value", post+"X-A: a\x00b\r\n\r\n"+smuggled, 400)
	f("CR in value", post+"X-A: a\rb\r\n\r\n"+smuggled, 400)
	f("no Host", "POST /events HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"+smuggled, 400)
	f("two Hosts", post+"Host: b\r\nContent-Length: 2\r\n\r\n{}"+smuggled, 400)
	f("bad method", "PO ST /events HTTP/1.1\r\nHost: a\r\n\r\n"+smuggled, 400)
	f("method with control", "PO\x01ST /events HTTP/1.1\r\nHost: a\r\n\r\n"+smuggled, 400)
	f("no version", "POST /events\r\nHost: a\r\n\r\n"+smuggled, 400)
	f("HTTP/9.9", "POST /events HTTP/9.9\r\nHost: a\r\n\r\n"+smuggled, 505)
	f("HTTP/2.0", "GET /health HTTP/2.0\r\nHost: a\r\n\r\n"+smuggled, 505)
	f("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400)
	f("TLS hello", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400)
	f("obs-fold", post+"X-A: b\r\n c\r\n"+length+"\r\n"+good+smuggled, 400)
	f("obs-fold with tab", post+"X-A: b\r\n\tc\r\n"+length+"\r\n"+good+smuggled, 400)
	f("obs-fold in TE", post+"Transfer-Encoding:\r\n chunked\r\n\r\n"+chunked+smuggled, 400)
	f("obs-fold in CL", post+"Content-Length:\r\n 5\r\n\r\n{}   "+smuggled, 400)
	f("TE with vertical tab", post+"Transfer-Encoding: \x0bchunked\r\n\r\n"+chunked+smuggled, 400)
	f("TE chunked twice in a list", post+"Transfer-Encoding: chunked, chunked\r\n\r\n"+chunked+smuggled, 400)
	f("TE chunked, identity", post+"Transfer-Encoding: chunked, identity\r\n\r\n"+chunked+smuggled, 400)
	f("CL with space inside", post+"Content-Length: 4 4\r\n\r\n{}{}"+smuggled, 400)
	f("CL empty", post+"Content-Length:\r\n\r\n"+smuggled, 400)
	f("chunk size with 0x", post+"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n"+smuggled, 400)
	f("chunk size with underscore", post+"Transfer-Encoding: chunked\r\n\r\n0_2\r\n{}\r\n0\r\n\r\n"+smuggled, 400)
	f("chunk size with sign", post+"Transfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n"+smuggled, 400)
	f("chunk size with space before", post+"Transfer-Encoding: chunked\r\n\r\n 2\r\n{}\r\n0\r\n\r\n"+smuggled, 400)
	f("chunk ended by bare LF", post+"Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n"+smuggled, 400)
	f("chunk data ended by bare LF", post+"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\n0\r\n\r\n"+smuggled, 400)
	f("line without colon", post+"Content-Length 5\r\n\r\n"+smuggled, 400)
	f("name empty", post+": 5\r\n\r\n"+smuggled, 400)
	f("name with space", post+"X A: 5\r\n\r\n"+smuggled, 400)
	f("name with control", post+"X\x01A: 5\r\n\r\n"+smuggled, 400)
	f("white space before the first header", "POST /events HTTP/1.1\r\n Host: a\r\n\r\n"+smuggled, 400)
	f("space in the target", "GET /health ?a HTTP/1.1\r\nHost: a\r\n\r\n"+smuggled, 400)
	f("control in the target", "GET /hea\x01lth HTTP/1.1\r\nHost: a\r\n\r\n"+smuggled, 400)
	f("two spaces in the request line", "GET  /health HTTP/1.1\r\nHost: a\r\n\r\n"+smuggled, 400)
	f("version in small letters", "GET /health http/1.1\r\nHost: a\r\n\r\n"+smuggled, 400)
	f("empty line first", "\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n", 200)
	f("asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 204)
	f("CONNECT", "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 404)
	f("TRACE", "TRACE /health HTTP/1.1\r\nHost: a\r\nX-Secret: b\r\n\r\n", 405)
	f("upgrade to h2c", "GET /health HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", 200)
	f("64 KiB header", post+"X-A: "+strings.Repeat("a", 64<<10)+"\r\n\r\n", 431)
	f("64 KiB of headers", post+strings.Repeat("X-A: b\r\n", 8<<10)+"\r\n", 431)
	f("64 KiB URI", "GET /"+strings.Repeat("a", 64<<10)+" HTTP/1.1\r\nHost: a\r\n\r\n", 431)

	if got, want := e.published.Load(), int64(e.stats.Accepted.Load()); got != want {
		t.Errorf("published %d; accepted %d", got, want)
	}
}

// TestNoWayAroundTheKey holds that no other spelling of a guarded route, or of
// the key's header, is served without the key. A proxy in front that guards
// paths sees the spelling, so none but the plain one may mean the route.
func TestNoWayAroundTheKey(t *testing.T) {
	e := start(t, func(c *Config) {
		c.WriteKeys, c.ReadKeys = []string{"k"}, []string{"r"}
		c.Query = func(context.Context, query.Request) (*query.Result, error) {
			t.Error("asked without a key")
			return nil, nil
		}
	})
	f := func(line, head string) {
		t.Helper()
		c := e.dial()
		c.send(line + " HTTP/1.1\r\nHost: a\r\n" + head + "Content-Length: " + itoa(len(good)) + "\r\n\r\n" + good)
		if a := c.answer(); a.StatusCode < 400 || a.StatusCode >= 500 {
			t.Errorf("%s, %q: got %d %s; want a refusal", line, head, a.StatusCode, a.body)
		}
		c.Close()
	}
	for _, path := range []string{
		"/events", "/events/", "//events", "/./events", "/x/../events", "/%65vents", "/%2565vents", "/events%2f", "/events%00", "/events;a=b",
		"/events?", "/events#a", "http://a/events", "http://b/../events", "/health/../events", "/events/bulk/../", "/events%2fbulk", "/events/./bulk",
		"\\events", "/events\\bulk",
	} {
		f("POST "+path, "")
	}
	for _, path := range []string{"/metrics?event_name=a", "//metrics?event_name=a", "/%6detrics?event_name=a", "/health/../metrics?event_name=a", "/x/..%2fmetrics?event_name=a"} {
		f("GET "+path, "")
		f("GET "+path, "X-API-Key: k\r\n") // the other scope's
	}
	f("GET /events", "X-HTTP-Method-Override: POST\r\n")
	f("POST /events", "X-API-Key: \r\n")
	f("POST /events", "X-API-Key: wrong\r\nX-API-Key: wrong\r\n")
	f("POST /events", "X-Api_Key: k\r\n")
	f("POST /events", "Authorization: Bearer wrong\r\nX-API-Key: k\r\n") // the first one found decides
	f("POST /events", "X-Forwarded-For: 127.0.0.1\r\nX-Original-URL: /health\r\nX-Rewrite-URL: /health\r\n")
	f("POST /events?api_key=k&key=k", "Cookie: X-API-Key=k\r\n")
	f("POST /events", "Transfer-Encoding: identity\r\nX-Trailer: X-API-Key: k\r\n")
	if n := e.published.Load(); n != 0 {
		t.Errorf("got %d events published without a key", n)
	}
}

func itohex(n int) string {
	const digits = "0123456789abcdef"
	s := ""
	for ; n > 0; n /= 16 {
		s = string(digits[n%16]) + s
	}
	return s
}

// TestContinueAfterPause: a connection that was idle for longer than a write may take
// is told 100 Continue, and what is wrong with a header.
func TestContinueAfterPause(t *testing.T) {
	t.Parallel()
	const writeTimeout = 500 * time.Millisecond
	e := start(t, func(c *Config) { c.WriteTimeout = writeTimeout })
	conns := e.kept(2)
	<-time.After(writeTimeout + 50*time.Millisecond)
	conns[0].send("POST /events HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
	if line, err := conns[0].br.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Errorf("got %q, %v; want 100 Continue", line, err)
	}
	if _, err := conns[1].Conn.Write([]byte("nonsense\r\n\r\n")); err != nil { // beside openapi.yaml
		t.Fatal(err)
	}
	if line, err := conns[1].br.ReadString('\n'); err != nil || line != "HTTP/1.1 400 Bad Request\r\n" {
		t.Errorf("got %q, %v; want 400", line, err)
	}
}

func TestExpectContinue(t *testing.T) {
	// A rate needs the time, which fasthttp does not know yet when it asks.
	e := start(t, func(c *Config) { c.WriteKeys, c.KeyRate = []string{"k"}, 1e6 })
	const key = "X-API-Key: k\r\n"
	f := func(request, head string, status int, want string) {
		t.Helper()
		c := e.dial()
		c.send(request + " HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" + head + "\r\n")
		a := c.answer()
		a.check(t, status, want)
		if !a.Close {
			t.Errorf("%s: refused before the body, and the connection was kept", request)
		}
		c.closed()
	}
	f("POST /events", "Content-Length: 9\r\n", 401, "API key")
	f("POST /events", key+"Content-Length: 999999\r\n", 413, "the limit of 65536 bytes for an event")
	f("POST /events/bulk", key+"Content-Length: 99999999\r\n", 413, "10485760")
	f("POST /events", key+"Content-Length: 9\r\nContent-Type: text/html\r\n", 415, "text/html")
	f("POST /events", key+"Content-Length: 9\r\nContent-Encoding: lzma\r\n", 415, "lzma")
	f("POST /nope", key+"Content-Length: 9\r\n", 404, "no such route")
	f("PUT /events", key+"Content-Length: 9\r\n", 405, "not allowed")

	for _, framing := range []string{"Content-Length: " + itoa(len(good)), "Transfer-Encoding: chunked"} {
		c := e.dial()
		c.send("POST /events HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" + key + framing + "\r\n\r\n")
		line, err := c.br.ReadString('\n')
		if err != nil || line != "HTTP/1.1 100 Continue\r\n" {
			t.Fatalf("got %q, %v; want 100 Continue", line, err)
		}
		if _, err := c.br.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(framing, "Transfer") {
			c.send(itohex(len(good)) + "\r\n" + good + "\r\n0\r\n\r\n")
		} else {
			c.send(good)
		}
		c.answer().check(t, 202, "accepted")
		// The connection goes on.
		c.send("GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
		c.answer().check(t, 200, "healthy")
		c.Close()
	}
	if got := e.stats.requests[routeEvents][codeIndex[202]].Load(); got != 2 {
		t.Errorf("got %d answers counted; want 2, once per request", got)
	}
	if _, got, _ := e.stats.seconds[routeEvents].Snapshot(); got < 0 || got > 60 {
		t.Errorf("got %v seconds in all these requests; want next to none", got)
	}
}

// TestMalformedJSONCorpus holds that no body makes the server say more than 400.
func TestMalformedJSONCorpus(t *testing.T) {
	e := start(t, nil)
	deep := strings.Repeat("[", 30_000)
	rows := []string{
		"{", "}", "[", "]", `"`, "null", "true", "0", "-", "01", "1e", "[1 2]", "{a:1}", "tru", "\x00", "\xff\xfe",
		"\xef\xbb\xbf" + good, good + "\x00", good + good, good + "//", "/**/" + good, "NaN", "{}", "[[]]", "[{}]", "[null]",
		`{"":1}`, `{"event_name":"\ud800","user_id":"u","timestamp":1}`, `{"event_name":"` + "\x01" + `"}`, `{"event_name":"` + "\xc3" + `"}`,
		`{"event_name":"\u0000","user_id":"u","timestamp":1708732800000}`, `{"timestamp":9223372036854775808}`, `{"timestamp":1e3}`,
		`{"timestamp":-1}`, `{"timestamp":1.0}`, `{"timestamp":"1"}`, `{"tags":{}}`, `{"tags":[1]}`, `{"metadata":[]}`, `{"metadata":"x"}`,
		`{"events":`, `{"events":{}}`, `{"events":[`, `{"x":` + deep, deep, `{"metadata":{"a":` + deep, strings.Repeat(`{"a":`, 10_000), strings.Repeat("[{", 10_000),
		strings.Repeat(" ", 60_000), strings.Repeat(",", 60_000), strings.Repeat("\\", 60_000), `"` + strings.Repeat(`\u`, 20_000),
	}
	c := e.dial()
	for _, path := range []string{"/events", "/events/bulk"} {
		for _, typ := range []string{"application/json", "application/x-ndjson"} {
			if path == "/events" && typ != "application/json" {
				continue
			}
			for _, row := range rows {
				c.send("POST " + path + " HTTP/1.1\r\nHost: a\r\nContent-Type: " + typ + "\r\nContent-Length: " + itoa(len(row)) + "\r\n\r\n" + row)
				a := c.answer()
				a.promises(t)
				if a.StatusCode != 400 && a.StatusCode != 202 {
					t.Errorf("%s %s: got %d %s; want 400", path, row[:min(40, len(row))], a.StatusCode, a.body)
				}
				if a.StatusCode == 202 && typ == "application/json" {
					t.Errorf("%s %s: accepted", path, row[:min(40, len(row))])
				}
			}
		}
	}
	if n := e.stats.Panics.Load(); n != 0 {
		t.Errorf("got %d panics; want 0", n)
	}
}
