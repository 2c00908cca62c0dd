//go:build linux

package loop

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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

func TestBorrowersAreUsedAgain(t *testing.T) {
	var mu sync.Mutex
	seen := make(map[string]bool)
	w := start(t, 1, func(cfg *Config) {
		lent := cfg.Lent
		cfg.Lent = func(c *Conn) {
			stack := make([]byte, 64)
			id, _, _ := strings.Cut(string(stack[:runtime.Stack(stack, false)]), " [")
			mu.Lock()
			seen[id] = true
			mu.Unlock()
			lent(c)
		}
	})
	c := w.dial()
	const lends = 100
	for range lends {
		c.say("lend me\n")
		c.hear("me")
		for w.g.resting.Load() == 0 { // it has answered, and is on its way
			runtime.Gosched()
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) > lends/2 {
		t.Errorf("%d goroutines for %d loans", len(seen), lends)
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

// A request that came before the stop, and was not read yet, is answered before its
// connection is closed.
func TestShutdownMeetsARequest(t *testing.T) {
	w := start(t, 1, nil)
	holds, asks, lends, part, gone, rests := w.dial(), w.dial(), w.dial(), w.dial(), w.dial(), w.dial()
	for _, c := range []*client{asks, lends, part, gone, rests} { // the loop has them
		c.say("echo x\n")
		c.hear("x")
	}
	holds.say("late hold\n")
	(<-w.late).Resume()
	<-w.held // the loop goes through what was posted, and has the events of its round
	asks.say("echo y\n")
	lends.say("lend z\n")
	part.say("echo in ")
	gone.Close()
	w.ln.Close()
	<-w.ended
	ended := make(chan error, 1)
	go func() { ended <- w.g.Shutdown(context.Background()) }()
	eventually(t, "it is to stop", w.g.stopping.Load)
	w.held <- struct{}{}
	asks.hear("y")
	asks.end()
	lends.hear("z")
	lends.end()
	eventually(t, "the piece is read", func() bool { return w.begun.Load() == 1 })
	part.say("pieces\n")
	part.hear("in pieces")
	part.end()
	rests.end()
	holds.hear("hold")
	holds.end()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := w.closed.Load(); got != 6 {
		t.Errorf("%d connections closed; want 6", got)
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
