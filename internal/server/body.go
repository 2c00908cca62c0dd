package server

import (
	"errors"
	"io"
	"net"

	"github.com/valyala/fasthttp"
)

// A connection closed with unread bytes in its receive buffer is reset, and many
// clients then report the reset instead of our sentence. So what is an ordinary
// mistake is read and dropped before the answer: a refused body of up to
// lingerFactor times MaxBodyBytes (a batch a few times too large), or of
// lingerBytes where that limit is small. Longer uploads are answered at once and
// cut off.
const (
	lingerFactor = 4
	lingerBytes  = 4 << 20
)

// fasthttpDiscard is how much fasthttp itself reads and drops after an answer
// to keep the connection; with more left to come it closes.
const fasthttpDiscard = 256 << 10

// firstRead is the largest block taken on the word of a Content-Length alone.
const firstRead = 32 << 10

// readBody returns the request's body as it came over the wire, at most limit
// bytes of it. On error nothing is held.
func (s *Server) readBody(ctx *fasthttp.RequestCtx, limit int) (*block, error) {
	length := ctx.Request.Header.ContentLength() // -1 when chunked
	if x := exchangeOf(ctx); x != nil && length > 0 {
		return &x.body, nil // admit has looked at its size
	}
	stream := ctx.RequestBodyStream()
	if stream == nil || length == 0 {
		return nil, errEmptyBody
	}
	blk := s.memory.get(min(max(length, 1), firstRead))
	if blk == nil {
		return nil, errMemory
	}
	for length < 0 || len(blk.b) < length {
		if len(blk.b) == cap(blk.b) {
			want := 2 * cap(blk.b)
			if length > 0 {
				want = min(length, 4*cap(blk.b))
			}
			bigger := s.memory.grow(blk, min(want, limit+1))
			if bigger == nil {
				s.memory.put(blk)
				return nil, errMemory
			}
			blk = bigger
		}
		n, err := stream.Read(blk.b[len(blk.b):cap(blk.b)])
		blk.b = blk.b[:len(blk.b)+n]
		if len(blk.b) > limit {
			s.memory.put(blk)
			return nil, &sizeError{limit: limit}
		}
		if err != nil && (err != io.EOF || len(blk.b) < length) {
			s.memory.put(blk)
			return nil, readError(err)
		}
		if err == io.EOF {
			break
		}
	}
	if len(blk.b) == 0 {
		s.memory.put(blk)
		return nil, errEmptyBody
	}
	return blk, nil
}

// readError tells a client that was too slow from one that sent nonsense or
// went away. A stream whose length is declared ends early with io.EOF.
func readError(err error) error {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return errSlow
	}
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return errShortBody
	}
	return errChunks
}

// skipBody reads and drops what is left of a body refused with err, up to what
// fasthttp drops by itself after the answer. It ends with the read timeout at
// the latest. A chunked body may never end, so for it the answer goes out first,
// unless the client has shown that it sends by sending too much.
func (s *Server) skipBody(ctx *fasthttp.RequestCtx, err error) {
	stream := ctx.RequestBodyStream()
	if stream == nil {
		return
	}
	most := max(lingerBytes, lingerFactor*s.cfg.MaxBodyBytes)
	length := ctx.Request.Header.ContentLength()
	left := length - fasthttpDiscard
	if size, ok := err.(*sizeError); ok && !size.inflated && length < 0 {
		left = most
	}
	if left <= 0 || length > most {
		return
	}
	// What was read before the refusal only makes this drop a little more; an
	// error shows again when the connection is used next.
	_, _ = io.CopyN(io.Discard, stream, int64(left))
}
