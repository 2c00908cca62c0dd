package server

import (
	"context"
	"errors"
	"net"
	"strconv"
	"time"

	"edge/internal/codec"
	"edge/internal/producer"
	"edge/internal/query"

	"github.com/valyala/fasthttp"
)

// What can be wrong with a request. The text is the client's.
var (
	errNoRoute       = errors.New("no such route")
	errMethod        = errors.New("method not allowed on this route; see the Allow header")
	errVersion       = errors.New("HTTP version not supported; use HTTP/1.1")
	errNoIngest      = errors.New("this process takes no events: its ROLES do not include ingest")
	errNoQuery       = errors.New("this process answers no queries: its ROLES do not include query")
	errNoKey         = errors.New("an API key is required: send it as Authorization: Bearer <key>, as X-API-Key, or as the Basic user name")
	errWrongKey      = errors.New("the API key is unknown, or not valid for this route")
	errStopping      = errors.New("the server is stopping; send the request again")
	errMemory        = errors.New("too many bytes of requests and answers in flight; send the request again later")
	errSlow          = errors.New("the request did not arrive within the read timeout")
	errEmptyBody     = errors.New("the body is empty")
	errEmptyArray    = errors.New("the body holds no events; send at least one")
	errShortBody     = errors.New("the body ended before its declared length")
	errChunks        = errors.New("the body's chunked encoding is malformed")
	errEncoding      = errors.New("the body is not valid in its Content-Encoding")
	errWindow        = errors.New("the body's zstd window is over the limit of 8388608 bytes")
	errEncodingList  = errors.New("only one Content-Encoding is supported, one of gzip, zstd, br, deflate")
	errLinesOnSingle = errors.New("this route takes one event; send NDJSON to /events/bulk")
	errPanic         = errors.New("internal error")

	errHeaderSize = errors.New("the request header is over its limit")
	errHTTP       = errors.New("malformed HTTP request")
	errBodySize   = errors.New("the body is over its limit")
)

// sizeError is a body over its limit.
type sizeError struct {
	limit    int
	inflated bool
	one      bool // the limit is an event's, which is what its sender knows
}

// Error names the limit.
func (e *sizeError) Error() string {
	what := "the body"
	if e.inflated {
		what = "the body after inflation"
	}
	what += " is larger than the limit of " + strconv.Itoa(e.limit) + " bytes"
	if e.one {
		what += " for an event"
	}
	return what
}

// unsupportedError is a content type or encoding nobody here speaks.
type unsupportedError struct {
	what, value, want string
}

// Error names the value, shortened: it is the client's own.
func (e *unsupportedError) Error() string {
	v := e.value
	if len(v) > 100 {
		v = v[:100]
	}
	return e.what + " " + v + " is not supported; use " + e.want
}

// rateError is a key over its rate, and how long it has to wait.
type rateError time.Duration

// Error names the wait.
func (e rateError) Error() string {
	return "the API key is over its rate; send the request again in " +
		string(appendSeconds(nil, time.Duration(e))) + " s"
}

// parameterError is a query parameter that breaks a rule; the text is
// query.Parse's.
type parameterError struct{ error }

// brokerError is a refusal by the broker, the cause is for the log.
type brokerError struct{ error }

// storeError is a query that the store did not answer, the cause is for the log.
type storeError struct{ error }

// verdict is the one place where an error becomes a status. why is the label
// it is counted under when it refused events.
func verdict(err error) (status int, why reason) {
	switch e := err.(type) {
	case *codec.Error:
		switch e.Reason {
		case codec.TooLarge, codec.TooMany:
			return fasthttp.StatusRequestEntityTooLarge, reason(e.Reason)
		}
		return fasthttp.StatusBadRequest, reason(e.Reason)
	case *sizeError:
		if e.inflated {
			return fasthttp.StatusRequestEntityTooLarge, inflatedTooLarge
		}
		return fasthttp.StatusRequestEntityTooLarge, bodyTooLarge
	case *unsupportedError:
		return fasthttp.StatusUnsupportedMediaType, unsupported
	case rateError:
		return fasthttp.StatusTooManyRequests, rateLimited
	case parameterError:
		return fasthttp.StatusBadRequest, malformed
	case brokerError:
		return fasthttp.StatusServiceUnavailable, brokerRefused
	case storeError:
		return fasthttp.StatusServiceUnavailable, 0
	}
	switch err {
	case errEmptyBody, errEmptyArray, errShortBody, errChunks, errEncoding, errHTTP, query.ErrTooExpensive:
		return fasthttp.StatusBadRequest, malformed
	case errNoKey, errWrongKey:
		return fasthttp.StatusUnauthorized, unauthorized
	case errNoRoute, errNoIngest, errNoQuery:
		return fasthttp.StatusNotFound, 0
	case errMethod:
		return fasthttp.StatusMethodNotAllowed, 0
	case errSlow:
		return fasthttp.StatusRequestTimeout, timedOut
	case errBodySize:
		return fasthttp.StatusRequestEntityTooLarge, bodyTooLarge
	case errWindow:
		return fasthttp.StatusRequestEntityTooLarge, inflatedTooLarge
	case errLinesOnSingle, errEncodingList:
		return fasthttp.StatusUnsupportedMediaType, unsupported
	case producer.ErrFull:
		return fasthttp.StatusTooManyRequests, ringFull
	case errMemory:
		return fasthttp.StatusTooManyRequests, memoryFull
	case errHeaderSize:
		return fasthttp.StatusRequestHeaderFieldsTooLarge, 0
	case producer.ErrTimeout:
		return fasthttp.StatusServiceUnavailable, brokerTimeout
	case errStopping, producer.ErrClosed:
		return fasthttp.StatusServiceUnavailable, shuttingDown
	case errVersion:
		return fasthttp.StatusHTTPVersionNotSupported, 0
	}
	return fasthttp.StatusInternalServerError, 0
}

