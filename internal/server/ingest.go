package server

import (
	"bytes"
	"errors"
	"strconv"
	"time"

	"edge/internal/codec"
	"edge/internal/producer"

	"github.com/valyala/fasthttp"
)

// eventSlack is how much longer than its event a body on /events may be:
// white space around it, and what an encoding adds to a small body.
const eventSlack = 1 << 10

// format is how a body spells its events.
type format uint8

const (
	formatJSON format = iota
	formatLines
)

// began returns when the request's header was in. While a client waits for 100
// Continue, fasthttp has not looked at the clock yet: ctx.Time() is still the
// last request's on this connection, or zero.
func began(ctx *fasthttp.RequestCtx) time.Time {
	if ctx.RequestBodyStream() == nil && ctx.Request.MayContinue() {
		return time.Now()
	}
	return ctx.Time()
}

// since returns the time from the request's header to now.
func since(ctx *fasthttp.RequestCtx) time.Duration { return time.Since(began(ctx)) }

// admission is what the header says about a request that may send its body.
type admission struct {
	format   format
	encoding encoding
	bucket   *bucket // of the key that sent it, nil without a limit
}

// enter asks for a key of scope and returns its bucket, nil when nothing limits
// it. A key over its rate is refused.
func (s *Server) enter(ctx *fasthttp.RequestCtx, scope Scope) (*bucket, error) {
	k, err := s.authorize(ctx, scope)
	if err != nil || k == nil || k.bucket == nil {
		return nil, err
	}
	if wait := k.bucket.wait(began(ctx)); wait > 0 {
		return nil, rateError(wait)
	}
	return k.bucket, nil
}

// admit decides all that the header can: whether this request may send its
// body, and what the body will be. limit is for the body on the wire.
func (s *Server) admit(ctx *fasthttp.RequestCtx, limit int) (a admission, err error) {
	switch {
	case s.cfg.Publish == nil:
		return a, errNoIngest
	case s.stopping.Load():
		return a, errStopping
	}
	if a.bucket, err = s.enter(ctx, Write); err != nil {
		return a, err
	}
	if a.format, err = contentType(ctx.Request.Header.ContentType()); err != nil {
		return a, err
	}
	if a.encoding, err = contentEncoding(&ctx.Request.Header); err != nil {
		return a, err
	}
	length := ctx.Request.Header.ContentLength()
	if length > limit {
		return a, &sizeError{limit: limit}
	}
	if length > prefetch && s.memory.used.Load()+int64(length) > s.memory.limit {
		return a, errMemory
	}
	return a, nil
}

// take returns the request's body in plain form. Without one the request is
// answered already: refused, or told to go on and send it.
func (s *Server) take(ctx *fasthttp.RequestCtx, lines bool, limit, inflated int) (*block, admission) {
	a, err := s.admit(ctx, limit)
	if err == nil && a.format == formatLines && !lines {
		err = errLinesOnSingle
	}
	if err == nil && waiting(ctx) {
		ctx.SetStatusCode(fasthttp.StatusContinue)
		return nil, a
	}
	var body *block
	if err == nil {
		body, err = s.receive(ctx, a.encoding, limit, inflated)
	}
	if size, ok := err.(*sizeError); ok && !lines {
		size.one, size.limit = true, s.cfg.MaxEventBytes
	}
	if err != nil {
		s.refuse(ctx, err, 1)
		return nil, a
	}
	return body, a
}

// waiting reports whether the client waits for 100 Continue before it sends
// the body.
func waiting(ctx *fasthttp.RequestCtx) bool {
	return ctx.RequestBodyStream() == nil && ctx.Request.MayContinue() && ctx.Request.Header.ContentLength() != 0
}

// receive reads the body and undoes its encoding.
func (s *Server) receive(ctx *fasthttp.RequestCtx, enc encoding, limit, inflated int) (*block, error) {
	blk, err := s.readBody(ctx, limit)
	if err != nil || enc == identity {
		return blk, err
	}
	defer s.memory.put(blk)
	return s.inflate.inflate(s.memory, enc, blk.b, inflated)
}

