// Package loop serves TCP connections from one goroutine a core, for requests
// that arrive whole and are answered at once, and lends every other connection to
// a goroutine.
//
//	accept ─▶ idle ──bytes──▶ Handler ──▶ answered ─▶ idle
//	                             ├──▶ reading   more has to come
//	                             ├──▶ parked    the answer comes later: Resume
//	                             └──▶ lent      a goroutine reads it as a net.Conn, and
//	                                            gives it back between two requests
//
// Why not a goroutine a connection, as net/http and fasthttp have it. For a small
// request most of the work is the kernel's, and of the rest most is being put to
// sleep and woken: a goroutine reads once in vain before it sleeps, the scheduler
// finds it work, its stack is cold. Here a request costs one read, one write and a
// share of one epoll_wait. Measured beside a fasthttp handler that does nothing, the
// same handler in a loop takes two thirds of the processor time. And a connection at
// rest costs a few hundred bytes instead of a stack and two buffers.
//
// Why not only loops. What may block (a query, a body that is slow to come) and what
// is long (a body to inflate) would hold up every connection of the loop. A
// goroutine with blocking reads is the simple way to write that, and the libraries
// for it exist. So a loop does what is small and whole, and lends the rest.
//
// # Who owns a connection
//
// Exactly one goroutine at a time: its loop, or, while it is lent, the goroutine
// that borrowed it. The loop hands it to one that has borrowed before, or starts one;
// the goroutine gives it back by putting it on the loop's list. Whoever owns it reads,
// writes and closes. Only the loop asks epoll; it tells a borrower by a token that
// something has changed.
//
// # Edges
//
// A descriptor is registered once, edge-triggered, for both directions. An edge is
// lost on whoever is not about to read until EAGAIN or a short read, so the loop
// notes it (again) while a connection is parked, and reads when one comes back.
// A short read means that the socket was empty, unless the peer has closed as well,
// which the event said. After any other read there may be more, which waits until the
// other connections have had theirs.
//
// # Sleeping
//
// epoll descriptors can be polled. A loop with nothing to do waits in the runtime's
// own poller for its epoll descriptor to become readable, and blocks no thread.
// Others wake it by an eventfd in the same epoll set: they put their message on the
// list first and then look whether it sleeps, it says that it sleeps and then looks
// at the list.
package loop

import (
	"errors"
	"time"
)

// Next is what becomes of a connection after a call of its Handler.
type Next int

// What a Handler may answer.
const (
	Idle    Next = iota // the exchange is over; the next byte begins another
	Reading             // more of a request has to come, within ReadTimeout of its first byte
	Parked              // Resume will be called, or Expire after ParkTimeout
	Lent                // what Conn.Lend returns
	Closed              // the exchange was the last
)

// A Handler speaks the protocol. It belongs to one loop, whose goroutine makes all
// calls, one at a time; none may block.
type Handler interface {
	// Receive gets what c has sent and no earlier call got. p is valid until it
	// returns.
	Receive(c *Conn, p []byte) Next
	// Resume is called for a parked connection after Conn.Resume.
	Resume(c *Conn) Next
	// Expire is called when c was Reading or Parked for too long, or new and
	// silent, or ended while it was Reading. A parked connection may stay Parked:
	// then Resume is on its way.
	Expire(c *Conn) Next
}

// Config is what a Group needs to know. Every field is required.
type Config struct {
	Loops   int
	Handler func() Handler // one for each loop
	// Lent serves a connection that a Handler lent, in a goroutine that is the
	// connection's until then, and ends with its Close.
	Lent func(*Conn)
	// Closed is told of each connection that is closed for good, by the goroutine
	// that owned it.
	Closed func(*Conn)

	ReadTimeout  time.Duration // from a request's first byte to its last; also a silent new connection
	WriteTimeout time.Duration // an answer that the client does not read
	IdleTimeout  time.Duration // between two requests
	ParkTimeout  time.Duration // from Parked to Resume
}

// ErrUnsupported says that this platform has no loops; see Supported.
var ErrUnsupported = errors.New("loops need Linux's epoll")
