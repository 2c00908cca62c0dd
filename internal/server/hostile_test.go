package server

import (
	"io"
	"strings"
	"testing"
	"time"

	"edge/internal/codec"
)

// TestSlowloris holds that nothing a client leaves unfinished outlives the
// read timeout, and that it is told and counted.
func TestSlowloris(t *testing.T) {
	const timeout = 100 * time.Millisecond
	e := start(t, func(c *Config) { c.ReadTimeout = timeout })
	f := func(t *testing.T, name, raw string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := e.dial()
			c.t = t
			began := time.Now()
			c.send(raw)
			a := c.answer()
			a.check(t, 408, "read timeout")
			c.closed()
			if took := time.Since(began); took < timeout*8/10 {
				t.Errorf("answered after %v; want the whole %v", took, timeout)
			}
		})
	}
	const post = "POST /events/bulk HTTP/1.1\r\nHost: a\r\n"
	before := e.stats.Timeouts.Load()
	// Returns when the parallel ones have.
	t.Run("all", func(t *testing.T) {
		f(t, "silent", "")
		f(t, "request line", "POST /ev")
		f(t, "header", post+"X-A: ")
		f(t, "body", post+"Content-Length: 100\r\n\r\n[")
		f(t, "long body", post+"Content-Length: 100000\r\n\r\n"+strings.Repeat(" ", 9000))
		f(t, "chunk", post+"Transfer-Encoding: chunked\r\n\r\n100\r\n[")
		f(t, "chunk size", post+"Transfer-Encoding: chunked\r\n\r\n1")
		f(t, "after chunks", post+"Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n")
		f(t, "gzip", post+"Content-Encoding: gzip\r\nContent-Length: 100\r\n\r\n\x1f\x8b")
	})
	if got := e.stats.Timeouts.Load() - before; got != 9 {
		t.Errorf("got %d timeouts counted; want 9", got)
	}
}

