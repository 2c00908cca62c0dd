package server

import (
	"bytes"
	"encoding/base64"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"edge/internal/codec"
	"edge/internal/loop"
	"edge/internal/producer"

	"github.com/valyala/fasthttp"
)

// replay is a connection on which one request arrives n times back to back and
// nobody reads the answers but to count them.
type replay struct {
	request []byte
	left    int // requests still to come
	rest    []byte
	written int
}

func (c *replay) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		if c.left == 0 {
			return 0, io.EOF
		}
		c.left--
		c.rest = c.request
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *replay) Write(p []byte) (int, error) {
	c.written += len(p)
	return len(p), nil
}

func (c *replay) Close() error                     { return nil }
func (c *replay) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *replay) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *replay) SetDeadline(time.Time) error      { return nil }
func (c *replay) SetReadDeadline(time.Time) error  { return nil }
func (c *replay) SetWriteDeadline(time.Time) error { return nil }

// atMemory is a server whose Publish takes everything at once, as ACK=memory does.
func atMemory() *Server {
	cfg := defaults()
	cfg.Events = codec.NewPool(codec.Rules{})
	cfg.Publish = func(b *codec.Batch) error { b.Release(); return nil }
	cfg.Start = func(*codec.Batch, producer.Waiter) (bool, error) { return false, nil }
	return New(cfg)
}

// sample is an event of the size SDKs send.
const sample = `{"event_name":"product_view","channel":"web","campaign_id":"summer_sale_2024","user_id":"user_12345",` +
	`"timestamp":1708732800000,"tags":["electronics","featured"],"metadata":{"product_id":"SKU-001","page_url":"/products/laptop"}}`

func request(path, typ, body string) []byte {
	return []byte("POST " + path + " HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: sdk/1.0\r\nContent-Type: " + typ +
		"\r\nContent-Length: " + itoa(len(body)) + "\r\n\r\n" + body)
}

func TestHandlerDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops entries under the race detector")
	}
	f := func(path, typ, enc, body string) {
		t.Helper()
		s := atMemory()
		var ctx fasthttp.RequestCtx
		ctx.Init2(&replay{}, nil, false)
		h := &ctx.Request.Header
		h.SetMethod("POST")
		h.SetContentType(typ)
		if enc != "" {
			h.Set("Content-Encoding", enc)
		}
		ctx.Request.SetRequestURI(path)
		src := strings.NewReader(body)
		ctx.Request.SetBodyStream(src, len(body))
		allocs := testing.AllocsPerRun(1000, func() {
			src.Reset(body)
			s.serve(&ctx)
			if ctx.Response.StatusCode() != 202 {
				t.Fatalf("got %d %s", ctx.Response.StatusCode(), ctx.Response.Body())
			}
			ctx.Response.Reset()
		})
		if allocs != 0 {
			t.Errorf("%s %s %s: got %v allocations; want 0", path, typ, enc, allocs)
		}
	}
	f("/events", "application/json", "", sample)
	f("/events/bulk", "application/json", "", "["+strings.Repeat(sample+",", 99)+sample+"]")
	f("/events/bulk", "application/x-ndjson", "", strings.Repeat(sample+"\n", 100))
	for enc := range deflaters {
		if enc == "br" {
			continue // its decoder makes three Huffman tables per stream
		}
		body, name := deflate(t, enc, sample)
		f("/events", "application/json", name, string(body))
	}
}

// TestKeysDoNotAllocate holds the same of a request that brings a key, wherever
// the key comes from and is found.
func TestKeysDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("escape analysis differs under the race detector")
	}
	shop, line := newTestKey(t, Write, "shop")
	s := guardedServer(t, line)
	f := func(name, value string) {
		t.Helper()
		var ctx fasthttp.RequestCtx
		ctx.Init2(&replay{}, nil, false)
		ctx.Request.Header.Set(name, value)
		allocs := testing.AllocsPerRun(1000, func() {
			if b, err := s.enter(&ctx, Write); err != nil || b == nil {
				t.Fatal(b, err)
			}
		})
		if allocs != 0 {
			t.Errorf("%s: got %v allocations; want 0", name, allocs)
		}
	}
	f("X-API-Key", shop)
	f("X-API-Key", "listed")
	f("Authorization", "Bearer "+shop)
	f("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(shop+":")))
}

