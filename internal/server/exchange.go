package server

import (
	"bufio"
	"bytes"
	"io"
	"sync/atomic"

	"edge/internal/loop"
	"edge/internal/producer"

	"github.com/valyala/fasthttp"
)

// maxWhole is the longest request, header and body, that a loop takes: what it
// reads at once. Decoding one is a fraction of a millisecond, for which the loop's
// other connections wait.
const maxWhole = 64 << 10

// What a loop keeps for later requests: exchanges of about 3 KiB each. A burst of
// waiting requests must not stay for ever, nor what a long header has grown.
const (
	maxFree     = 1024
	maxKeptHead = 2 << 10
)

// whole serves in a loop the posts that come whole: POST of one of our routes over
// HTTP/1.1, plain, with a Content-Length. Every other request is lent to fasthttp,
// as it came: also those with anything odd about them, whose answer is fasthttp's
// and badRequest's business.
type whole struct {
	s      *Server
	source bytes.Reader
	header *bufio.Reader // over source, as large as a header may be
	answer *bufio.Writer // over sender
	sender sender
	free   []*exchange

	// The answer that nearly every request gets differs by its Date only.
	accepted []byte
	second   int64 // Unix time of accepted
}

// sender writes to the connection that is being answered.
type sender struct{ conn *loop.Conn }

func (s *sender) Write(p []byte) (int, error) {
	s.conn.Send(p)
	return len(p), nil
}

func (s *Server) newWhole() loop.Handler {
	h := &whole{s: s}
	h.header = bufio.NewReaderSize(&h.source, maxHeaderBytes)
	h.answer = bufio.NewWriterSize(&h.sender, 1<<10)
	return h
}

// exchange is one request in a loop, from its first byte to its answer. It is the
// Data of its connection.
type exchange struct {
	ctx   fasthttp.RequestCtx
	conn  *loop.Conn
	route *fasthttp.RequestHandler

	size int    // of header and body
	head int    // of the header
	bare bool   // nothing in the header calls for one in the answer
	part *block // what has come so far, when not all came at once
	body block  // what the handler reads

	// From hand on, when the outcome is still to come.
	waiting bool
	label   route
	then    published
	events  int
	key     *bucket
	waiter  *waiter

	long *block // of an answer that is not one of a few words
}

// waiter is what the producer has of an exchange. It is apart from it, because the
// producer may settle long after ParkTimeout: with a dead broker that is every request,
// and each would leave 3 KiB to the collector.
type waiter struct {
	conn  *loop.Conn
	state atomic.Int32
	err   error // when settled
}

// States of a waiter.
const (
	pending   int32 = iota
	settled         // the producer was first
	abandoned       // ParkTimeout was
)

// exchangeOf returns the exchange that ctx is of, or nil when it is fasthttp's.
func exchangeOf(ctx *fasthttp.RequestCtx) *exchange {
	c, ok := ctx.Conn().(*loop.Conn)
	if !ok {
		return nil
	}
	x, _ := c.Data.(*exchange)
	return x
}

var headerEnd = []byte("\r\n\r\n")

// Receive implements loop.Handler.
func (h *whole) Receive(c *loop.Conn, p []byte) loop.Next {
	if x, ok := c.Data.(*exchange); ok {
		return h.more(x, p)
	}
	end := bytes.Index(p, headerEnd)
	if end < 0 {
		return c.Lend(p)
	}
	x := h.get(c)
	if !h.parse(x, p[:end+len(headerEnd)]) || len(p) > x.size {
		h.put(x)
		return c.Lend(p)
	}
	c.Data = x
	if len(p) == x.size {
		return h.serve(x, p)
	}
	if x.part = h.s.memory.get(len(p)); x.part == nil {
		h.put(x)
		return c.Lend(p)
	}
	x.part.b = append(x.part.b, p...)
	return loop.Reading
}

// more adds p to a request that has begun.
func (h *whole) more(x *exchange, p []byte) loop.Next {
	need := len(x.part.b) + len(p)
	if need <= x.size && need > cap(x.part.b) {
		if bigger := h.s.memory.grow(x.part, min(x.size, 4*need)); bigger != nil {
			x.part = bigger
		}
	}
	if need > x.size || need > cap(x.part.b) {
		next := x.conn.Lend(x.part.b, p)
		h.put(x)
		return next
	}
	if x.part.b = append(x.part.b, p...); need < x.size {
		return loop.Reading
	}
	return h.serve(x, x.part.b)
}

