//go:build !linux

package loop

import (
	"context"
	"net"
)

// Supported tells whether New works here.
const Supported = false

// A Group is what New returns where loops exist.
type Group struct{}

// Conn is a connection of a Group.
type Conn struct {
	net.Conn
	Data any
}

// New returns ErrUnsupported.
func New(Config) (*Group, error) { return nil, ErrUnsupported }

// Listener is not to be called.
func (*Group) Listener(*net.TCPListener) (net.Listener, error) { return nil, ErrUnsupported }

// Add is not to be called.
func (*Group) Add(*Conn) {}

// Shutdown is not to be called.
func (*Group) Shutdown(context.Context) error { return nil }

// Lend is not to be called.
func (*Conn) Lend(...[]byte) Next { return Lent }

// Send is not to be called.
func (*Conn) Send([]byte) {}

// Sent is not to be called.
func (*Conn) Sent(func()) {}

// Resume is not to be called.
func (*Conn) Resume() {}

// SetIdle is not to be called.
func (*Conn) SetIdle(bool) {}
