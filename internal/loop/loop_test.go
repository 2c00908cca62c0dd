//go:build linux

package loop

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
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

func TestEveryWay(t *testing.T) {
	w := start(t, 2, nil)
	for range 4 { // both loops
		c := w.dial()
		for range 3 {
			c.say("echo at once\n")
			c.hear("at once")
			c.say("park a while\n")
			c.hear("a while")
			c.say("lend me\n")
			c.hear("me")
			c.say("echo in ")
			c.say("pieces")
			c.say("\n")
			c.hear("in pieces")
			c.say("echo one\necho two\nlend three\n") // a borrower takes all of them
			c.hear("one")
			c.hear("two")
			c.hear("three")
		}
		c.say("bye now\n")
		c.hear("now")
		c.end()
	}
	if got := w.lent.Load(); got < 24 {
		t.Errorf("lent %d times; want 24 at least", got)
	}
}

// What a client sends while its connection is parked or lent must be seen when the
// loop has it back: its edge came when nobody was about to read.
func TestNothingIsMissedMeanwhile(t *testing.T) {
	w := start(t, 1, nil)
	c := w.dial()
	c.say("late first\n") // parked until told
	parked := <-w.late
	c.say("echo second\n")
	other := w.dial() // the loop has seen it, when this is answered
	other.say("echo x\n")
	other.hear("x")
	parked.Resume()
	c.hear("first")
	c.hear("second")
}

// An answer that the socket does not take at once is written by a goroutine, and the
// connection goes on after it.
func TestAnswerLargerThanTheSocket(t *testing.T) {
	w := start(t, 1, nil)
	c := w.dial()
	const n = 8 << 20
	c.say(fmt.Sprintln("big", n))
	got, err := c.br.ReadString('\n')
	if err != nil || len(got) != n+1 {
		t.Fatalf("got %d bytes, %v; want %d", len(got), err, n+1)
	}
	c.say("echo after it\n")
	c.hear("after it")
}

// A client that reads nothing is closed after WriteTimeout.
func TestAnswerNobodyReads(t *testing.T) {
	w := start(t, 1, func(c *Config) { c.WriteTimeout = 20 * time.Millisecond })
	c := w.dial()
	c.say(fmt.Sprintln("big", 64<<20))
	eventually(t, "the connection is closed", func() bool { return w.closed.Load() == 1 })
}

func TestTimeouts(t *testing.T) {
	w := start(t, 1, func(c *Config) {
		c.ReadTimeout, c.IdleTimeout, c.ParkTimeout = 30*time.Millisecond, 30*time.Millisecond, 30*time.Millisecond
	})
	silent := w.dial()
	silent.hear("too slow") // lent for being late, with no more time
	silent.end()
	half := w.dial()
	half.say("echo and no ")
	half.hear("too slow")
	half.end()
	waits := w.dial()
	waits.say("late\n")
	waits.hear("expired")
	waits.end()
	idle := w.dial()
	idle.say("echo once\n")
	idle.hear("once")
	idle.end()
	if got := w.expired.Load(); got != 3 {
		t.Errorf("%d expired; want 3", got)
	}
}

func TestPeerGoesAway(t *testing.T) {
	w := start(t, 1, nil)
	half := w.dial()
	half.say("echo no end")
	eventually(t, "it is read", func() bool { return w.begun.Load() == 1 })
	half.Close()
	eventually(t, "the handler hears of it", func() bool { return w.expired.Load() == 1 && w.closed.Load() == 1 })

	// A client may close its side and still want its answer.
	f := func(request, answer string) {
		t.Helper()
		before := w.closed.Load()
		c := w.dial()
		c.say(request)
		_ = c.Conn.(*net.TCPConn).CloseWrite()
		c.hear(answer)
		c.end()
		eventually(t, "it is closed", func() bool { return w.closed.Load() == before+1 })
	}
	for range 50 {
		f("echo x\n", "x")
		f("park y\n", "y")
		f("lend z\n", "z")
	}
	reset := w.dial()
	reset.say("park q\n")
	_ = reset.Conn.(*net.TCPConn).SetLinger(0)
	reset.Close()
	eventually(t, "every connection is closed", func() bool { return w.closed.Load() == w.opened.Load() })
}

