//go:build linux

package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loop drives all connections from one thread.
type loop struct {
	*Load
	epoll  int
	conns  []*conn
	idle   []*conn // a stack: the last that answered is the warmest
	events []unix.EpollEvent

	began   time.Time
	total   int64 // requests the schedule has; the closed loop knows no total
	next    int64 // number of the next request to send
	due     time.Time
	waiting int // connections with a request out
	result  *Result
}

// conn is one keep-alive connection, with at most one request out.
type conn struct {
	index    int32 // in conns
	fd       int
	number   int64
	intended time.Time
	out      []byte // what of the request is not written yet
	stamped  []byte // own copy of a request, when it is written over
	in       []byte
	busy     bool
	wantsOut bool // registered for writability
}

func newLoop(l *Load) (*loop, error) {
	lp := &loop{Load: l, events: make([]unix.EpollEvent, 512), result: &Result{Status: make(map[int]int64)}}
	var err error
	if lp.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	for i := range l.Conns {
		c := &conn{index: int32(i), fd: -1, in: make([]byte, 0, 4096)}
		lp.conns = append(lp.conns, c)
		if err := lp.open(c); err != nil {
			lp.close()
			return nil, err
		}
		lp.idle = append(lp.idle, c)
	}
	return lp, nil
}

func (lp *loop) close() {
	for _, c := range lp.conns {
		if c.fd >= 0 {
			_ = unix.Close(c.fd)
		}
	}
	_ = unix.Close(lp.epoll)
}

// open connects c and registers it for reading.
func (lp *loop) open(c *conn) error {
	addr, err := net.ResolveTCPAddr("tcp4", lp.Addr)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	to := &unix.SockaddrInet4{Port: addr.Port}
	copy(to.Addr[:], addr.IP.To4())
	err = unix.Connect(fd, to) // blocking: loopback answers at once
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err == nil {
		err = unix.EpollCtl(lp.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: c.index})
	}
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("connect to %s: %w", lp.Addr, err)
	}
	c.fd, c.in, c.out, c.busy, c.wantsOut = fd, c.in[:0], nil, false, false
	return nil
}

func (lp *loop) run(ctx context.Context) (*Result, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The default slack lets a wake-up be 50 µs late, a rate of 20,000 a second.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)

	lp.began = time.Now()
	lp.result.Began = lp.began
	lp.due = lp.began
	end := lp.began.Add(lp.Duration)
	if len(lp.Schedule) > 0 {
		lp.total = lp.Schedule.Total()
		lp.due = lp.began.Add(lp.Schedule.At(0))
		end = lp.began.Add(lp.Schedule.Length())
	}
	giveUp := end.Add(lp.Patience)
	last := lp.began
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		now := time.Now()
		more := lp.send(now, end)
		if !more && lp.waiting == 0 || now.After(giveUp) {
			break
		}
		answered, err := lp.wait(lp.timeout(now, giveUp))
		if err != nil {
			return nil, err
		}
		if answered {
			last = time.Now()
		}
	}
	lp.abandon()
	lp.result.Elapsed = max(last.Sub(lp.began), time.Microsecond)
	return lp.result, nil
}

// send writes every request that is due and has a connection, and reports
// whether any is still to come.
func (lp *loop) send(now, end time.Time) bool {
	if len(lp.Schedule) == 0 {
		if !now.Before(end) {
			return false
		}
		for len(lp.idle) > 0 && (lp.Hold == nil || !lp.Hold.Load()) {
			lp.request(now)
		}
		return true
	}
	for lp.next < lp.total && len(lp.idle) > 0 && !lp.due.After(now) {
		lp.request(lp.due)
		if lp.next < lp.total {
			lp.due = lp.began.Add(lp.Schedule.At(lp.next))
		}
	}
	return lp.next < lp.total
}

// timeout is how long there is nothing to do but to listen.
func (lp *loop) timeout(now, giveUp time.Time) time.Duration {
	d := min(giveUp.Sub(now), 100*time.Millisecond) // a look at the context
	switch {
	case len(lp.Schedule) == 0:
		d = min(d, time.Millisecond*5) // the end of the time, or of a hold
	case lp.next < lp.total && len(lp.idle) > 0:
		d = min(d, lp.due.Sub(now))
	}
	return max(d, 0)
}

// request sends the next request on an idle connection.
func (lp *loop) request(intended time.Time) {
	c := lp.idle[len(lp.idle)-1]
	lp.idle = lp.idle[:len(lp.idle)-1]
	c.number, c.intended, c.busy = lp.next, intended, true
	c.out = lp.Requests[lp.next%int64(len(lp.Requests))]
	if lp.Stamp != nil {
		c.stamped = append(c.stamped[:0], c.out...)
		lp.Stamp(lp.next, c.stamped)
		c.out = c.stamped
	}
	lp.next++
	lp.waiting++
	lp.result.Sent++
	lp.write(c)
}

