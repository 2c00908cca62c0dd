package loop

import (
	"bytes"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// state of a connection, as its loop sees it.
type state uint8

const (
	fresh   state = iota // on its way to a loop
	silent               // has sent nothing yet
	idle                 // between two requests
	reading              // a request has begun
	parked               // a request waits for its outcome
	lent                 // a goroutine's
)

// Conn is one connection. While it is lent it is a net.Conn like any other, for
// one goroutine.
type Conn struct {
	// Data is the handler's.
	Data any

	loop     *loop
	fd       int // -1 once closed
	slot     int32
	state    state
	again    bool // something happened that was not looked at
	queued   bool // in loop.more
	hup      bool // the peer has closed its side, or both
	late     bool // lent because it was too slow
	idling   bool // lent, and between two requests
	rested   bool // lent, and its reader has been told that there is no more
	deadline time.Time
	unsent   []byte // of an answer
	sent     func() // nil, or to be called when that is out
	addrs    *addrs

	// While it is lent.
	first   []byte // what the loop had read
	changed chan struct{}
	timer   *time.Timer
	readBy  time.Time
	writeBy time.Time
}

// addrs is apart, since most connections are never asked.
type addrs struct {
	local  net.Addr
	remote *net.TCPAddr
}

// Send writes an answer, in a call of the handler. What the socket does not take at
// once is kept and written by a goroutine, before anything else happens to c.
func (c *Conn) Send(p []byte) {
	for len(p) > 0 && len(c.unsent) == 0 {
		n, errno := write(c.fd, p)
		switch {
		case errno == 0:
			p = p[n:]
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			c.unsent = append([]byte(nil), p...)
			return
		default:
			return // broken; the next read says so
		}
	}
	c.unsent = append(c.unsent, p...)
}

// Sent has f called when all that Send was given is out, or c has come to its end before.
func (c *Conn) Sent(f func()) {
	if len(c.unsent) == 0 {
		f()
		return
	}
	c.sent = f
}

// Lend hands c to a goroutine, which reads a copy of first before anything else, and
// returns what the handler is to return.
func (c *Conn) Lend(first ...[]byte) Next {
	c.first = bytes.Join(first, nil)
	return Lent
}

// Resume has the handler's Resume called for c, which is parked or about to be. Any
// goroutine may call it, once for each time it was parked.
func (c *Conn) Resume() { c.loop.post(c) }

// SetIdle tells whether c is between two requests. While it is, Read reports io.EOF
// instead of waiting, and Close after that gives c back to its loop.
func (c *Conn) SetIdle(idle bool) { c.idling = idle }

// lend makes c its borrower's.
func (c *Conn) lend() {
	c.state = lent
	if c.changed == nil {
		c.changed = make(chan struct{}, 1)
	}
}

// ring tells the borrower that something has changed. A token left over costs one
// read or write in vain.
func (c *Conn) ring() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(p, c.first)
		if c.first = c.first[n:]; len(c.first) == 0 {
			c.first = nil // it may be a loan for long
		}
		return n, nil
	}
	if c.idling {
		c.rested = true
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if err := passed(c.readBy); err != nil {
			return 0, c.failed("read", err)
		}
		n, errno := read(c.fd, p)
		switch {
		case errno == 0 && n == 0:
			return 0, io.EOF
		case errno == 0:
			return n, nil
		case errno == unix.EAGAIN:
			c.wait(c.readBy)
		case errno != unix.EINTR:
			return 0, c.failed("read", errno)
		}
	}
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (written int, err error) {
	for written < len(p) {
		if err := passed(c.writeBy); err != nil {
			return written, c.failed("write", err)
		}
		n, errno := write(c.fd, p[written:])
		switch {
		case errno == 0:
			written += n
		case errno == unix.EAGAIN:
			c.wait(c.writeBy)
		case errno != unix.EINTR:
			return written, c.failed("write", errno)
		}
	}
	return written, nil
}

func passed(deadline time.Time) error {
	if !deadline.IsZero() && !time.Now().Before(deadline) {
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (c *Conn) failed(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.addrs.local, Addr: c.addrs.remote, Err: err}
}

// wait sleeps until something has changed or the deadline.
func (c *Conn) wait(deadline time.Time) {
	if deadline.IsZero() {
		<-c.changed
		return
	}
	if c.timer == nil {
		c.timer = time.NewTimer(time.Until(deadline))
	} else {
		c.timer.Reset(time.Until(deadline))
	}
	select {
	case <-c.changed:
		c.timer.Stop()
	case <-c.timer.C:
	}
}

// Close implements net.Conn. A borrower that was told of the end between two
// requests gives c back with it.
func (c *Conn) Close() error {
	if c.fd < 0 {
		return net.ErrClosed
	}
	back := c.rested
	c.first, c.rested, c.idling, c.late = nil, false, false, false
	c.readBy, c.writeBy = time.Time{}, time.Time{}
	if !back {
		c.end()
	}
	if c.loop != nil {
		c.loop.post(c)
	}
	return nil
}

// end closes the descriptor.
func (c *Conn) end() {
	_ = unix.Close(c.fd) // a network socket's close has nothing to report
	c.fd = -1
	if c.loop != nil {
		c.loop.g.cfg.Closed(c)
	}
}

// flush writes what Send could not, as a borrower.
func (c *Conn) flush(last bool) {
	_ = c.SetWriteDeadline(time.Now().Add(c.loop.g.cfg.WriteTimeout))
	_, err := c.Write(c.unsent)
	c.unsent = nil
	if c.sent != nil {
		c.sent()
		c.sent = nil
	}
	c.rested = err == nil && !last
	_ = c.Close()
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.addrs.local }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.addrs.remote }

// SetReadDeadline implements net.Conn. A request that was too slow already gets no
// more time.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if c.late && (t.IsZero() || t.After(c.deadline)) {
		t = c.deadline
	}
	c.readBy = t
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.writeBy = t
	return nil
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.writeBy = t
	return c.SetReadDeadline(t)
}
