package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"edge/internal/codec"
	"edge/internal/producer"
	"edge/internal/query"
	"edge/internal/stat"

	"github.com/prometheus/client_golang/prometheus"
)

func TestEvent(t *testing.T) {
	e := start(t, nil)
	f := func(path, typ, body string, status int, want string) {
		t.Helper()
		h := header()
		if typ != "" {
			h["Content-Type"] = typ
		}
		e.do("POST", path, h, []byte(body)).check(t, status, want)
	}
	const accepted = `{"status":"accepted"}`
	f("/events", "application/json", good, 202, accepted)
	f("/events/", "application/json", good, 202, accepted)
	f("/events?source=sdk", "application/json", good, 202, accepted)
	f("/events", "application/json; charset=utf-8", good, 202, accepted)
	f("/events", "Application/JSON", good, 202, accepted)
	f("/events", "text/plain;charset=UTF-8", good, 202, accepted)
	f("/events", "", good, 202, accepted)
	f("/events", "", " "+good+"\r\n", 202, accepted)
	if got := e.stats.Accepted.Load(); got != 8 || e.published.Load() != 8 {
		t.Errorf("got %d accepted, %d published; want 8, 8", got, e.published.Load())
	}

	f("/events", "", "", 400, "the body is empty")
	f("/events", "", "{", 400, "byte 1")
	f("/events", "", "null", 400, "expected an object")
	f("/events", "", `{"user_id":"u","timestamp":1708732800000}`, 400, "event_name is required")
	f("/events", "", strings.Replace(good, "web", "fax", 1), 400, "channel must be one of web")
	f("/events", "application/x-ndjson", good, 415, "/events/bulk")
	f("/events", "application/x-www-form-urlencoded", good, 415, "application/x-www-form-urlencoded")
	f("/events", "multipart/form-data; boundary=x", "--x--\r\n", 415, "multipart/form-data")
	f("/events", `a"b\`+"\xff", good, 415, `a\"b\\`)
	f("/events", "", `{"pad":"`+strings.Repeat("x", 64<<10)+`",`+good[1:], 413, "65536")
	f("/events", "", `{"pad":"`+strings.Repeat("x", 70<<10)+`",`+good[1:], 413, "the body is larger than the limit of 65536 bytes for an event")
	if got := e.stats.Accepted.Load(); got != 8 {
		t.Errorf("got %d accepted after rejections; want 8", got)
	}
}

func TestBulk(t *testing.T) {
	e := start(t, func(c *Config) { c.Events = codec.NewPool(codec.Rules{MaxEvents: 5}) })
	f := func(typ, body string, status int, want string) {
		t.Helper()
		for _, path := range []string{"/events/bulk", "/events/bulk/"} {
			e.do("POST", path, header("Content-Type", typ), []byte(body)).check(t, status, want)
		}
	}
	const bad = `{"event_name":"x"}`
	f("application/json", "["+good+","+good+"]", 202, `{"status":"accepted","accepted":2,"rejected":0,"errors":[]}`)
	f("application/json", `{"events":[`+good+`]}`, 202, `"accepted":1,"rejected":0`)
	f("text/plain", "["+good+"]", 202, `"accepted":1`)
	for _, typ := range []string{"application/x-ndjson", "application/ndjson", "application/jsonl; charset=utf-8"} {
		f(typ, good+"\n"+good+"\n", 202, `"accepted":2`)
	}
	f("application/json", "["+good+","+bad+","+good+"]", 202, `"accepted":2,"rejected":1,"errors":[{"index":1,"error":"user_id is required`)
	f("application/x-ndjson", good+"\n"+bad+"\n{\n"+good, 202, `"accepted":2,"rejected":2,"errors":[{"index":1,`)
	f("application/json", "["+bad+"]", 400, `{"status":"rejected","accepted":0,"rejected":1,"errors":[{"index":0,"error":"user_id is required`)
	f("application/json", "["+bad+"]", 400, `"error":"no event was accepted; the first: user_id is required`)
	f("application/json", "[]", 400, "holds no events")
	f("application/json", `{"events":[]}`, 400, "holds no events")
	f("application/json", "["+good+",", 400, "byte")
	f("application/json", good, 400, "")
	f("application/json", "["+strings.Repeat(good+",", 5)+good+"]", 413, "more events than the limit, 5")
	f("text/csv", "a,b", 415, "text/csv")
	if got, want := e.stats.Accepted.Load(), uint64(e.published.Load()); got != want {
		t.Errorf("got %d accepted; published %d", got, want)
	}
}

func TestPublishErrors(t *testing.T) {
	var result error
	var log lockedBuffer
	e := start(t, func(c *Config) {
		c.Publish = func(*codec.Batch) error { return result }
		c.Log = slog.New(slog.NewJSONHandler(&log, nil))
	})
	f := func(err error, status int, want, reason string) {
		t.Helper()
		result = err
		before := e.rejections()[reason]
		e.do("POST", "/events", nil, []byte(good)).check(t, status, want)
		e.do("POST", "/events/bulk", nil, []byte("["+good+","+good+"]")).check(t, status, want)
		if got := e.rejections()[reason] - before; got != 3 {
			t.Errorf("%s: got %d rejected; want 3", reason, got)
		}
	}
	f(producer.ErrFull, 429, "nothing of the request was kept", "ring_full")
	f(producer.ErrTimeout, 503, "same event_id", "broker_timeout")
	if text := log.String(); strings.Count(text, "did not confirm in time; the client gets 503") != 2 {
		t.Errorf("got %s; want a line for each 503", text)
	}
	f(fmt.Errorf("shard 3: %w", producer.ErrTimeout), 503, "same event_id", "broker_timeout")
	f(producer.ErrClosed, 503, "stopping", "shutting_down")
	f(errors.New("NOT_ENOUGH_REPLICAS at 10.0.0.1:9092"), 503, "the broker refused", "broker_error")
	if got := e.stats.Accepted.Load(); got != 0 {
		t.Errorf("got %d accepted; want 0", got)
	}
}

// rejections returns the rejected counters by label.
func (e *edge) rejections() map[string]uint64 {
	m := make(map[string]uint64)
	for r := malformed; r < numReasons; r++ {
		m[r.label()] = e.stats.rejected[r].Load()
	}
	return m
}

func TestRoutes(t *testing.T) {
	e := start(t, nil)
	f := func(method, path string, status int, allow string) {
		t.Helper()
		a := e.do(method, path, nil, nil)
		if method == "HEAD" {
			if a.StatusCode != status || a.body != "" {
				t.Errorf("HEAD %s: got %d with %d bytes; want %d and none", path, a.StatusCode, len(a.body), status)
			}
			return
		}
		a.check(t, status, "")
		if got := a.Header.Get("Allow"); got != allow {
			t.Errorf("%s %s: got Allow %q; want %q", method, path, got, allow)
		}
	}
	f("GET", "/health", 200, "")
	f("GET", "/health/", 200, "")
	f("HEAD", "/health", 200, "")
	f("HEAD", "/ready", 200, "")
	f("GET", "/", 404, "")
	f("GET", "/nope", 404, "")
	f("POST", "/nope", 404, "")
	f("OPTIONS", "/nope", 404, "")
	f("POST", "//events", 404, "")
	f("POST", "/Events", 404, "")
	f("POST", "/events/bulk/x", 404, "")
	f("POST", "/%65vents", 404, "")
	f("GET", "/events", 405, "OPTIONS, POST")
	f("HEAD", "/events", 405, "")
	f("PUT", "/events/bulk/", 405, "OPTIONS, POST")
	f("DELETE", "/metrics", 405, "GET, HEAD, OPTIONS")
	f("POST", "/health", 405, "GET, HEAD, OPTIONS")
	f("PROPFIND", "/health", 405, "GET, HEAD, OPTIONS")
	f("OPTIONS", "/events", 204, "OPTIONS, POST")
	f("OPTIONS", "/metrics/", 204, "GET, HEAD, OPTIONS")
}

func TestMissingRole(t *testing.T) {
	e := start(t, func(c *Config) { c.Publish = nil })
	e.do("POST", "/events", nil, []byte(good)).check(t, 404, "ROLES")
	e.do("POST", "/events/bulk", nil, []byte("["+good+"]")).check(t, 404, "ROLES")
	e.do("GET", "/metrics?event_name=a", nil, nil).check(t, 404, "ROLES")
	e.do("GET", "/health", nil, nil).check(t, 200, `{"status":"healthy"}`)
}

func TestMetricsQuery(t *testing.T) {
	var (
		asked  query.Request
		result error
	)
	e := start(t, func(c *Config) {
		c.QueryTimeout = 20 * time.Millisecond
		c.Query = func(ctx context.Context, r query.Request) (*query.Result, error) {
			asked = r
			if result == context.DeadlineExceeded {
				<-ctx.Done()
				return nil, fmt.Errorf("query rollup: %w", ctx.Err())
			}
			if result != nil {
				return nil, result
			}
			return &query.Result{Request: r, Events: 7}, nil
		}
	})
	e.do("GET", "/metrics?event_name=a%20b&from=1723400000&to=1723486400", nil, nil).check(t, 200, `"total_events":7`)
	if asked.EventName != "a b" || asked.From != 1723400000 {
		t.Errorf("got %+v; want the parameters of the URL", asked)
	}
	e.do("GET", "/metrics", nil, nil).check(t, 400, "event_name")
	e.do("GET", `/metrics?event_name=a&from=%22%00`, nil, nil).check(t, 400, "from")
	result = errors.New("dial 10.0.0.1:9000: connection refused")
	a := e.do("GET", "/metrics?event_name=a", nil, nil)
	a.check(t, 503, "could not be answered")
	if strings.Contains(a.body, "10.0.0.1") {
		t.Errorf("answer tells clients about our network: %s", a.body)
	}
	result = fmt.Errorf("query metrics: %w (code 241)", query.ErrTooExpensive)
	e.do("GET", "/metrics?event_name=a", nil, nil).check(t, 400, "shorter range")
	result = context.DeadlineExceeded
	e.do("GET", "/metrics?event_name=a", nil, nil).check(t, 503, "did not finish in time")
}

func TestReady(t *testing.T) {
	var kafka, clickhouse error
	e := start(t, func(c *Config) {
		c.Checks = []Check{
			{"kafka", func() error { return kafka }},
			{"clickhouse", func() error { return clickhouse }},
		}
	})
	ready := func() answer { t.Helper(); return e.do("GET", "/ready", nil, nil) }
	ready().check(t, 200, `{"status":"ready","checks":{"kafka":"ok","clickhouse":"ok"}}`)
	kafka = errors.New(`no broker for "events"`)
	ready().check(t, 503, `{"status":"not ready","error":"kafka: no broker for \"events\"","checks":{"kafka":"no broker for \"events\"","clickhouse":"ok"}}`)
	clickhouse = errors.New("sink stuck for 61s")
	ready().check(t, 503, `kafka: no broker for \"events\"; clickhouse: sink stuck for 61s`)
	kafka, clickhouse = nil, nil
	e.Drain()
	ready().check(t, 503, "the server is stopping")
	e.do("GET", "/health", nil, nil).check(t, 200, "healthy")
	e.do("POST", "/events", nil, []byte(good)).check(t, 202, "accepted")
}

// TestDrainEndsConnections holds that whoever keeps a connection open is told to let go
// of it before it is closed under the next request, by loops and without.
func TestDrainEndsConnections(t *testing.T) {
	for _, loops := range []int{0, 1} {
		e := start(t, func(c *Config) { c.Loops = loops })
		kept := e.kept(4)
		f := func(c *conn, raw string, status int, last bool) {
			t.Helper()
			c.send(raw)
			if a := c.answer(); a.StatusCode != status || a.Close != last {
				t.Errorf("%d loops: got %d %s, close %v; want %d, %v", loops, a.StatusCode, a.body, a.Close, status, last)
			}
		}
		post := func(path, body string) string {
			return "POST " + path + " HTTP/1.1\r\nHost: a\r\nContent-Length: " + itoa(len(body)) + "\r\n\r\n" + body
		}
		requests := []struct {
			raw    string
			status int
		}{
			{post("/events", good), 202}, {post("/events/bulk", "["+good+"]"), 202}, {post("/events", "{}"), 400},
			{"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", 200},
		}
		for i, r := range requests {
			f(kept[i], r.raw, r.status, false)
		}
		e.Drain()
		for i, r := range requests {
			f(kept[i], r.raw, r.status, true)
			kept[i].closed()
		}
		f(e.dial(), requests[0].raw, 202, true) // one that is new
	}
}

func TestCatalogueStartsAtZero(t *testing.T) {
	s := New(defaults())
	set := new(stat.Set)
	s.Describe(set)
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(set)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := make(map[string]int)
	for _, f := range families {
		series[f.GetName()] = len(f.Metric)
	}
	f := func(name string, want int) {
		t.Helper()
		if series[name] != want {
			t.Errorf("%s: got %d series; want %d", name, series[name], want)
		}
	}
	f("edge_http_requests_total", int(numRoutes)*len(codes))
	f("edge_http_request_seconds", int(numRoutes))
	f("edge_http_open_connections", 1)
	f("edge_http_rejected_connections_total", 1)
	f("edge_http_timeouts_total", 1)
	f("edge_http_panics_total", 1)
	f("edge_events_accepted_total", 1)
	f("edge_events_rejected_total", int(numReasons-1))
	for r := malformed; r < numReasons; r++ {
		if r.label() == "unknown" {
			t.Errorf("reason %d has no label", r)
		}
	}
}

func TestAnswersAreCounted(t *testing.T) {
	e := start(t, nil)
	e.do("POST", "/events", nil, []byte(good))
	e.do("POST", "/events", nil, []byte("{"))
	e.do("GET", "/nope", nil, nil)
	f := func(r route, code int, want uint64) {
		t.Helper()
		if got := e.stats.requests[r][codeIndex[code]].Load(); got != want {
			t.Errorf("%s %d: got %d; want %d", routeLabels[r], code, got, want)
		}
	}
	f(routeEvents, 202, 1)
	f(routeEvents, 400, 1)
	f(routeOther, 404, 1)
	if n, _, _ := e.stats.seconds[routeEvents].Snapshot(); n != 2 {
		t.Errorf("got %d observations; want 2", n)
	}
}

func TestPanicIsAnAnswer(t *testing.T) {
	e := start(t, func(c *Config) {
		c.Start = func(*codec.Batch, producer.Waiter) (bool, error) { panic("boom") }
	})
	for range 3 {
		e.do("POST", "/events", nil, []byte(good)).check(t, 500, "internal error")
	}
	long := []byte("[" + strings.Repeat("1,", 9999) + good + "]") // of which the answer is made
	e.do("POST", "/events/bulk", nil, long).check(t, 500, "internal error")
	e.do("GET", "/health", nil, nil).check(t, 200, "healthy")
	if got := e.stats.Panics.Load(); got != 4 {
		t.Errorf("got %d panics; want 4", got)
	}
}

func TestShutdown(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	e := start(t, func(c *Config) {
		c.Publish = func(*codec.Batch) error {
			close(entered)
			<-leave
			return nil
		}
	})
	idle, busy, kept := e.dial(), e.dial(), e.dial()
	idle.send("GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
	idle.answer().check(t, 200, "healthy")
	eventually(t, "three connections are open", func() bool { return e.gate.open.Load() == 3 })
	busy.send("POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: " + itoa(len(good)) + "\r\n\r\n" + good)
	<-entered
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		done <- e.Shutdown(ctx)
	}()
	idle.closed()
	// fasthttp gives a connection that has not spoken yet five seconds to do so.
	kept.send("POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
	a := kept.answer()
	a.check(t, 503, "stopping")
	if !a.Close {
		t.Error("a late request's connection was kept; want Connection: close")
	}
	kept.closed()
	select {
	case err := <-done:
		t.Fatalf("Shutdown returned %v with a request in flight", err)
	default:
	}
	close(leave)
	busy.answer().check(t, 202, "accepted")
	if err := <-done; err != nil {
		t.Error(err)
	}
}
