package loop

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Supported tells whether New works here.
const Supported = true

const (
	// readBytes is what a loop reads at once, of any connection: a body of a
	// hundred events is half of it. There is one such buffer a loop.
	readBytes = 64 << 10
	// maxEvents bounds how long the other goroutines of a core wait for a loop.
	maxEvents = 128
	// interest of every connection, for as long as it is open.
	interest = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET
)

// A Group is the loops that share a listener's connections.
type Group struct {
	cfg      Config
	loops    []*loop
	next     atomic.Uint32
	stopping atomic.Bool
	running  sync.WaitGroup
	ended    chan struct{} // closed when no loop runs any more

	lent    chan *Conn // to a borrower that rests
	resting atomic.Int32
}

// New starts the loops. Shutdown ends them.
func New(cfg Config) (*Group, error) {
	g := &Group{cfg: cfg, ended: make(chan struct{}), lent: make(chan *Conn)}
	for range cfg.Loops {
		l, err := newLoop(g)
		if err != nil {
			for _, l := range g.loops {
				l.release()
			}
			return nil, err
		}
		g.loops = append(g.loops, l)
	}
	for _, l := range g.loops {
		g.running.Go(l.run)
	}
	go func() { g.running.Wait(); close(g.ended) }()
	return g, nil
}

// Add gives c, which a Listener of g accepted, to the next loop in turn.
func (g *Group) Add(c *Conn) {
	c.loop = g.loops[g.next.Add(1)%uint32(len(g.loops))]
	c.loop.post(c)
}

