package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edge/internal/codec"
	"edge/internal/producer"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// What fasthttp leaves behind: a clock for the Date header, and a sweeper per
	// server that notices its end within ten seconds.
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

const good = `{"event_name":"product_view","channel":"web","user_id":"user_12345","timestamp":1708732800000,"tags":["a"],"metadata":{"k":1}}`

// edge is a running server and the address to reach it at.
type edge struct {
	*Server
	t     testing.TB
	addr  string
	other *conn // of round
	// published counts the events Publish took.
	published *atomic.Int64
}

// defaults is a Config as edge's settings make it when none is set.
func defaults() Config {
	return Config{
		MaxEventBytes:    64 << 10,
		MaxBodyBytes:     10 << 20,
		MaxInflatedBytes: 32 << 20,
		MaxInflightBytes: 256 << 20,
		MaxConns:         32 << 10,
		Loops:            runtime.GOMAXPROCS(0),
		AckTimeout:       2 * time.Second,
		ReadTimeout:      5 * time.Second,
		WriteTimeout:     10 * time.Second,
		IdleTimeout:      2 * time.Minute,
		QueryTimeout:     10 * time.Second,
		RetryAfter:       time.Second,
		Origins:          []string{"*"},
	}
}

// start serves defaults changed by change on a loopback port until the test ends.
func start(t testing.TB, change func(*Config)) *edge {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, ln, change)
}

func startOn(t testing.TB, ln net.Listener, change func(*Config)) *edge {
	t.Helper()
	cfg := defaults()
	cfg.Events = codec.NewPool(codec.Rules{})
	published := new(atomic.Int64)
	cfg.Publish = func(b *codec.Batch) error {
		published.Add(int64(b.Len()))
		b.Release()
		return nil
	}
	if change != nil {
		change(&cfg)
	}
	if publish := cfg.Publish; publish != nil && cfg.Start == nil {
		cfg.Start = func(b *codec.Batch, w producer.Waiter) (bool, error) {
			b.Retain()
			go func() { w.Settled(publish(b)) }()
			return true, nil
		}
	}
	e := &edge{Server: New(cfg), t: t, addr: ln.Addr().String(), published: published}
	served := make(chan error, 1)
	go func() { served <- e.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := e.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		if n := e.memory.used.Load(); n != 0 {
			t.Errorf("%d bytes of body budget still charged; want 0", n)
		}
		eventually(t, "every connection is counted out", func() bool { return e.gate.open.Load() == 0 })
	})
	return e
}

// conn is one raw connection.
type conn struct {
	net.Conn
	t    testing.TB
	br   *bufio.Reader
	sent []byte // and not yet answered
}

// Write sends p and remembers it, so that what was asked can be held to
// openapi.yaml when the answer is there.
func (c *conn) Write(p []byte) (int, error) {
	c.sent = append(c.sent, p...)
	return c.Conn.Write(p)
}

func (e *edge) dial() *conn {
	e.t.Helper()
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { c.Close() })
	own := &conn{Conn: c, t: e.t, br: bufio.NewReader(c)}
	own.patience()
	return own
}

// kept are n connections that have asked something and stay open.
func (e *edge) kept(n int) (all []*conn) {
	e.t.Helper()
	for range n {
		c := e.dial()
		c.send("GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
		c.answer().check(e.t, 200, "healthy")
		all = append(all, c)
	}
	return all
}

// patience is how long the next answer may take, from here on: a test of thousands of
// them takes longer, under the race detector and beside others.
func (c *conn) patience() { _ = c.SetDeadline(time.Now().Add(10 * time.Second)) }

func (c *conn) send(raw string) {
	c.t.Helper()
	if _, err := io.WriteString(c, raw); err != nil {
		c.t.Fatal(err)
	}
}

// answer is a response with its body read.
type answer struct {
	*http.Response
	body string
}

func (c *conn) answer() answer {
	c.t.Helper()
	return c.answerTo("POST")
}

func (c *conn) answerTo(method string) answer {
	c.t.Helper()
	res, err := http.ReadResponse(c.br, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("read answer: %v", err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatalf("read answer's body: %v", err)
	}
	res.Body.Close()
	a := answer{res, string(body)}
	conforms(c.t, c.next(), a)
	c.patience()
	return a
}

// closed waits for the server to close the connection, and fails on more answers.
func (c *conn) closed() {
	c.t.Helper()
	rest, err := io.ReadAll(c.br)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		c.t.Errorf("connection not closed: %v", err)
	}
	if len(rest) > 0 {
		c.t.Errorf("unexpected bytes before close: %q", rest)
	}
}

// do sends one request over a connection of its own.
func (e *edge) do(method, path string, header map[string]string, body []byte) answer {
	e.t.Helper()
	var raw bytes.Buffer
	raw.WriteString(method + " " + path + " HTTP/1.1\r\nHost: edge\r\n")
	for k, v := range header {
		raw.WriteString(k + ": " + v + "\r\n")
	}
	if body != nil {
		raw.WriteString("Content-Length: " + itoa(len(body)) + "\r\n")
	}
	raw.WriteString("\r\n")
	raw.Write(body)
	c := e.dial()
	c.send(raw.String())
	a := c.answerTo(method)
	c.Close()
	return a
}

func itoa(n int) string { return string(appendInt(n)) }

func appendInt(n int) []byte { b, _ := json.Marshal(n); return b }

// check compares status and body, and holds what every answer promises.
func (a answer) check(t testing.TB, status int, body string) {
	t.Helper()
	if a.StatusCode != status {
		t.Errorf("got status %d (%s); want %d", a.StatusCode, a.body, status)
	}
	if !strings.Contains(a.body, body) {
		t.Errorf("got body %s; want it to contain %s", a.body, body)
	}
	a.promises(t)
}

func (a answer) promises(t testing.TB) {
	t.Helper()
	want := func(key, value string) {
		t.Helper()
		if got := a.Header.Get(key); got != value {
			t.Errorf("%d: got %s %q; want %q", a.StatusCode, key, got, value)
		}
	}
	want("X-Content-Type-Options", "nosniff")
	want("Cache-Control", "no-store")
	want("Server", "")
	want("Strict-Transport-Security", "") // no test but TestTLS has TLS
	if a.StatusCode != http.StatusNoContent {
		want("Content-Type", "application/json")
	}
	switch a.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		want("Retry-After", "1")
	default:
		want("Retry-After", "")
	}
	if a.StatusCode >= 300 && a.StatusCode < 400 {
		t.Errorf("redirected to %s", a.Header.Get("Location"))
	}
	if a.body == "" {
		return
	}
	var doc map[string]any
	if err := json.Unmarshal([]byte(a.body), &doc); err != nil {
		t.Errorf("answer is not a JSON object: %v: %s", err, a.body)
	}
	if text, _ := doc["error"].(string); a.StatusCode >= 400 && text == "" {
		t.Errorf("%d without an error sentence: %s", a.StatusCode, a.body)
	}
}

// eventually waits for cond with a deadline.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

func header(pairs ...string) map[string]string {
	h := make(map[string]string)
	for i := 0; i < len(pairs); i += 2 {
		h[pairs[i]] = pairs[i+1]
	}
	return h
}
