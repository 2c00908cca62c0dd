package server

import (
	"errors"
	"net"
	"os"
	"time"
)

// lazyConn sets the timers of a busy connection seldom. fasthttp moves three
// deadlines a request, each an update of the runtime's timer heap, and nearly
// always to later than the one before. So a timer that would fire too early stays as
// it is; when it does fire, once every few seconds, it is set to the deadline that
// holds by then, and what it interrupted goes on. Deadlines are as exact as without.
//
// Like fasthttp's use of a connection, it is for one goroutine, save Close. It must
// not be looked through: a writev on the connection inside would meet the timer.
type lazyConn struct {
	net.Conn
	read, write deadline
}

// deadline is what was asked for and what the timer is set to.
type deadline struct{ want, timer time.Time }

// move notes t as the deadline and reports whether the timer must be set to it.
func (d *deadline) move(t time.Time) bool {
	d.want = t
	if !t.IsZero() && !d.timer.IsZero() && !t.Before(d.timer) {
		return false
	}
	d.timer = t
	return true
}

// early reports whether err is of a timer that fired before the deadline, which
// is then set anew.
func (d *deadline) early(err error, set func(time.Time) error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) || d.want.Equal(d.timer) || !time.Now().Before(d.want) {
		return false
	}
	d.timer = d.want
	return set(d.want) == nil
}

func (c *lazyConn) SetReadDeadline(t time.Time) error {
	if c.read.move(t) {
		return c.Conn.SetReadDeadline(t)
	}
	return nil
}

func (c *lazyConn) SetWriteDeadline(t time.Time) error {
	if c.write.move(t) {
		return c.Conn.SetWriteDeadline(t)
	}
	return nil
}

func (c *lazyConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *lazyConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err == nil || n > 0 || !c.read.early(err, c.Conn.SetReadDeadline) {
			return n, err
		}
	}
}

func (c *lazyConn) Write(b []byte) (written int, err error) {
	for {
		n, err := c.Conn.Write(b[written:])
		written += n
		if err == nil || !c.write.early(err, c.Conn.SetWriteDeadline) {
			return written, err
		}
	}
}