// Shutdown closes connections that rest, lets the others finish what they have
// begun, and returns when all are closed or ctx ends. Nothing may be added any more.
func (g *Group) Shutdown(ctx context.Context) error {
	g.stopping.Store(true)
	for _, l := range g.loops {
		l.nudge()
	}
	select {
	case <-g.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// maxResting bounds the borrowers that wait for another connection. Those of 64
// connections that ask one query after the other all find one; each is 8 to 16 kB.
const maxResting = 64

// borrow serves c, and then others: growing the stack of a new goroutine to what
// serving needs is a seventh of a short request.
func (g *Group) borrow(c *Conn) {
	for {
		g.cfg.Lent(c)
		if g.resting.Add(1) > maxResting {
			g.resting.Add(-1)
			return
		}
		select {
		case c = <-g.lent:
			g.resting.Add(-1)
		case <-g.ended:
			return
		}
	}
}

// loop is one goroutine and the connections it owns or has lent.
type loop struct {
	g       *Group
	handler Handler
	epoll   *os.File
	fd      int             // of epoll
	raw     syscall.RawConn // of epoll, to wait in the runtime's poller
	wake    int             // eventfd

	mu     sync.Mutex
	posted []*Conn
	asleep atomic.Bool

	// The loop's own.
	events [maxEvents]unix.EpollEvent
	buf    []byte
	now    time.Time
	conns  []*Conn // by slot; nil where free
	free   []int32
	open   int
	lap    []*Conn // posted, being gone through
	more   []*Conn // to be read in the next round
	turn   []*Conn // being gone through
	every  time.Duration
	due    time.Time          // when deadlines are looked at next
	look   func(uintptr) bool // whether there are events, for raw
	seen   int                // by look
	armed  time.Time          // when the sleep ends, if no earlier; zero: never

	stopping bool // has been noticed
}

func newLoop(g *Group) (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	l := &loop{g: g, fd: fd, wake: -1, buf: make([]byte, readBytes), handler: g.cfg.Handler()}
	// What is older than its timeout is noticed an eighth of the shortest late.
	shortest := min(g.cfg.ReadTimeout, g.cfg.IdleTimeout, g.cfg.ParkTimeout)
	l.every = min(max(shortest/8, time.Millisecond), 250*time.Millisecond)
	l.look = func(uintptr) bool {
		l.seen = l.poll()
		return l.seen > 0
	}
	_ = unix.SetNonblock(fd, true) // for os.File to poll it
	l.epoll = os.NewFile(uintptr(fd), "epoll")
	if l.raw, err = l.epoll.SyscallConn(); err == nil {
		l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	}
	if err == nil {
		err = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, l.wake, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: -1})
	}
	if err != nil {
		l.release()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return l, nil
}

func (l *loop) release() {
	_ = l.epoll.Close()
	l.mu.Lock()
	if l.wake >= 0 {
		_ = unix.Close(l.wake)
	}
	l.wake = -1
	l.mu.Unlock()
}

func (l *loop) run() {
	defer l.release()
	for {
		n := l.poll()
		if n == 0 && len(l.more) == 0 {
			n = l.sleep()
		}
		l.now = time.Now()
		l.readMore()
		for i := range n {
			if e := &l.events[i]; e.Fd >= 0 {
				l.event(e)
			}
		}
		l.collect()
		if !l.now.Before(l.due) {
			l.due = l.now.Add(l.every)
			l.expire()
		}
		if l.stopping = l.g.stopping.Load(); l.stopping && l.drained() {
			return
		}
		runtime.Gosched() // those who wait for this core, not least for what was just done
	}
}

// collect goes through what was posted.
func (l *loop) collect() {
	l.mu.Lock()
	l.lap, l.posted = l.posted, l.lap[:0]
	l.mu.Unlock()
	for i, c := range l.lap {
		l.lap[i] = nil
		switch c.state {
		case fresh:
			l.register(c)
		case parked:
			l.then(c, l.handler.Resume(c))
		case lent:
			l.back(c)
		}
	}
}

// register takes on a new connection.
func (l *loop) register(c *Conn) {
	if n := len(l.free); n > 0 {
		c.slot, l.free = l.free[n-1], l.free[:n-1]
		l.conns[c.slot] = c
	} else {
		c.slot = int32(len(l.conns))
		l.conns = append(l.conns, c)
	}
	l.open++
	if l.open == 1 {
		l.due = l.now.Add(l.every) // nobody has looked meanwhile
	}
	c.state, c.deadline = silent, l.now.Add(l.g.cfg.ReadTimeout)
	if unix.EpollCtl(l.fd, unix.EPOLL_CTL_ADD, c.fd, &unix.EpollEvent{Events: interest, Fd: c.slot}) != nil {
		l.close(c)
	}
}

// back takes on what a borrower is done with.
func (l *loop) back(c *Conn) {
	if c.fd < 0 {
		l.forget(c)
		return
	}
	l.rest(c)
	l.read(c) // what came meanwhile told the borrower, not us
}

// event acts on one event of epoll.
func (l *loop) event(e *unix.EpollEvent) {
	// Nearly always the connection that epoll means. A closed descriptor has events as
	// long as a child process that is being started has it, too; what they cost the
	// next in its slot is a look in vain.
	c := l.conns[e.Fd]
	if c == nil {
		return
	}
	c.hup = c.hup || e.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
	switch c.state {
	case lent:
		c.ring()
	case parked:
		c.again = true
	default:
		l.read(c)
	}
}

// read gives the handler what c sent, as much as is read at once. What is left then
// has its turn after the other connections.
func (l *loop) read(c *Conn) {
	n, errno := read(c.fd, l.buf)
	for errno == unix.EINTR {
		n, errno = read(c.fd, l.buf)
	}
	switch {
	case errno == unix.EAGAIN:
		return
	case errno != 0 || n == 0:
		l.ended(c)
		return
	}
	if c.state == idle || c.state == silent {
		c.deadline = l.now.Add(l.g.cfg.ReadTimeout) // should it have to wait for more
	}
	c.again = n == len(l.buf) || c.hup
	l.then(c, l.handler.Receive(c, l.buf[:n]))
	l.askAgain(c)
}

// askAgain has c read in the next round if there may be more.
func (l *loop) askAgain(c *Conn) {
	if c.again && !c.queued && (c.state == idle || c.state == reading) {
		c.queued = true
		l.more = append(l.more, c)
	}
}

// readMore reads from those that had more than one read.
func (l *loop) readMore() {
	l.turn, l.more = l.more, l.turn[:0]
	for i, c := range l.turn {
		l.turn[i] = nil
		c.queued = false
		if (c.state == idle || c.state == reading) && c.fd >= 0 { // the descriptor may be a borrower's
			l.read(c)
		}
	}
}

// then moves c on to what its handler said.
func (l *loop) then(c *Conn, next Next) {
	switch {
	case next == Lent:
		c.lend()
		select {
		case l.g.lent <- c:
		default:
			go l.g.borrow(c)
		}
	case next == Parked:
		if c.state != parked {
			c.state, c.deadline = parked, l.now.Add(l.g.cfg.ParkTimeout)
		}
	case next == Reading:
		c.state = reading
	case len(c.unsent) > 0:
		c.lend()
		go c.flush(next == Closed)
	case next == Closed:
		l.close(c)
	default:
		l.rest(c)
	}
}

// rest waits for the next request.
func (l *loop) rest(c *Conn) {
	c.state, c.deadline = idle, l.now.Add(l.g.cfg.IdleTimeout)
	l.askAgain(c) // of what came while it was parked
}

// ended acts on a connection that its peer has closed, or broken: the handler has
// the say when it was in the middle of a request.
func (l *loop) ended(c *Conn) {
	if c.state == reading {
		l.then(c, l.handler.Expire(c))
		return
	}
	l.close(c)
}

func (l *loop) close(c *Conn) {
	c.end()
	l.forget(c)
}

// forget gives c's slot to others.
func (l *loop) forget(c *Conn) {
	l.conns[c.slot] = nil
	l.free = append(l.free, c.slot)
	l.open--
}

// expire acts on the deadlines that have passed.
func (l *loop) expire() {
	for _, c := range l.conns {
		if c == nil || c.state == lent || l.now.Before(c.deadline) {
			continue
		}
		if c.state == idle {
			l.close(c)
			continue
		}
		c.late = c.state != parked
		l.then(c, l.handler.Expire(c))
	}
}

// drained closes what rests and reports whether nothing is left. A request that is
// there already has its answer: closed with it unread, the client would be told of a
// broken connection.
func (l *loop) drained() bool {
	for _, c := range l.conns {
		if c == nil || c.state != idle {
			continue
		}
		if l.read(c); c.state == idle && c.fd >= 0 {
			l.close(c)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open == 0 && len(l.posted) == 0
}
