//go:build linux

package load

import (
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Idle are keep-alive connections that have had one request each and say nothing more,
// as clients between two events. A connection that has never said anything is another
// matter: a server hangs up on it after seconds.
type Idle struct{ conns []*net.TCPConn }

// OpenIdle opens n connections to addr, and returns when request has been answered with
// 202 on each.
func OpenIdle(addr string, n int, request []byte) (_ *Idle, err error) {
	i := new(Idle)
	defer func() {
		if err != nil {
			i.Close()
		}
	}()
	for range n {
		c, err := net.DialTimeout("tcp", addr, 10*time.Second)
		if err != nil {
			return nil, fmt.Errorf("idle connection %d of %d: %w", len(i.conns)+1, n, err)
		}
		i.conns = append(i.conns, c.(*net.TCPConn))
		if _, err := c.Write(request); err != nil {
			return nil, fmt.Errorf("idle connection %d of %d: %w", len(i.conns), n, err)
		}
	}
	// Read when all are written: a broker that fsyncs takes what has come meanwhile at once.
	buf := make([]byte, maxHeader)
	for k, c := range i.conns {
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		var a answer
		for got, whole := 0, false; !whole; {
			more, err := c.Read(buf[got:])
			if err != nil {
				return nil, fmt.Errorf("answer on idle connection %d of %d: %w", k+1, n, err)
			}
			got += more
			if a, whole, err = frame(buf[:got]); err != nil {
				return nil, fmt.Errorf("answer on idle connection %d of %d: %w", k+1, n, err)
			}
		}
		if a.status != 202 || a.close {
			return nil, fmt.Errorf("answer on idle connection %d of %d: status %d, close: %t", k+1, n, a.status, a.close)
		}
	}
	return i, nil
}

// Open is how many of the connections the server has not closed.
func (i *Idle) Open() (n int) {
	for _, c := range i.conns {
		raw, err := c.SyscallConn()
		if err != nil {
			continue
		}
		_ = raw.Control(func(fd uintptr) {
			_, _, err = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		})
		if errors.Is(err, unix.EAGAIN) { // nothing to read, nor an end
			n++
		}
	}
	return n
}

// Close closes them.
func (i *Idle) Close() {
	for _, c := range i.conns {
		_ = c.Close()
	}
}
