package clickhouse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// windowSize is how many bytes of a connection are looked at together. A unix
// socket hands over about this much per read; halving it doubles the system
// calls of a large insert, doubling it only costs memory per connection.
const windowSize = 256 << 10

// A protocolError says that the peer broke the protocol. The place in the
// stream is lost with it, so the connection is closed.
type protocolError struct{ what string }

func (e *protocolError) Error() string { return "malformed packet: " + e.what }

func malformed(format string, args ...any) error {
	return &protocolError{what: fmt.Sprintf(format, args...)}
}

// A cursor walks bytes through a fixed window and can pass what it walks on.
//
// The Native format carries no lengths, so the end of a block is found by
// walking it. The walked bytes are wanted almost verbatim (a few framing bytes
// aside), which is why the cursor does not return them: between keepOn and
// keepOff it hands them to keep in as few and as large spans as the window
// allows, and nothing is copied on the way. A length read from the wire never
// sizes an allocation; only string does allocate, and it grows with the bytes
// that really arrive.
//
// With src nil the window is the whole input, and spans point into it.
// Otherwise a span is valid only during the call of keep.
type cursor struct {
	src     io.Reader
	buf     []byte
	r, w    int
	mark    int // buf[mark:r] is walked and not yet handed to keep
	keeping bool
	keep    func(span []byte) error
}

func newCursor(src io.Reader, window int) *cursor {
	return &cursor{src: src, buf: make([]byte, window)}
}

// over is a cursor that walks p alone, and drops it as long as nobody sets keep.
func over(p []byte) *cursor { return &cursor{buf: p, w: len(p), keep: discard} }

// widen makes the window windowSize, between packets.
func (c *cursor) widen() {
	buf := make([]byte, windowSize)
	c.w = copy(buf, c.buf[c.r:c.w])
	c.r, c.mark, c.buf = 0, 0, buf
}

func (c *cursor) keepOn() { c.keeping, c.mark = true, c.r }

func (c *cursor) keepOff() error {
	err := c.flushKept()
	c.keeping = false
	return err
}

func (c *cursor) flushKept() error {
	if !c.keeping || c.mark == c.r {
		return nil
	}
	span := c.buf[c.mark:c.r]
	c.mark = c.r
	return c.keep(span)
}

// fill brings at least one more byte into the window.
func (c *cursor) fill() error {
	if c.src == nil {
		return io.EOF
	}
	if err := c.flushKept(); err != nil {
		return err
	}
	if c.r > 0 {
		copy(c.buf, c.buf[c.r:c.w])
		c.w -= c.r
		c.r, c.mark = 0, 0
	}
	if c.w == len(c.buf) {
		return malformed("a token does not fit into %d bytes", len(c.buf))
	}
	for range 100 {
		n, err := c.src.Read(c.buf[c.w:])
		if n < 0 || n > len(c.buf)-c.w {
			return malformed("the reader returned %d bytes", n)
		}
		c.w += n
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// peek waits for the next byte without taking it. Between packets io.EOF is a
// clean end, so it is not dressed up here.
func (c *cursor) peek() (byte, error) {
	if c.r == c.w {
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	return c.buf[c.r], nil
}

// need makes n bytes contiguous in the window; n is ours and small.
func (c *cursor) need(n int) error {
	for c.w-c.r < n {
		if err := c.fill(); err != nil {
			return cut(err)
		}
	}
	return nil
}

// cut turns an end of input inside a token into the error it is.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (c *cursor) byte() (byte, error) {
	if err := c.need(1); err != nil {
		return 0, err
	}
	b := c.buf[c.r]
	c.r++
	return b, nil
}

func (c *cursor) uint64() (uint64, error) {
	if err := c.need(8); err != nil {
		return 0, err
	}
	v := binary.LittleEndian.Uint64(c.buf[c.r:])
	c.r += 8
	return v, nil
}

func (c *cursor) uvarint() (uint64, error) {
	var v uint64
	for shift := uint(0); shift < 64; shift += 7 {
		b, err := c.byte()
		if err != nil {
			return 0, err
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			if shift == 63 && b > 1 {
				break
			}
			return v, nil
		}
	}
	return 0, malformed("a variable-length number is longer than 64 bits")
}

// skip walks over n bytes.
func (c *cursor) skip(n uint64) error {
	for {
		have := uint64(c.w - c.r)
		if n <= have {
			c.r += int(n)
			return nil
		}
		c.r = c.w
		n -= have
		if err := c.fill(); err != nil {
			return cut(err)
		}
	}
}

// string reads a length-prefixed string of at most limit bytes.
func (c *cursor) string(limit uint64) (string, error) {
	n, err := c.uvarint()
	if err != nil {
		return "", err
	}
	if n > limit {
		return "", malformed("a string of %d bytes is longer than the %d allowed", n, limit)
	}
	if n <= uint64(c.w-c.r) {
		s := string(c.buf[c.r : c.r+int(n)])
		c.r += int(n)
		return s, nil
	}
	var out []byte
	for n > 0 {
		if err := c.need(1); err != nil {
			return "", err
		}
		take := min(int(n), c.w-c.r)
		out = append(out, c.buf[c.r:c.r+take]...)
		c.r += take
		n -= uint64(take)
	}
	return string(out), nil
}