// guardedServer is a server in memory with a key listed, and one in a file with
// ten thousand others.
func guardedServer(t testing.TB, line string) *Server {
	t.Helper()
	lines := []string{line}
	digest := strings.Fields(line)[2]
	for i := range 10_000 {
		lines = append(lines, "write other-"+itoa(i)+" "+digest)
	}
	file, err := ParseKeyFile([]byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	cfg := defaults()
	cfg.Events = codec.NewPool(codec.Rules{})
	cfg.Publish = func(b *codec.Batch) error { b.Release(); return nil }
	cfg.Start = func(*codec.Batch, producer.Waiter) (bool, error) { return false, nil }
	cfg.WriteKeys, cfg.KeyFile, cfg.KeyRate = []string{"listed"}, file, maxKeyRate
	return New(cfg)
}

// TestConnectionDoesNotAllocate counts what a request costs with fasthttp's
// part: one io.LimitedReader of 24 bytes, with which it makes sure that nothing
// of a streamed body is left.
func TestConnectionDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops entries under the race detector")
	}
	s := atMemory()
	const n = 2000
	c := &replay{request: request("/events", "application/json", sample)}
	allocs := testing.AllocsPerRun(5, func() {
		c.left = n
		if err := s.http.ServeConn(c); err != nil {
			t.Fatal(err)
		}
	})
	if perRequest := allocs / n; perRequest > 1.1 {
		t.Errorf("got %v allocations per request; want 1", perRequest)
	}
	if got := s.stats.requests[routeEvents][codeIndex[202]].Load(); got != 6*n {
		t.Errorf("got %d requests accepted; want %d", got, 6*n)
	}
}

// bench serves req b.N times per connection and goroutine.
func bench(b *testing.B, srv *fasthttp.Server, req []byte) {
	b.ReportAllocs()
	b.SetBytes(int64(len(req)))
	c := &replay{request: req, left: b.N}
	b.ResetTimer()
	if err := srv.ServeConn(c); err != nil {
		b.Fatal(err)
	}
	if c.written < b.N*len("HTTP/1.1 202 Accepted") {
		b.Fatalf("got %d bytes of answers to %d requests", c.written, b.N)
	}
}

// BenchmarkServe is posts over loopback, read by loops and by a goroutine a
// connection. The clients are of this process: each has many connections, writes to
// all and then reads from all, so that it costs a write and a read and hardly ever waits.
// cpu-ns/request is both sides'.
func BenchmarkServe(b *testing.B) {
	serve := func(name string, loops, events int, post []byte) {
		b.Run(name, func(b *testing.B) {
			if loops > 0 && !loop.Supported {
				b.Skip("no loops on this platform")
			}
			e := start(b, func(c *Config) {
				c.Loops = loops
				c.Publish = func(b *codec.Batch) error { b.Release(); return nil }
				c.Start = func(*codec.Batch, producer.Waiter) (bool, error) { return false, nil }
			})
			crowds := make(chan *crowd, runtime.GOMAXPROCS(0))
			for range cap(crowds) {
				crowds <- newCrowd(b, e.addr, post)
			}
			before := e.Stats().Accepted.Load()
			b.ReportAllocs()
			b.SetBytes(int64(len(post)))
			used := processorTime(b)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) { (<-crowds).run(pb) })
			b.StopTimer()
			used = processorTime(b) - used
			if got, want := e.Stats().Accepted.Load()-before, uint64(b.N*events); got != want {
				b.Fatalf("%d events were accepted; want %d", got, want)
			}
			b.ReportMetric(float64(used.Nanoseconds())/float64(b.N), "cpu-ns/request")
		})
	}
	for _, read := range []struct {
		by    string
		loops int
	}{{"loops", runtime.GOMAXPROCS(0)}, {"goroutines", 0}} {
		serve(read.by+"/event", read.loops, 1, request("/events", "application/json", sample))
		serve(read.by+"/bulk", read.loops, 100, request("/events/bulk", "application/x-ndjson", strings.Repeat(sample+"\n", 100)))
	}
}

