package embedded

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"edge/internal/stat"

	"golang.org/x/sys/unix"
)

// insideAddr is what the broker advertises when it has no port: kgo wants
// host:port in its metadata and hands it to the dialer, which ignores it.
type insideAddr struct{}

func (insideAddr) Network() string { return "socketpair" }
func (insideAddr) String() string  { return "embedded:9092" }

// maxPeers bounds the connections of the TCP port. kcat and rpk hold a few;
// each may make the broker allocate one request.
const maxPeers = 128

// door is the one listener kfake knows. Connections come in from inside the
// process over socket pairs, which have no name: nothing to guess, no file
// mode to get wrong, nothing left behind by a kill. A pair is a kernel buffer,
// so neither side waits for the other as it would on net.Pipe. Connections
// from outside come in over an optional TCP port.
//
// kfake advertises a single address per broker. With a port open it is the
// port's, right for outside clients and ignored by inside ones.
type door struct {
	tcp      net.Listener // nil: no port
	conns    chan net.Conn
	closed   chan struct{}
	once     sync.Once
	opened   sync.Once
	accepted sync.WaitGroup
	peers    atomic.Int64

	maxFrame      int
	log           *slog.Logger
	refusedKey    stat.Counter
	refusedLength stat.Counter
	refusedPeers  stat.Counter
}

// openDoor listens on listen, which must be a loopback address, or on nothing
// when it is empty.
func openDoor(listen string, maxFrame int, log *slog.Logger) (*door, error) {
	d := &door{conns: make(chan net.Conn), closed: make(chan struct{}), maxFrame: maxFrame, log: log}
	if listen == "" {
		return d, nil
	}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, fmt.Errorf("broker address %q: %w", listen, err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("broker address %q: the embedded broker has no authentication and listens only on a loopback IP such as 127.0.0.1", listen)
	}
	if d.tcp, err = net.Listen("tcp", listen); err != nil {
		return nil, fmt.Errorf("open the broker's port: %w", err)
	}
	return d, nil
}

// open begins to accept on the port; without one it does nothing.
func (d *door) open() {
	if d.tcp != nil {
		d.opened.Do(func() { d.accepted.Go(d.acceptTCP) })
	}
}

// Addr implements net.Listener: the address the broker advertises.
func (d *door) Addr() net.Addr {
	if d.tcp != nil {
		return d.tcp.Addr()
	}
	return insideAddr{}
}

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	select {
	case c := <-d.conns:
		return c, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (d *door) Close() error {
	d.once.Do(func() {
		close(d.closed)
		if d.tcp != nil {
			d.tcp.Close()
		}
	})
	d.accepted.Wait()
	return nil
}

// dial makes a socket pair and passes one end through the gate to the broker.
func (d *door) dial(ctx context.Context) (net.Conn, error) {
	fds, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("dial the embedded broker: %w", err)
	}
	ours, err1 := fdConn(fds[0])
	theirs, err2 := fdConn(fds[1])
	if err1 != nil || err2 != nil {
		if ours != nil {
			ours.Close()
		}
		if theirs != nil {
			theirs.Close()
		}
		return nil, fmt.Errorf("dial the embedded broker: %w", cmp.Or(err1, err2))
	}
	select {
	case d.conns <- d.gated(theirs, nil):
		return ours, nil
	case <-d.closed:
		err = net.ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	ours.Close()
	theirs.Close()
	return nil, fmt.Errorf("dial the embedded broker: %w", err)
}

// socketPair keeps both ends from a child that is started at this moment. Linux
// does that in the call itself; macOS cannot, so it takes the lock that a fork
// waits for.
func socketPair() ([2]int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	return fds, err
}

// fdConn takes ownership of fd.
func fdConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "embedded broker")
	defer f.Close() // FileConn duplicates
	return net.FileConn(f)
}

func (d *door) acceptTCP() {
	for {
		c, err := d.tcp.Accept()
		if err != nil {
			select {
			case <-d.closed:
				return
			case <-time.After(50 * time.Millisecond): // out of descriptors: come back
				d.log.Warn("accept on the broker's port", "err", err)
				continue
			}
		}
		if d.peers.Add(1) > maxPeers {
			d.peers.Add(-1)
			d.refusedPeers.Inc()
			c.Close()
			continue
		}
		leave := sync.OnceFunc(func() { d.peers.Add(-1) })
		select {
		case d.conns <- d.gated(c, leave):
		case <-d.closed:
			c.Close()
			return
		}
	}
}

func (d *door) gated(c net.Conn, onClose func()) net.Conn {
	return &gate{Conn: c, r: bufio.NewReaderSize(c, gateBuffer), maxFrame: d.maxFrame, refuse: d.refuse, onClose: onClose}
}

func (d *door) refuse(peer net.Addr, reason string, key int16, length uint32) {
	if reason == "key" {
		d.refusedKey.Inc()
	} else {
		d.refusedLength.Inc()
	}
	d.log.Warn("closed a connection to the embedded broker", "remote", peer.String(), "reason", reason, "key", key, "length", length)
}