func (lp *loop) write(c *conn) {
	for len(c.out) > 0 {
		n, err := unix.Write(c.fd, c.out)
		switch {
		case err == nil:
			c.out = c.out[n:]
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			lp.register(c, true)
			return
		default:
			lp.broken(c)
			return
		}
	}
	lp.register(c, false)
}

// register asks to be told when c can be written to, or no longer.
func (lp *loop) register(c *conn, writable bool) {
	if c.wantsOut == writable {
		return
	}
	c.wantsOut = writable
	want := uint32(unix.EPOLLIN)
	if writable {
		want |= unix.EPOLLOUT
	}
	_ = unix.EpollCtl(lp.epoll, unix.EPOLL_CTL_MOD, c.fd, &unix.EpollEvent{Events: want, Fd: c.index})
}

// wait handles what happens within d, and reports whether a request was
// answered. epoll_pwait2 counts in nanoseconds where epoll_wait has only whole
// milliseconds.
func (lp *loop) wait(d time.Duration) (answered bool, err error) {
	ts := unix.NsecToTimespec(d.Nanoseconds())
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(lp.epoll), uintptr(unsafe.Pointer(&lp.events[0])),
		uintptr(len(lp.events)), uintptr(unsafe.Pointer(&ts)), 0, 0)
	if errno != 0 {
		if errno == unix.EINTR {
			return false, nil
		}
		return false, fmt.Errorf("epoll: %w", errno)
	}
	for _, e := range lp.events[:n] {
		c := lp.conns[e.Fd]
		if c.fd < 0 {
			continue
		}
		if e.Events&unix.EPOLLOUT != 0 && len(c.out) > 0 {
			lp.write(c)
		}
		if c.fd >= 0 && e.Events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0 && lp.read(c) {
			answered = true
		}
	}
	return answered, nil
}

// read takes what is there and finishes the request when its answer is whole.
func (lp *loop) read(c *conn) (answered bool) {
	if len(c.in) == cap(c.in) {
		c.in = append(c.in, 0)[:len(c.in)] // grow
	}
	n, err := unix.Read(c.fd, c.in[len(c.in):cap(c.in)])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return false
	}
	if err != nil || n == 0 {
		lp.broken(c)
		return false
	}
	c.in = c.in[:len(c.in)+n]
	a, whole, err := frame(c.in)
	if err != nil || whole && (!c.busy || len(c.out) > 0 && a.status < 400) {
		lp.broken(c)
		return false
	}
	if !whole {
		return false
	}
	lp.finish(c, a)
	return true
}

func (lp *loop) finish(c *conn, a answer) {
	r := lp.result
	r.Status[a.status]++
	r.Latency.Add(time.Since(c.intended))
	lp.waiting--
	switch {
	case a.status == 202:
		accepted, rejected, bulk := counts(a.body)
		if !bulk {
			accepted, rejected = lp.Events, 0
		}
		r.Accepted += int64(accepted)
		r.Rejected += int64(rejected)
	case a.status >= 500:
		r.Doubtful += int64(lp.Events)
	}
	if lp.Answered != nil {
		lp.Answered(c.number, c.intended, a.status)
	}
	c.busy, c.in = false, c.in[:0]
	if a.close || len(c.out) > 0 {
		lp.reopen(c)
		return
	}
	lp.idle = append(lp.idle, c)
}

// broken gives up what c had out and opens it again. A connection the server
// closed while it was idle had nothing out.
func (lp *loop) broken(c *conn) {
	if c.busy {
		lp.unknown(c)
	} else {
		for i, other := range lp.idle {
			if other == c {
				lp.idle = append(lp.idle[:i], lp.idle[i+1:]...)
				break
			}
		}
	}
	lp.reopen(c)
}

func (lp *loop) unknown(c *conn) {
	lp.waiting--
	lp.result.Unknown++
	lp.result.Doubtful += int64(lp.Events)
	if lp.Answered != nil {
		lp.Answered(c.number, c.intended, 0)
	}
	c.busy = false
}

// reopen leaves c out of the game when the server is gone: what is due then
// shows as unsent.
func (lp *loop) reopen(c *conn) {
	_ = unix.Close(c.fd)
	c.fd = -1
	lp.result.Broken++
	if lp.open(c) == nil {
		lp.idle = append(lp.idle, c)
	}
}

// abandon counts what is still out, and what was due and never sent.
func (lp *loop) abandon() {
	for _, c := range lp.conns {
		if c.busy {
			lp.unknown(c)
		}
	}
	if len(lp.Schedule) > 0 {
		lp.result.Unsent = lp.total - lp.next
	}
}
