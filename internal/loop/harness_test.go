//go:build linux

package loop

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lines is a handler of lines: the first word says what becomes of it.
//
//	echo x   answered at once          park x   answered by Resume
//	lend x   answered by a borrower    late     parked, and never resumed
//	bye x    answered, then closed     big n    answered with n bytes
//	mute     not answered              hold     blocks the loop until the test says so
type lines struct {
	w    *world
	part map[*Conn][]byte
}

// world is a group, its listener, and what happened.
type world struct {
	t       *testing.T
	g       *Group
	ln      net.Listener
	closed  atomic.Int64
	opened  atomic.Int64
	lent    atomic.Int64
	expired atomic.Int64
	begun   atomic.Int64 // lines that came in pieces
	late    chan *Conn   // parked, for the test to resume
	held    chan struct{}
	order   chan byte // of some lines: their first letters
	ended   chan struct{}
}

func (h *lines) Receive(c *Conn, p []byte) Next {
	p = append(h.part[c], p...)
	delete(h.part, c)
	end := bytes.IndexByte(p, '\n')
	switch {
	case end < 0:
		h.part[c] = p
		h.w.begun.Add(1)
		return Reading
	case end < len(p)-1, bytes.HasPrefix(p, []byte("lend")):
		return c.Lend(p[:1], p[1:])
	}
	return h.w.act(c, string(p[:end]))
}

func (w *world) act(c *Conn, line string) Next {
	word, rest, _ := strings.Cut(line, " ")
	c.Data = rest
	switch word {
	case "park":
		go c.Resume()
		return Parked
	case "late":
		w.late <- c
		return Parked
	case "mute":
		w.note('m')
		return Idle
	case "hold":
		w.hold()
		return Idle
	case "big":
		var n int
		fmt.Sscan(rest, &n)
		c.Send(bytes.Repeat([]byte("x"), n/2))
		c.Send(append(bytes.Repeat([]byte("x"), n-n/2), '\n'))
		return Idle
	case "bye":
		c.Send([]byte(rest + "\n"))
		return Closed
	}
	w.note('e')
	c.Send([]byte(rest + "\n"))
	return Idle
}

func (w *world) note(c byte) {
	select {
	case w.order <- c:
	default: // nobody asks
	}
}

func (w *world) hold() {
	w.held <- struct{}{}
	<-w.held
}

func (h *lines) Resume(c *Conn) Next {
	if c.Data == "hold" {
		h.w.hold()
	}
	c.Send([]byte(c.Data.(string) + "\n"))
	return Idle
}

func (h *lines) Expire(c *Conn) Next {
	h.w.expired.Add(1)
	if p, ok := h.part[c]; ok {
		delete(h.part, c)
		return c.Lend(p)
	}
	if c.Data == nil {
		return c.Lend()
	}
	c.Send([]byte("expired\n"))
	return Closed
}

// borrow serves a lent connection until it is between two lines.
func (w *world) borrow(c *Conn) {
	w.lent.Add(1)
	defer c.Close()
	br := bufio.NewReader(c)
	for {
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		line, err := br.ReadString('\n')
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				fmt.Fprintln(c, "too slow")
			}
			return
		}
		_, rest, _ := strings.Cut(line, " ")
		if _, err := io.WriteString(c, rest); err != nil {
			return
		}
		c.SetIdle(br.Buffered() == 0)
	}
}

// start runs a group until the test ends, with long timeouts but for change.
func start(t *testing.T, loops int, change func(*Config)) *world {
	t.Helper()
	w := &world{t: t, ended: make(chan struct{}), late: make(chan *Conn, 1), held: make(chan struct{}), order: make(chan byte, 1000)}
	cfg := Config{
		Loops: loops, Lent: w.borrow, Closed: func(*Conn) { w.closed.Add(1) },
		Handler:     func() Handler { return &lines{w, make(map[*Conn][]byte)} },
		ReadTimeout: time.Minute, WriteTimeout: time.Minute, IdleTimeout: time.Minute, ParkTimeout: time.Minute,
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.g, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if raw, err := tcp.(*net.TCPListener).SyscallConn(); err == nil { // connections have it from the listener
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20) })
	}
	if w.ln, err = w.g.Listener(tcp.(*net.TCPListener)); err != nil {
		t.Fatal(err)
	}
	ln := w.ln
	go func() {
		defer close(w.ended)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			w.opened.Add(1)
			w.g.Add(c.(*Conn))
		}
	}()
	t.Cleanup(func() { w.stop(5 * time.Second) })
	return w
}

func (w *world) stop(patience time.Duration) {
	w.t.Helper()
	if w.ln == nil {
		return
	}
	w.ln.Close()
	w.ln = nil
	<-w.ended
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := w.g.Shutdown(ctx); err != nil {
		w.t.Errorf("shutdown: %v", err)
	}
	if open, closed := w.opened.Load(), w.closed.Load(); open != closed {
		w.t.Errorf("%d connections closed of %d", closed, open)
	}
}

type client struct {
	net.Conn
	t  *testing.T
	br *bufio.Reader
}

func (w *world) dial() *client {
	w.t.Helper()
	c, err := net.Dial("tcp", w.ln.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{c, w.t, bufio.NewReader(c)}
}

func (c *client) say(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) hear(want string) {
	c.t.Helper()
	got, err := c.br.ReadString('\n')
	if err != nil || got != want+"\n" {
		c.t.Fatalf("got %q, %v; want %q", got, err, want)
	}
}

func (c *client) end() {
	c.t.Helper()
	if rest, err := io.ReadAll(c.br); err != nil || len(rest) > 0 {
		c.t.Fatalf("got %q, %v; want the end", rest, err)
	}
}

// eventually waits for cond with a deadline.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}
