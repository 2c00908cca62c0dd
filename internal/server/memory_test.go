package server

import (
	"errors"
	"net"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestMemoryClasses(t *testing.T) {
	m := newMemory(1<<30, 1<<20)
	f := func(n, size int, charged int64) {
		t.Helper()
		blk := m.get(n)
		if cap(blk.b) != size || m.used.Load() != charged {
			t.Errorf("%d bytes: got a block of %d charged %d; want %d, %d", n, cap(blk.b), m.used.Load(), size, charged)
		}
		m.put(blk)
		if m.used.Load() != 0 {
			t.Errorf("%d bytes: still charged %d", n, m.used.Load())
		}
	}
	f(0, prefetch, 0)
	f(1, prefetch, 0)
	f(prefetch, prefetch, 0)
	f(prefetch+1, 2*prefetch, 2*prefetch)
	f(1<<20, 1<<20, 1<<20)
	f(1<<20+1, 2<<20, 2<<20)
}

// TestMemoryBudget holds the bound under contention: what is out is never more
// than the limit, and everything comes back.
func TestMemoryBudget(t *testing.T) {
	const limit = 1 << 20
	m := newMemory(limit, 1<<20)
	var wg sync.WaitGroup
	var refused, granted int64
	var mu sync.Mutex
	for range 8 {
		wg.Go(func() {
			for i := range 2000 {
				blk := m.get(64 << 10 << (i % 4))
				if used := m.used.Load(); used > limit+8*512<<10 {
					t.Errorf("%d bytes charged; want at most %d and what is being refused", used, limit)
				}
				mu.Lock()
				if blk == nil {
					refused++
				} else {
					granted++
				}
				mu.Unlock()
				if blk != nil {
					if bigger := m.grow(blk, 2*cap(blk.b)); bigger != nil {
						blk = bigger
					}
					m.put(blk)
				}
			}
		})
	}
	wg.Wait()
	if m.used.Load() != 0 || granted == 0 {
		t.Errorf("got %d charged after %d grants and %d refusals; want 0", m.used.Load(), granted, refused)
	}
}

// flaky is a listener whose Accept fails as the system's does under pressure.
type flaky struct {
	net.Listener
	errs []error
}

func (l *flaky) Accept() (net.Conn, error) {
	if len(l.errs) == 0 {
		return nil, net.ErrClosed
	}
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, &net.OpError{Op: "accept", Err: err}
}

// TestOutOfDescriptors holds that running out of descriptors is waited out.
// fasthttp alone would stop accepting for good.
func TestOutOfDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(defaults())
		ln := &flaky{errs: []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.EMFILE}}
		began := time.Now()
		_, err := s.gate.listener(ln).Accept()
		if !errors.Is(err, net.ErrClosed) || len(ln.errs) != 0 {
			t.Errorf("got %v with %d errors left; want all of them waited out", err, len(ln.errs))
		}
		if took := time.Since(began); took != (5+10+20+40)*time.Millisecond {
			t.Errorf("waited %v; want 75ms", took)
		}
		s.gate.stop()
		ln.errs = []error{syscall.EMFILE}
		if _, err := s.gate.listener(ln).Accept(); !errors.Is(err, syscall.EMFILE) {
			t.Errorf("got %v after stop; want the error", err)
		}
	})
}

func TestAddress(t *testing.T) {
	g := &gate{maxPerIP: 1}
	f := func(addr, want string) {
		t.Helper()
		tcp, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := g.address(addressed{addr: tcp})
		if !ok || got.String() != want {
			t.Errorf("%s: got %v, %v; want %s", addr, got, ok, want)
		}
	}
	f("192.0.2.7:1", "192.0.2.7/32")
	f("[::ffff:192.0.2.7]:1", "192.0.2.7/32")
	f("[2001:db8:1:2:3:4:5:6]:1", "2001:db8:1:2::/64")
	if _, ok := g.address(addressed{addr: &net.UnixAddr{Name: "@"}}); ok {
		t.Error("a unix socket has no address to count")
	}
}

type addressed struct {
	net.Conn
	addr net.Addr
}

func (a addressed) RemoteAddr() net.Addr { return a.addr }

// TestIdleConnections holds what a connection costs that has sent one event and
// keeps quiet: it rests in a loop, without a stack or a buffer. Both ends are in this
// process, so the figure is too high rather than too low.
func TestIdleConnections(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory drowns the figure")
	}
	const n = 1000
	e := start(t, nil)
	used := func() int64 {
		var m runtime.MemStats
		runtime.GC() // twice empties a sync.Pool
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	before := used()
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial("tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
		if _, err := c.Write(request("/events", "application/json", sample)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "every event is accepted", func() bool { return e.stats.Accepted.Load() == n })
	each := (used() - before) / n
	t.Logf("%d bytes per connection", each)
	if each > 4000 {
		t.Errorf("got %d bytes per idle connection; want at most 4000", each)
	}
	e.do("POST", "/events", nil, []byte(good)).check(t, 202, "accepted")
}

// TestBigBodiesAreNotPinned holds that a connection gives back what a large
// body and a large answer took.
func TestBigBodiesAreNotPinned(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory drowns the figure")
	}
	e := start(t, nil)
	body := "[" + strings.Repeat(`{"event_name":"","x":"`+strings.Repeat("y", 400)+`"},`, 9_999) + good + "]" // 4.2 MB
	var before, after runtime.MemStats
	runtime.GC() // twice empties a sync.Pool
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 10 {
		c := e.dial()
		c.send("POST /events/bulk HTTP/1.1\r\nHost: a\r\nContent-Length: " + itoa(len(body)) + "\r\n\r\n" + body)
		c.answer().check(t, 202, `"accepted":1,"rejected":9999`)
	}
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapInuse) - int64(before.HeapInuse)
	t.Logf("%d bytes more for ten connections that sent %d each", grown, len(body))
	if grown > 4<<20 {
		t.Errorf("got %d bytes still held; want at most 4 MiB", grown)
	}
}
