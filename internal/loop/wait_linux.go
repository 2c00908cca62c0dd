package loop

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// How a loop waits, and is woken; the package comment argues for it.

// poll asks for events and does not wait.
func (l *loop) poll() int {
	for {
		n, errno := epollWait(l.fd, l.events[:])
		switch {
		case errno == 0:
			return n
		case errno != unix.EINTR:
			panic("BUG: epoll_wait: " + errno.Error())
		}
	}
}

// sleep waits for events, a post, or the time to look at deadlines.
func (l *loop) sleep() int {
	l.asleep.Store(true)
	defer l.asleep.Store(false)
	l.mu.Lock()
	posted := len(l.posted)
	l.mu.Unlock()
	if posted > 0 || l.g.stopping.Load() && !l.stopping {
		return 0
	}
	until := l.due
	if l.open == 0 {
		until = time.Time{}
	}
	if !until.Equal(l.armed) {
		l.armed = until
		_ = l.epoll.SetReadDeadline(until) // fails only for a closed file
	}
	l.seen = 0
	err := l.raw.Read(l.look)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		panic("BUG: wait for epoll: " + err.Error())
	}
	return l.seen
}

// post gives c to the loop: it is new, resumed, given back, or closed.
func (l *loop) post(c *Conn) {
	l.mu.Lock()
	l.posted = append(l.posted, c)
	l.mu.Unlock()
	l.nudge()
}

var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// nudge wakes the loop if it sleeps.
func (l *loop) nudge() {
	if l.asleep.Load() && l.asleep.CompareAndSwap(true, false) {
		l.mu.Lock()
		if l.wake >= 0 { // else the loop has woken by itself, and ended
			_, _ = write(l.wake, one) // fails only at 2^64 nudges
		}
		l.mu.Unlock()
	}
}