// parse reads the header p and reports whether the request is one for a loop.
func (h *whole) parse(x *exchange, p []byte) bool {
	if x.head = len(p); x.head > h.header.Size() {
		return false
	}
	x.ctx.Init2(x.conn, quiet{h.s.log}, false)
	h.source.Reset(p)
	h.header.Reset(&h.source)
	hd := &x.ctx.Request.Header
	if hd.Read(h.header) != nil || h.header.Buffered() > 0 || !hd.IsPost() {
		return false
	}
	switch string(hd.RequestURI()) {
	case "/events", "/events/":
		x.route = &h.s.events
	case "/events/bulk", "/events/bulk/":
		x.route = &h.s.bulk
	default:
		return false
	}
	x.bare = len(hd.PeekCanonical(keyOrigin)) == 0
	length := hd.ContentLength()
	x.size = x.head + length
	return length >= 0 && x.size <= maxWhole && hd.IsHTTP11() && !hd.ConnectionClose() &&
		!x.ctx.Request.MayContinue() && len(hd.ContentEncoding()) == 0 && plainHost(hd.Host())
}

// plainHost reports whether host is spelled as nearly all are, so that nothing in it
// has to be refused: a name or an IPv4 address, and perhaps a port.
func plainHost(host []byte) bool {
	name, port, _ := bytes.Cut(host, []byte(":"))
	for _, c := range name {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_') {
			return false
		}
	}
	for _, c := range port {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(name) > 0
}

// serve has the handler answer the request whose header and body are p.
func (h *whole) serve(x *exchange, p []byte) loop.Next {
	x.body.b = p[x.head:]
	(*x.route)(&x.ctx)
	x.body.b = nil
	h.s.memory.put(x.part)
	x.part = nil
	if x.waiting {
		return loop.Parked
	}
	return h.finish(x)
}

// finish sends the answer.
func (h *whole) finish(x *exchange) loop.Next {
	res := &x.ctx.Response
	last := res.ConnectionClose()
	switch {
	case !x.bare:
		h.write(x, &h.sender)
	case res.StatusCode() != fasthttp.StatusAccepted || x.route != &h.s.events || last:
		commonHeaders(&x.ctx)
		h.write(x, &h.sender)
	default:
		if now := x.ctx.Time().Unix(); now != h.second {
			var text bytes.Buffer
			commonHeaders(&x.ctx)
			h.write(x, &text)
			h.accepted, h.second = text.Bytes(), now
		}
		x.conn.Send(h.accepted)
	}
	if x.long != nil {
		// The connection has a copy of what is not out yet.
		paid := h.s.memory.recycle(x.long)
		x.long = nil
		x.conn.Sent(func() { h.s.memory.used.Add(-paid) })
	}
	h.put(x)
	if last {
		return loop.Closed
	}
	return loop.Idle
}

// write writes the whole answer to w, which does not fail.
func (h *whole) write(x *exchange, w io.Writer) {
	h.sender.conn = x.conn
	h.answer.Reset(w)
	_ = x.ctx.Response.Write(h.answer) // neither does this: the body is bytes
	_ = h.answer.Flush()
}

// Resume implements loop.Handler.
func (h *whole) Resume(c *loop.Conn) loop.Next {
	x := c.Data.(*exchange)
	h.s.resume(x, x.waiter.err)
	return h.finish(x)
}

// Expire implements loop.Handler: nothing came, the rest did not come, or the
// outcome. What is lent half is for fasthttp's path to answer.
func (h *whole) Expire(c *loop.Conn) loop.Next {
	x, ok := c.Data.(*exchange)
	switch {
	case !ok:
		return c.Lend()
	case !x.waiting:
		next := c.Lend(x.part.b)
		h.put(x)
		return next
	case !x.waiter.state.CompareAndSwap(pending, abandoned):
		return loop.Parked
	}
	x.waiter = nil // the producer's from here on
	h.s.resume(x, producer.ErrTimeout)
	return h.finish(x)
}

// get returns an exchange for c.
func (h *whole) get(c *loop.Conn) *exchange {
	var x *exchange
	if n := len(h.free); n > 0 {
		x, h.free = h.free[n-1], h.free[:n-1]
	} else {
		x = &exchange{body: block{class: borrowed}}
	}
	x.conn = c
	return x
}

// put ends x.
func (h *whole) put(x *exchange) {
	x.conn.Data = nil
	h.s.memory.put(x.part)
	x.part = nil
	if len(h.free) == maxFree || x.head > maxKeptHead {
		return
	}
	x.conn, x.key = nil, nil
	x.ctx.Request.Reset()
	x.ctx.Response.Reset()
	h.free = append(h.free, x)
}

// await has the producer tell x's loop of the outcome.
func (x *exchange) await() *waiter {
	if x.waiter == nil {
		x.waiter = new(waiter)
	}
	x.waiter.conn, x.waiter.err = x.conn, nil
	x.waiter.state.Store(pending)
	return x.waiter
}

// Settled implements producer.Waiter. It runs in the producer.
func (w *waiter) Settled(err error) bool {
	w.err = err
	if !w.state.CompareAndSwap(pending, settled) {
		return false
	}
	w.conn.Resume()
	return true
}
