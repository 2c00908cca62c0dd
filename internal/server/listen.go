package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"edge/internal/loop"
	"edge/internal/query"

	"github.com/valyala/fasthttp"
)

// gate stands between the listener and fasthttp and decides which connections
// exist. fasthttp has both limits too, but answers over them in plain text
// without Retry-After, does not count the ones refused per address, and gives
// up accepting for good when the process runs out of descriptors, which is what
// a flood of connections does first.
type gate struct {
	max, maxPerIP int
	writeTimeout  time.Duration
	stats         *Stats
	tooMany       []byte // the whole answer over max
	tooManyPerIP  []byte
	open          atomic.Int64
	stopped       chan struct{}
	stopOnce      sync.Once

	mu    sync.Mutex
	perIP map[netip.Prefix]int
}

func newGate(cfg *Config, s *Server) *gate {
	return &gate{
		max: cfg.MaxConns, maxPerIP: cfg.MaxConnsPerIP, writeTimeout: cfg.WriteTimeout,
		stats: &s.stats,
		tooMany: rawAnswer("503 Service Unavailable", s.retry,
			fmt.Sprintf("too many open connections; the limit is %d", cfg.MaxConns)),
		tooManyPerIP: rawAnswer("429 Too Many Requests", s.retry,
			fmt.Sprintf("too many open connections from your address; the limit is %d", cfg.MaxConnsPerIP)),
		stopped: make(chan struct{}),
		perIP:   make(map[netip.Prefix]int),
	}
}

func rawAnswer(status string, retry []byte, text string) []byte {
	body := append(query.AppendString([]byte(`{"error":`), text), '}')
	return fmt.Appendf(nil, "HTTP/1.1 %s\r\nConnection: close\r\nContent-Type: application/json\r\n"+
		"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nRetry-After: %s\r\nContent-Length: %d\r\n\r\n%s",
		status, retry, len(body), body)
}

// listener returns ln behind the gate.
func (g *gate) listener(ln net.Listener) net.Listener { return &gatedListener{ln, g} }

func (g *gate) stop() { g.stopOnce.Do(func() { close(g.stopped) }) }

type gatedListener struct {
	net.Listener
	gate *gate
}

// Accept returns the next connection within the limits. Running out of
// descriptors or buffers passes; it waits 5 ms, then longer, up to a second.
func (l *gatedListener) Accept() (net.Conn, error) {
	wait := 5 * time.Millisecond
	for {
		c, err := l.Listener.Accept()
		if err == nil {
			if answer := l.gate.enter(c); answer != nil {
				reject(c, answer)
				continue
			}
			return c, nil
		}
		if !passing(err) {
			return nil, err
		}
		select {
		case <-l.gate.stopped:
			return nil, err
		case <-time.After(wait):
			wait = min(2*wait, time.Second)
		}
	}
}

func passing(err error) bool {
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// enter counts c in, or returns the answer to refuse it with.
func (g *gate) enter(c net.Conn) []byte {
	if g.open.Add(1) > int64(g.max) {
		g.open.Add(-1)
		g.stats.RejectedConns.Inc()
		return g.tooMany
	}
	if addr, ok := g.address(c); ok {
		g.mu.Lock()
		n := g.perIP[addr]
		if n < g.maxPerIP {
			g.perIP[addr] = n + 1
		}
		g.mu.Unlock()
		if n >= g.maxPerIP {
			g.open.Add(-1)
			g.stats.RejectedConns.Inc()
			return g.tooManyPerIP
		}
	}
	return nil
}

// connState follows what fasthttp does with a connection. It sets the deadline of a
// write only before the answer of a handler: without ours, a 100 Continue, or the
// answer to a header that is none, would go out under that of the answer before,
// perhaps long past. A connection of a loop is told when it may go back there, and
// is counted out by the loop; any other here, exactly once.
func (g *gate) connState(c net.Conn, state fasthttp.ConnState) {
	looped, ofLoop := c.(*loop.Conn)
	switch state {
	case fasthttp.StateActive:
		if ofLoop {
			looped.SetIdle(false)
		}
		// An error shows in the write.
		_ = c.SetWriteDeadline(time.Now().Add(g.writeTimeout))
	case fasthttp.StateIdle:
		if ofLoop {
			looped.SetIdle(true)
		}
	case fasthttp.StateClosed:
		if !ofLoop { // else it is the loop's again, or already counted out
			g.leave(c)
		}
	}
}

// leave counts c out.
func (g *gate) leave(c net.Conn) {
	g.open.Add(-1)
	if addr, ok := g.address(c); ok {
		g.mu.Lock()
		if g.perIP[addr]--; g.perIP[addr] <= 0 {
			delete(g.perIP, addr)
		}
		g.mu.Unlock()
	}
}

// address returns what counts as one client: an IPv4 address or an IPv6 /64,
// the least a provider hands out.
func (g *gate) address(c net.Conn) (netip.Prefix, bool) {
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if g.maxPerIP == 0 || !ok {
		return netip.Prefix{}, false
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	return p, err == nil
}

// reject says why and closes. The answer fits any empty socket buffer; over
// TLS it would have to wait for a handshake, so there it is left out.
func reject(c net.Conn, answer []byte) {
	if _, encrypted := c.(*tls.Conn); !encrypted {
		// Nothing to do about a client that is gone already.
		_ = c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		_, _ = c.Write(answer)
	}
	_ = c.Close()
}