// crowd is the connections of one client.
type crowd struct {
	b            *testing.B
	post, answer []byte
	conns        [32]net.Conn
}

// newCrowd dials, and learns on each connection how long an answer is.
func newCrowd(b *testing.B, addr string, post []byte) *crowd {
	c := &crowd{b: b, post: post}
	for i := range c.conns {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		if _, err := conn.Write(post); err != nil {
			b.Fatal(err)
		}
		c.conns[i], c.answer = conn, make([]byte, 1<<10)
		n, err := conn.Read(c.answer)
		if err != nil {
			b.Fatal(err)
		}
		c.answer = c.answer[:n]
	}
	return c
}

func (c *crowd) run(pb *testing.PB) {
	for more := true; more; {
		sent := 0
		for ; sent < len(c.conns); sent++ {
			if more = pb.Next(); !more {
				break
			}
			if _, err := c.conns[sent].Write(c.post); err != nil {
				c.b.Error(err)
				return
			}
		}
		for _, conn := range c.conns[:sent] {
			if _, err := io.ReadFull(conn, c.answer); err != nil || !bytes.HasPrefix(c.answer, []byte("HTTP/1.1 202")) {
				c.b.Errorf("answered: %s, %v", c.answer, err)
				return
			}
		}
	}
}

// processorTime is what this process has used so far.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkEvent is one event per request without sockets, as fasthttp serves what
// loops lend to it, next to the least it can do: a handler that sets 202 and looks at
// nothing.
func BenchmarkEvent(b *testing.B) {
	req := request("/events", "application/json", sample)
	b.Run("bare", func(b *testing.B) {
		bench(b, &fasthttp.Server{
			Handler: func(ctx *fasthttp.RequestCtx) {
				ctx.SetStatusCode(fasthttp.StatusAccepted)
				ctx.SetBodyString(`{"status":"accepted"}`)
			},
			ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute,
			NoDefaultServerHeader: true,
		}, req)
	})
	b.Run("edge", func(b *testing.B) {
		s := atMemory()
		bench(b, s.http, req)
		if got := s.stats.Accepted.Load(); got < uint64(b.N) {
			b.Fatalf("got %d accepted; want %d", got, b.N)
		}
	})
	b.Run("key", func(b *testing.B) {
		key, line, err := NewKey(Write, "shop")
		if err != nil {
			b.Fatal(err)
		}
		s := guardedServer(b, line)
		head, body, _ := strings.Cut(string(req), "\r\n\r\n")
		bench(b, s.http, []byte(head+"\r\nX-API-Key: "+key+"\r\n\r\n"+body))
		if got := s.stats.Accepted.Load(); got < uint64(b.N) {
			b.Fatalf("got %d accepted; want %d", got, b.N)
		}
	})
	b.Run("codec", func(b *testing.B) {
		pool := codec.NewPool(codec.Rules{})
		body, now := []byte(sample), time.Now()
		b.ReportAllocs()
		for b.Loop() {
			batch := pool.Get()
			if err := batch.DecodeOne(body, now); err != nil {
				b.Fatal(err)
			}
			batch.Release()
		}
	})
}

// BenchmarkBulk is the same with a hundred events per request.
func BenchmarkBulk(b *testing.B) {
	f := func(name, typ, body string) {
		b.Run(name, func(b *testing.B) {
			s := atMemory()
			bench(b, s.http, request("/events/bulk", typ, body))
			if got := s.stats.Accepted.Load(); got < 100*uint64(b.N) {
				b.Fatalf("got %d accepted; want %d", got, 100*b.N)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(100*b.N), "ns/event")
		})
	}
	f("array", "application/json", "["+strings.Repeat(sample+",", 99)+sample+"]")
	f("lines", "application/x-ndjson", strings.Repeat(sample+"\n", 100))
}
