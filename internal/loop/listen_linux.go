package loop

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// listener accepts connections that the runtime's poller never hears of.
type listener struct {
	*net.TCPListener
	file *os.File // the same socket: package net does not let a listener be read
	raw  syscall.RawConn
}

// Listener returns ln accepting connections for g, as *Conn: to be given to Add, or
// closed. It takes ownership of ln.
func (g *Group) Listener(ln *net.TCPListener) (net.Listener, error) {
	file, err := ln.File()
	if err != nil {
		return nil, fmt.Errorf("listener: %w", err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("listener: %w", err)
	}
	// What package net sets on every connection, each connection inherits.
	var failed error
	set := func(fd uintptr, level, option, value int) {
		if err := unix.SetsockoptInt(int(fd), level, option, value); err != nil && failed == nil {
			failed = fmt.Errorf("listener: option %d: %w", option, err)
		}
	}
	err = raw.Control(func(fd uintptr) {
		set(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		set(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		set(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15)
		set(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15)
		set(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9)
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return &listener{ln, file, raw}, nil
}

// Close implements net.Listener.
func (l *listener) Close() error { return errors.Join(l.file.Close(), l.TCPListener.Close()) }

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	var (
		fd   int
		peer unix.Sockaddr
		err  error
	)
	closed := l.raw.Read(func(lfd uintptr) bool {
		for {
			fd, peer, err = unix.Accept4(int(lfd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	if closed != nil {
		return nil, closed
	}
	if err != nil {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: err}
	}
	return &Conn{fd: fd, addrs: &addrs{l.Addr(), tcpAddr(peer)}}, nil
}

func tcpAddr(sa unix.Sockaddr) *net.TCPAddr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: net.IP(sa.Addr[:]), Port: sa.Port}
	case *unix.SockaddrInet6:
		return &net.TCPAddr{IP: net.IP(sa.Addr[:]), Port: sa.Port, Zone: zone(sa.ZoneId)}
	}
	return &net.TCPAddr{}
}

// zone names the interface of a link-local address.
func zone(id uint32) string {
	if id == 0 {
		return ""
	}
	if i, err := net.InterfaceByIndex(int(id)); err == nil {
		return i.Name
	}
	return fmt.Sprint(id)
}