// decode runs one of a batch's Decode methods on body and gives body back, also
// when the decoder panics: a budget that leaks is a server that stops.
func (s *Server) decode(ctx *fasthttp.RequestCtx, body *block, how func([]byte, time.Time) *codec.Error) *codec.Error {
	defer s.memory.put(body)
	return how(body.b, began(ctx))
}

func (s *Server) postEvent(ctx *fasthttp.RequestCtx) error {
	limit := s.cfg.MaxEventBytes + eventSlack
	body, a := s.take(ctx, false, limit, limit)
	if body == nil {
		return nil
	}
	batch := s.cfg.Events.Get()
	if broken := s.decode(ctx, body, batch.DecodeOne); broken != nil {
		s.refuse(ctx, broken, 1)
		batch.Release()
		return nil
	}
	s.hand(ctx, batch, a.bucket, (*Server).publishedEvent)
	return nil
}

func (s *Server) publishedEvent(ctx *fasthttp.RequestCtx, _ int, err error) {
	if err != nil {
		s.refuse(ctx, err, 1)
		return
	}
	s.stats.Accepted.Inc()
	ctx.SetStatusCode(fasthttp.StatusAccepted)
	ctx.Response.SetBodyRaw(bodyAccepted)
}

func (s *Server) postBulk(ctx *fasthttp.RequestCtx) error {
	body, a := s.take(ctx, true, s.cfg.MaxBodyBytes, s.cfg.MaxInflatedBytes)
	if body == nil {
		return nil
	}
	batch := s.cfg.Events.Get()
	how := batch.DecodeArray
	if a.format == formatLines {
		how = batch.DecodeLines
	}
	if broken := s.decode(ctx, body, how); broken != nil {
		s.refuse(ctx, broken, 1)
		batch.Release()
		return nil
	}
	rejected := batch.Rejected()
	if batch.Len() == 0 && len(rejected) == 0 {
		s.refuse(ctx, errEmptyArray, 0)
		batch.Release()
		return nil
	}
	// The answer is made, and paid for, before anything is published: it may be a hundred
	// times as long as what it is about, and waits for the broker and for the client to
	// read it.
	if len(rejected) == 0 {
		var buf [96]byte
		ctx.Response.SetBody(appendBulk(buf[:0], batch.Len(), nil))
	} else {
		answer := s.memory.fill(func(dst []byte) []byte { return appendBulk(dst, batch.Len(), rejected) })
		if answer == nil {
			s.refuse(ctx, errMemory, batch.Len()+len(rejected))
			batch.Release()
			return nil
		}
		s.answerBlock(ctx, answer)
		for i := range rejected {
			s.stats.rejected[rejected[i].Err.Reason].Inc()
		}
		batch.ForgetRejected()
	}
	s.hand(ctx, batch, a.bucket, (*Server).publishedBulk)
	return nil
}

// publishedBulk lets the answer stand that was made, or refuses it all.
func (s *Server) publishedBulk(ctx *fasthttp.RequestCtx, accepted int, err error) {
	switch {
	case err != nil:
		s.refuse(ctx, err, accepted)
	case accepted == 0:
		ctx.SetStatusCode(fasthttp.StatusBadRequest)
	default:
		s.stats.Accepted.Add(uint64(accepted))
		ctx.SetStatusCode(fasthttp.StatusAccepted)
	}
}

// appendBulk appends the answer of POST /events/bulk.
func appendBulk(dst []byte, accepted int, rejected []codec.Rejection) []byte {
	status := "accepted"
	if accepted == 0 {
		status = "rejected"
	}
	dst = append(dst, `{"status":"`...)
	dst = append(dst, status...)
	dst = append(dst, `","accepted":`...)
	dst = strconv.AppendInt(dst, int64(accepted), 10)
	dst = append(dst, `,"rejected":`...)
	dst = strconv.AppendInt(dst, int64(len(rejected)), 10)
	dst = append(dst, `,"errors":[`...)
	for i := range rejected {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"index":`...)
		dst = strconv.AppendInt(dst, int64(rejected[i].Index), 10)
		dst = append(dst, `,"error":"`...)
		dst = rejected[i].Err.AppendText(dst) // stands in a JSON string as it is
		dst = append(dst, `"}`...)
	}
	dst = append(dst, ']')
	if accepted == 0 {
		dst = append(dst, `,"error":"no event was accepted; the first: `...)
		dst = rejected[0].Err.AppendText(dst)
		dst = append(dst, '"')
	}
	return append(dst, '}')
}