func TestIdleConnectionIsClosed(t *testing.T) {
	e := start(t, func(c *Config) { c.IdleTimeout = 50 * time.Millisecond })
	c := e.dial()
	c.send("GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
	c.answer().check(t, 200, "healthy")
	c.closed()
}

// TestOversizedBody holds that a client that sends its whole body before it reads
// gets the sentence, not a connection reset, and that an ordinary one keeps its
// connection.
func TestOversizedBody(t *testing.T) {
	e := start(t, func(c *Config) { c.MaxBodyBytes, c.MaxInflatedBytes = 100<<10, 100<<10 })
	f := func(path string, size int, kept bool) {
		t.Helper()
		c := e.dial()
		c.send("POST " + path + " HTTP/1.1\r\nHost: a\r\nContent-Length: " + itoa(size) + "\r\n\r\n" + strings.Repeat(" ", size))
		a := c.answer()
		a.check(t, 413, "larger than the limit")
		if a.Close == kept {
			t.Errorf("%s with %d bytes: got close %v; want %v", path, size, a.Close, !kept)
		}
		if kept {
			c.send("GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
			c.answer().check(t, 200, "healthy")
		}
		c.Close()
	}
	f("/events", 70<<10, true)
	f("/events/bulk", 101<<10, true)
	f("/events/bulk", 1<<20, true)
	f("/events/bulk", 4<<20, true)
	for _, chunks := range []int{32, 1000} {
		c := e.dial()
		c.send("POST /events/bulk HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" +
			strings.Repeat("1000\r\n"+strings.Repeat(" ", 4096)+"\r\n", chunks) + "0\r\n\r\n")
		c.answer().check(t, 413, "102400")
	}

	// The bound grows with the limit: a few times the default 10 MiB.
	e = start(t, nil)
	f("/events/bulk", 11<<20, true)
	f("/events/bulk", 30<<20, true)
	c := e.dial()
	c.send("POST /nope HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n" + strings.Repeat(" ", 5000000))
	c.answer().check(t, 404, "no such route")
}

// TestEndlessBody holds that a body that cannot be accepted is answered without
// waiting for it.
func TestEndlessBody(t *testing.T) {
	e := start(t, func(c *Config) { c.ReadTimeout, c.WriteKeys = time.Hour, []string{"k"} })
	f := func(head string, status int) {
		t.Helper()
		c := e.dial()
		c.send("POST /events/bulk HTTP/1.1\r\nHost: a\r\n" + head + "\r\n" + strings.Repeat(" ", prefetch))
		a := c.answer()
		a.check(t, status, "")
		if !a.Close {
			t.Errorf("%q: connection kept with the body still to come", head)
		}
		c.Close()
	}
	f("X-API-Key: k\r\nContent-Length: 1000000000000\r\n", 413)
	f("Content-Length: 1000000000000\r\n", 401)
	f("Content-Length: 50000000\r\n", 401)
	f("X-API-Key: k\r\nContent-Type: video/mp4\r\nContent-Length: 50000000\r\n", 415)
}

func TestConnectionFlood(t *testing.T) {
	f := func(change func(*Config), status int, want string) {
		t.Helper()
		e := start(t, change)
		held := e.kept(3)
		over := e.dial()
		over.answer().check(t, status, want)
		over.closed()
		if got := e.stats.RejectedConns.Load(); got != 1 {
			t.Errorf("got %d rejected connections; want 1", got)
		}
		held[0].Close()
		eventually(t, "the freed place can be taken", func() bool { return e.gate.open.Load() == 2 })
		e.do("GET", "/health", nil, nil).check(t, 200, "healthy")
	}
	f(func(c *Config) { c.MaxConns = 3 }, 503, "too many open connections; the limit is 3")
	f(func(c *Config) { c.MaxConnsPerIP = 3 }, 429, "from your address; the limit is 3")
}

// TestInflightBudget holds that bodies over the budget are refused at once and
// nothing is kept of them, and that the budget comes back.
func TestInflightBudget(t *testing.T) {
	e := start(t, func(c *Config) {
		c.Events = codec.NewPool(codec.Rules{})
		c.MaxBodyBytes, c.MaxInflatedBytes, c.MaxInflightBytes = 256<<10, 256<<10, 3*512<<10
	})
	const size = 200 << 10
	head := "POST /events/bulk HTTP/1.1\r\nHost: a\r\nContent-Length: " + itoa(size) + "\r\n\r\n"
	body := "[" + good + strings.Repeat(" ", size-len(good)-2) + "]"
	// Bodies that are nearly there hold their blocks, 256 KiB each; a sixth of
	// the budget. While such a block grows into place it takes half as much more.
	var held []*conn
	hold := func(n int) {
		t.Helper()
		for len(held) < n {
			c := e.dial()
			c.send(head + body[:size-1])
			held = append(held, c)
			eventually(t, "one more body is held", func() bool { return e.memory.used.Load() == int64(len(held))*256<<10 })
		}
	}
	hold(4)
	e.do("POST", "/events/bulk", nil, []byte(body)).check(t, 202, "accepted")
	hold(5)
	e.do("POST", "/events/bulk", nil, []byte(body)).check(t, 429, "in flight")
	e.do("POST", "/events", nil, []byte(good)).check(t, 202, "accepted")
	if got := e.rejections()["memory_full"]; got != 1 {
		t.Errorf("got %d refused over the budget; want 1", got)
	}
	for _, c := range held {
		_, _ = io.WriteString(c, body[size-1:])
		c.answer().check(t, 202, `"accepted":1`)
	}
	e.do("POST", "/events/bulk", nil, []byte(body)).check(t, 202, "accepted")
}

// TestDeclaredLengthCostsNothing holds that a body's memory is paid with bytes,
// not with promises.
func TestDeclaredLengthCostsNothing(t *testing.T) {
	e := start(t, nil)
	for range 50 {
		c := e.dial()
		c.send("POST /events/bulk HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n" + strings.Repeat(" ", prefetch))
	}
	eventually(t, "fifty bodies have begun", func() bool { return e.memory.used.Load() >= 50*firstRead })
	if got := e.memory.used.Load(); got != 50*firstRead {
		t.Errorf("got %d bytes charged; want %d", got, 50*firstRead)
	}
}