func TestShutdown(t *testing.T) {
	w := start(t, 2, nil)
	idle, parked, part := w.dial(), w.dial(), w.dial()
	idle.say("echo x\n")
	idle.hear("x")
	parked.say("late y\n")
	part.say("bye to")
	late := <-w.late
	eventually(t, "the others have begun", func() bool { return w.begun.Load() == 1 })
	w.ln.Close()
	<-w.ended
	ended := make(chan error, 1)
	go func() { ended <- w.g.Shutdown(context.Background()) }()
	idle.end()
	part.say(" you\n")
	part.hear("to you")
	part.end()
	select {
	case <-ended:
		t.Fatal("shut down with a request parked")
	default:
	}
	late.Resume()
	parked.hear("y")
	parked.end()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	w.ln = nil

	w = start(t, 1, nil)
	stays := w.dial()
	stays.say("late z\n")
	late = <-w.late
	w.ln.Close()
	<-w.ended
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := w.g.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v; want the deadline", err)
	}
	late.Resume()
	stays.hear("z")
	stays.end()
	if err := w.g.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	w.ln = nil
}

// A client that fills every read has its turn like the others, and not a loop of its own.
func TestNobodyKeepsTheLoop(t *testing.T) {
	w := start(t, 1, nil)
	holds, floods, asks := w.dial(), w.dial(), w.dial()
	for _, c := range []*client{holds, floods, asks} { // the loop has them
		c.say("echo x\n")
		c.hear("x")
	}
	for len(w.order) > 0 {
		<-w.order
	}
	holds.say("hold\n")
	<-w.held
	line := "mute " + strings.Repeat("m", readBytes-len("mute \n")) + "\n"
	floods.say(strings.Repeat(line, 8)) // what a socket takes without being read
	asks.say("echo y\n")
	w.held <- struct{}{}
	asks.hear("y")
	before := 0
	for c := <-w.order; c != 'e'; c = <-w.order {
		before++
	}
	if before > 1 {
		t.Errorf("%d reads of one client came before the other's", before)
	}
}

// A child process has all descriptors until it runs: epoll then tells of a connection
// that is closed here.
func TestEventOfAClosedConnection(t *testing.T) {
	w := start(t, 1, nil)
	c := w.dial()
	c.say("late x\n")
	parked := <-w.late
	dup, err := unix.Dup(parked.fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dup)
	parked.Resume()
	c.hear("x")
	c.say("bye now\n")
	c.hear("now")
	eventually(t, "it is closed", func() bool { return w.closed.Load() == 1 })
	c.Close() // the event
	other := w.dial()
	for range 3 { // rounds of the loop
		other.say("echo y\n")
		other.hear("y")
	}
}

// A connection that was accepted and has not been looked at when the stop comes is
// closed like those that have.
func TestShutdownMeetsANewConnection(t *testing.T) {
	w := start(t, 1, nil)
	holds := w.dial()
	holds.say("late hold\n")
	(<-w.late).Resume()
	<-w.held // the loop goes through what was posted
	fresh := w.dial()
	eventually(t, "it is accepted", func() bool { return w.opened.Load() == 2 })
	w.ln.Close()
	<-w.ended
	ended := make(chan error, 1)
	go func() { ended <- w.g.Shutdown(context.Background()) }()
	eventually(t, "it is to stop", w.g.stopping.Load)
	holds.Close()
	w.held <- struct{}{}
	fresh.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := w.closed.Load(); got != 2 {
		t.Errorf("%d connections closed; want 2", got)
	}
	w.ln = nil
}

// Many clients, every way through a loop, requests cut at random places: each gets
// exactly its own answers, in order.
func TestStress(t *testing.T) {
	w := start(t, 3, nil)
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			c, err := net.Dial("tcp", w.ln.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			br := bufio.NewReader(c)
			for n := range 400 {
				want := ""
				text := ""
				for k := range 1 + r.IntN(3)/2 {
					word := []string{"echo", "park", "lend", "echo"}[r.IntN(4)]
					if k > 0 {
						word = "lend"
					}
					line := fmt.Sprint(i, "-", n, "-", k)
					text += word + " " + line + "\n"
					want += line + "\n"
				}
				for len(text) > 0 {
					cut := len(text)
					if r.IntN(3) == 0 {
						cut = 1 + r.IntN(len(text))
					}
					if _, err := io.WriteString(c, text[:cut]); err != nil {
						t.Error(err)
						return
					}
					text = text[cut:]
				}
				got := make([]byte, len(want))
				if _, err := io.ReadFull(br, got); err != nil || string(got) != want {
					t.Errorf("client %d: got %q, %v; want %q", i, got, err, want)
					return
				}
			}
		})
	}
	all.Wait()
}
