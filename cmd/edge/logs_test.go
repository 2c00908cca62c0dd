//go:build linux

package main

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// No line of any log, at debug level and whatever goes wrong, has anything of
// an event or of a key in it: a marker stands in every place a client can fill,
// and the logs of edge, its broker and its engine are searched for it.
func TestLogsHoldNoEvents(t *testing.T) {
	t.Parallel() // it waits more than it works
	const marker = "xyzzy4711"
	writeKey, readKey := "write-"+marker, "read-"+marker
	c := startOwnCluster(t, "logged", "LOG_LEVEL", "debug")
	n := c.tenant(t, "logged")
	p := n.start("edge", everything, "LOG_LEVEL", "debug", "WRITE_KEYS", writeKey, "READ_KEYS", readKey)
	logs := []*process{p.process, c.broker, c.engine}
	post := func(path, body, key string, want int) {
		t.Helper()
		req, err := http.NewRequest(http.MethodPost, "http://"+p.public+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Trace", marker)
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := clients.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("POST %s %q: status %d; want %d", path, body, resp.StatusCode, want)
		}
	}
	at := time.Now().UnixMilli()
	event := fmt.Sprintf(`{"event_name":"e-%[1]s","user_id":"u-%[1]s","campaign_id":"c-%[1]s","event_id":"i-%[1]s","tags":["t-%[1]s"],"metadata":{"m":"%[1]s"},"timestamp":%[2]d}`, marker, at)
	post("/events", event, writeKey, http.StatusAccepted)
	post("/events", event, marker, http.StatusUnauthorized)
	for _, bad := range []string{
		marker, `{"` + marker, `{"event_name":` + marker + `}`, `{"event_name":"a","user_id":"u","timestamp":"` + marker + `"}`,
		fmt.Sprintf(`{"event_name":"a","channel":%q,"user_id":"u","timestamp":%d}`, marker, at),
		fmt.Sprintf(`{"event_name":"a","user_id":"u","timestamp":%d,"metadata":[%q]}`, at, marker),
	} {
		post("/events", bad, writeKey, http.StatusBadRequest)
		post("/events/bulk", "["+bad+"]", writeKey, http.StatusBadRequest)
	}
	query := func(rest, key string, want int) {
		t.Helper()
		if _, err := request(http.MethodGet, "http://"+key+"@"+p.public+"/metrics?event_name=asked"+rest, "", nil, want); err != nil {
			t.Error(err)
		}
	}
	query("", readKey, http.StatusOK)
	query("&timezone="+marker, readKey, http.StatusBadRequest)
	query("", marker, http.StatusUnauthorized)

	// What is not HTTP, not Kafka and not ClickHouse, on their ports.
	for _, addr := range []string{p.public, p.admin, "127.0.0.1:" + c.brokerPort, "127.0.0.1:" + c.enginePort} {
		for _, text := range []string{
			marker + "\r\n\r\n", "POST /events HTTP/1.1\r\n" + marker + "\r\n\r\n",
			"POST /events HTTP/1.1\r\nHost: a\r\nX-API-Key: " + marker + "\r\nContent-Length: " + marker + "\r\n\r\n",
			"POST /events HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + marker + "\r\n",
			"\x00\x00\x00\x30\x00\x00\x00\x00\x00\x00\x00\x01\x00\x09" + marker + strings.Repeat(marker, 4),
			"\x00\x05" + marker + "\x01\x01\x80\x80\x04\x09" + marker + "\x09" + marker + "\x09" + marker,
		} {
			say(t, addr, text)
		}
	}

	// Records that are no events.
	for _, value := range []string{marker, `{"event_name":"` + marker, `{"event_name":"` + marker + `","user_id":"` + marker + `"}`} {
		r := &kgo.Record{Topic: n.name, Key: []byte(marker), Value: []byte(value), Headers: []kgo.RecordHeader{{Key: marker, Value: []byte(marker)}}}
		if err := n.client.ProduceSync(context.Background(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	within(t, time.Minute, "the letters are buried", func() error {
		return atLeast(int(p.metric(`edge_dlq_records_total\{\S*\}`)), 3)
	}, p.process)

	// Both servers away, one after the other, with events on their way.
	c.engine.kill()
	post("/events", event, writeKey, http.StatusAccepted)
	within(t, time.Minute, "a query fails", func() error {
		_, err := request(http.MethodGet, "http://"+readKey+"@"+p.public+"/metrics?event_name=asked", "", nil, http.StatusServiceUnavailable)
		return err
	}, p.process)
	c.broker.kill()
	post("/events", event, writeKey, http.StatusServiceUnavailable)
	p.kill()

	lines := 0
	for _, l := range logs {
		text, err := os.ReadFile(l.log)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			lines++
			if strings.Contains(line, marker) {
				t.Errorf("%s logs what a client sent: %s", l.name, line)
			}
		}
	}
	if lines < 20 {
		t.Errorf("%d lines in all: the level was not debug", lines)
	}
}

// say sends text to addr and reads until the other end is fed up.
func say(t *testing.T, addr, text string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(text)); err != nil {
		return
	}
	buf := make([]byte, 4096)
	for {
		if _, err := conn.Read(buf); err != nil {
			return
		}
	}
}

// logKeys are keys that every part writes the same way; values in them have one
// form: an error, a number of milliseconds, a partition's number, an offset.
var logKeys = map[string]string{
	"error": "err", "first_error": "err", "cause": "err", "duration": "took_ms", "elapsed": "took_ms", "took": "took_ms",
	"try": "attempt", "tries": "attempt", "part_id": "partition", "delay": "pause_ms", "pause": "pause_ms", "retry": "pause_ms",
}

// What a log line says is found by the same key wherever it comes from.
func TestLogKeys(t *testing.T) {
	calls := 0
	key := regexp.MustCompile(`^[a-z][a-z_]*$`)
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2) {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok {
				return true
			}
			for i, arg := range logArguments(call) {
				lit, ok := arg.(*ast.BasicLit)
				if i == 0 {
					calls++
				}
				if i%2 == 1 || !ok {
					continue
				}
				name, _ := strconv.Unquote(lit.Value)
				if want := logKeys[name]; want != "" || !key.MatchString(name) {
					t.Errorf("%s: log key %q; want %q", files.Position(lit.Pos()), name, want)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if calls < 40 {
		t.Errorf("found %d calls with attributes; there were more", calls)
	}
}

// logArguments returns what follows the message when call is a logger's.
func logArguments(call *ast.CallExpr) []ast.Expr {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, method.Sel.Name) || len(call.Args) < 2 {
		return nil
	}
	switch on := method.X.(type) {
	case *ast.Ident:
		ok = strings.HasSuffix(strings.ToLower(on.Name), "log")
	case *ast.SelectorExpr:
		ok = strings.HasPrefix(strings.ToLower(on.Sel.Name), "log")
	}
	if !ok {
		return nil
	}
	return call.Args[1:]
}