// sentence is what the client reads about err.
func sentence(err error) string {
	switch err {
	case producer.ErrFull:
		return "the server is overloaded; nothing of the request was kept, send it again later"
	case producer.ErrTimeout:
		return "the broker did not confirm in time; send the request again with the same event_id"
	case producer.ErrClosed:
		return errStopping.Error()
	}
	switch e := err.(type) {
	case brokerError:
		return "the broker refused the events; send the request again with the same event_id"
	case storeError:
		if errors.Is(e.error, context.DeadlineExceeded) {
			return "the query did not finish in time; ask for a shorter range or try again later"
		}
		return "the query could not be answered; try again later"
	}
	return err.Error()
}

// fail answers with err.
func (s *Server) fail(ctx *fasthttp.RequestCtx, err error) {
	status, _ := verdict(err)
	var buf [256]byte
	body := query.AppendString(append(buf[:0], `{"error":`...), sentence(err))
	s.answerError(ctx, status, append(body, '}'))
	if wait, ok := err.(rateError); ok {
		ctx.Response.Header.SetCanonical(keyRetryAfter, appendSeconds(nil, time.Duration(wait)))
	}
}

// appendSeconds appends d in whole seconds, rounded up, at least 1: a
// Retry-After of 0 invites the storm it is there to calm.
func appendSeconds(dst []byte, d time.Duration) []byte {
	return strconv.AppendInt(dst, int64(max(1, (d+time.Second-1)/time.Second)), 10)
}

// answerError sends body, which it copies, with the headers status calls for.
func (s *Server) answerError(ctx *fasthttp.RequestCtx, status int, body []byte) {
	ctx.SetStatusCode(status)
	ctx.Response.ResetBody() // of an answer that was made before there was an error
	ctx.Response.SetBody(body)
	switch status {
	case fasthttp.StatusTooManyRequests, fasthttp.StatusServiceUnavailable:
		ctx.Response.Header.SetCanonical(keyRetryAfter, s.retry)
	case fasthttp.StatusUnauthorized:
		ctx.Response.Header.SetCanonical(keyAuthenticate, valBearer)
	case fasthttp.StatusRequestTimeout:
		ctx.SetConnectionClose()
	}
}

// refuse answers a request whose events are not kept: err, counted events
// times. What is left of the body is dropped.
func (s *Server) refuse(ctx *fasthttp.RequestCtx, err error, events int) {
	if _, why := verdict(err); why != 0 {
		s.stats.rejected[why].Add(uint64(events))
	}
	if err == errSlow {
		s.stats.Timeouts.Inc()
	}
	s.fail(ctx, err)
	s.skipBody(ctx, err)
}

// badRequest answers what fasthttp could not read as a request and then closes.
// Timeouts inside a header reach us as ErrNeedMore: the header stopped coming.
func (s *Server) badRequest(ctx *fasthttp.RequestCtx, err error) {
	answer := errHTTP
	var (
		ne    net.Error
		small *fasthttp.ErrSmallBuffer
	)
	switch {
	case errors.As(err, &small):
		answer = errHeaderSize
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		answer = errBodySize
	case errors.Is(err, fasthttp.ErrNeedMore), errors.As(err, &ne) && ne.Timeout():
		answer = errSlow
		s.stats.Timeouts.Inc()
	}
	commonHeaders(ctx)
	s.fail(ctx, answer)
	s.stats.count(routeOther, ctx.Response.StatusCode())
}