// published answers a request with so many events in its batch, of which the outcome is err.
type published func(s *Server, ctx *fasthttp.RequestCtx, events int, err error)

// hand publishes batch, which is hand's from here on, and has then answer the
// request: before it returns, or, in a loop that cannot wait for the outcome, later. The
// answer needs no more than the number of events: the batch's memory is the producer's, and
// free when that has copied the records.
func (s *Server) hand(ctx *fasthttp.RequestCtx, batch *codec.Batch, key *bucket, then published) {
	events := batch.Len()
	if key != nil && events > 0 {
		if wait := key.take(events, time.Now()); wait > 0 {
			batch.Release()
			then(s, ctx, events, rateError(wait))
			return
		}
	}
	x := exchangeOf(ctx)
	switch {
	case events == 0:
		batch.Release()
		then(s, ctx, 0, nil)
	case x == nil:
		then(s, ctx, events, s.outcome(events, key, s.cfg.Publish(batch)))
	default:
		x.events, x.key, x.then = events, key, then
		waiting, err := s.cfg.Start(batch, x.await())
		batch.Release()
		if x.waiting = waiting; !waiting {
			then(s, ctx, events, s.outcome(events, key, err))
		}
	}
}

// resume answers a request that waited in a loop.
func (s *Server) resume(x *exchange, err error) {
	x.waiting = false
	defer s.done(&x.ctx, x.label)
	x.then(s, &x.ctx, x.events, s.outcome(x.events, x.key, err))
}

// outcome turns what the producer says of events into what the client is told. A key
// is charged unless nothing was kept. Errors other than the producer's own are the
// broker's: logged here, since the client gets no details. So is a timeout: a broker that
// is slow and not away says nothing else in the log.
func (s *Server) outcome(events int, key *bucket, err error) error {
	if err == nil {
		return nil
	}
	full, closed := errors.Is(err, producer.ErrFull), errors.Is(err, producer.ErrClosed)
	if key != nil && (full || closed) {
		key.giveBack(events)
	}
	switch {
	case full:
		return producer.ErrFull
	case closed:
		return producer.ErrClosed
	case errors.Is(err, producer.ErrTimeout):
		s.log.Warn("the broker did not confirm in time; the client gets 503")
		return producer.ErrTimeout
	}
	s.log.Error("broker refused events; the client gets 503", "err", err)
	return brokerError{err}
}

// contentType returns the format a Content-Type stands for. None means JSON;
// text/plain is what a browser can send without asking first. Parameters say
// nothing we do not know: JSON is UTF-8.
func contentType(v []byte) (format, error) {
	if string(v) == "application/json" {
		return formatJSON, nil
	}
	name, _, _ := bytes.Cut(v, []byte(";"))
	name = bytes.TrimSpace(name)
	switch {
	case len(name) == 0, equalFold(name, "application/json"), equalFold(name, "text/plain"):
		return formatJSON, nil
	case equalFold(name, "application/x-ndjson"), equalFold(name, "application/ndjson"), equalFold(name, "application/jsonl"):
		return formatLines, nil
	}
	return 0, &unsupportedError{what: "content type", value: string(name), want: "application/json or application/x-ndjson"}
}

// contentEncoding returns the one coding of a body. Stacked codings are
// refused: they serve nobody but bombs.
func contentEncoding(h *fasthttp.RequestHeader) (encoding, error) {
	v := bytes.TrimSpace(h.ContentEncoding())
	switch {
	case len(v) == 0:
		return identity, nil
	case len(h.PeekAll(fasthttp.HeaderContentEncoding)) > 1, bytes.IndexByte(v, ',') >= 0:
		return 0, errEncodingList
	case equalFold(v, "identity"):
		return identity, nil
	case equalFold(v, "gzip"), equalFold(v, "x-gzip"):
		return gzipped, nil
	case equalFold(v, "deflate"):
		return deflated, nil
	case equalFold(v, "br"):
		return brotlied, nil
	case equalFold(v, "zstd"):
		return zstded, nil
	}
	return 0, &unsupportedError{what: "content encoding", value: string(v), want: "gzip, zstd, br or deflate"}
}
