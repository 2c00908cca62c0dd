package server

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// clock counts how often a deadline is really set.
type clock struct {
	net.Conn
	set int
}

func (c *clock) SetReadDeadline(t time.Time) error  { c.set++; return c.Conn.SetReadDeadline(t) }
func (c *clock) SetWriteDeadline(t time.Time) error { c.set++; return c.Conn.SetWriteDeadline(t) }

// lazy runs f with a connection to a peer, in virtual time.
func lazy(t *testing.T, f func(t *testing.T, c *lazyConn, inner *clock, peer net.Conn)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		inner := &clock{Conn: a}
		f(t, &lazyConn{Conn: inner}, inner, b)
	})
}

// TestLazyDeadlines: whatever the order of deadlines, an operation ends at the one
// that was set last, to the instant.
func TestLazyDeadlines(t *testing.T) {
	type step struct{ at, deadline time.Duration } // of the beginning; -1: none
	for _, steps := range [][]step{
		{{0, 5}},
		{{0, 5}, {1, 120}},           // a request, then idle
		{{0, 5}, {1, 120}, {100, 5}}, // and another after the timer has fired unseen
		{{0, 5}, {1, 120}, {2, 5}, {3, 120}, {4, 5}},
		{{0, 120}, {1, 5}}, // earlier than the timer
		{{0, 5}, {1, -1}, {9, 2}},
		{{0, 5}, {7, 3}}, // later than a timer that has fired
	} {
		for _, op := range []string{"read", "write"} {
			lazy(t, func(t *testing.T, c *lazyConn, _ *clock, _ net.Conn) {
				began := time.Now()
				var want time.Time
				set, try := c.SetReadDeadline, c.Read
				if op == "write" {
					set, try = c.SetWriteDeadline, c.Write
				}
				for _, s := range steps {
					<-time.After(time.Until(began.Add(s.at * time.Second)))
					want = time.Time{}
					if s.deadline >= 0 {
						want = time.Now().Add(s.deadline * time.Second)
					}
					if err := set(want); err != nil {
						t.Fatal(err)
					}
				}
				_, err := try(make([]byte, 1))
				if got := time.Now(); !errors.Is(err, os.ErrDeadlineExceeded) || !got.Equal(want) {
					t.Errorf("%s %v: %v at %v; want the deadline at %v", op, steps, err, got.Sub(began), want.Sub(began))
				}
			})
		}
	}
}

// TestLazyDeadlineLetsGoOn: what a timer interrupts before the deadline comes
// through whole.
func TestLazyDeadlineLetsGoOn(t *testing.T) {
	lazy(t, func(t *testing.T, c *lazyConn, _ *clock, peer net.Conn) {
		for _, after := range []time.Duration{1, 5} {
			if err := c.SetDeadline(time.Now().Add(after * time.Second)); err != nil {
				t.Fatal(err)
			}
		}
		go func() { // takes one byte a second, gives one after four
			one := make([]byte, 1)
			for range 4 {
				<-time.After(time.Second)
				_, _ = peer.Read(one)
			}
			_, _ = peer.Write(one)
		}()
		if n, err := c.Write([]byte("four")); n != 4 || err != nil {
			t.Errorf("wrote %d of 4: %v", n, err)
		}
		if n, err := c.Read(make([]byte, 4)); n != 1 || err != nil {
			t.Errorf("read %d of 1: %v", n, err)
		}
	})
}

// TestLazyDeadlinesAreFew: a busy connection sets a timer every few seconds, not
// three times a request.
func TestLazyDeadlinesAreFew(t *testing.T) {
	lazy(t, func(t *testing.T, c *lazyConn, inner *clock, peer net.Conn) {
		go func() {
			for b := []byte{1}; ; {
				if _, err := peer.Write(b); err != nil {
					return
				}
				if _, err := peer.Read(b); err != nil {
					return
				}
			}
		}()
		b := make([]byte, 1)
		for range 1000 { // ten seconds of requests, as fasthttp serves them
			for _, err := range []error{
				c.SetReadDeadline(time.Now().Add(2 * time.Minute)),
				c.SetReadDeadline(time.Now().Add(5 * time.Second)),
				c.SetWriteDeadline(time.Now().Add(10 * time.Second)),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			if _, err := c.Read(b); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(b); err != nil {
				t.Fatal(err)
			}
			<-time.After(10 * time.Millisecond)
		}
		if inner.set > 6 {
			t.Errorf("%d timers set in ten seconds", inner.set)
		}
	})
}
