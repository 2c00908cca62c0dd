package server

import (
	"bytes"
	"context"
	_ "embed" // openapi.yaml
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"edge/internal/query"

	"github.com/fasthttp/router"
	"github.com/valyala/fasthttp"
)

// Header names in canonical form and fixed values, as bytes: setting them by
// SetCanonical skips the normalising copy on every request.
var (
	keyNoSniff       = []byte("X-Content-Type-Options")
	keyCacheControl  = []byte("Cache-Control")
	keyHSTS          = []byte("Strict-Transport-Security")
	keyRetryAfter    = []byte("Retry-After")
	keyAuthenticate  = []byte("Www-Authenticate")
	keyAuthorization = []byte("Authorization")
	keyAPIKey        = []byte("X-Api-Key")
	keyOrigin        = []byte("Origin")
	keyVary          = []byte("Vary")
	keyAllow         = []byte("Allow")
	keyAllowOrigin   = []byte("Access-Control-Allow-Origin")
	keyAllowMethods  = []byte("Access-Control-Allow-Methods")
	keyAllowHeaders  = []byte("Access-Control-Allow-Headers")
	keyMaxAge        = []byte("Access-Control-Max-Age")
	keyExpose        = []byte("Access-Control-Expose-Headers")

	valJSON    = []byte("application/json")
	valNoSniff = []byte("nosniff")
	valNoStore = []byte("no-store")
	valHSTS    = []byte("max-age=31536000")
	valYAML    = []byte("application/yaml")
	valBearer  = []byte(`Bearer realm="edge"`)
	valAny     = []byte("*")
	valHeaders = []byte("content-type, content-encoding, authorization, x-api-key, x-retry-count")
	// Two hours is as long as Chromium remembers a preflight.
	valMaxAge = []byte("7200")

	bodyAccepted = []byte(`{"status":"accepted"}`)
	bodyHealthy  = []byte(`{"status":"healthy"}`)
)

// handler answers a request, or returns what is wrong with it.
type handler func(*fasthttp.RequestCtx) error

// serve answers one request. A trailing slash is another spelling of a route
// and not a reason to redirect: clients drop the body of a redirected POST, or
// turn it into a GET.
func (s *Server) serve(ctx *fasthttp.RequestCtx) {
	uri := ctx.URI()
	if p := uri.PathOriginal(); len(p) > 1 && p[len(p)-1] == '/' {
		uri.SetPathBytes(p[:len(p)-1])
	}
	s.routes.Handler(ctx)
}

// newRoutes returns the routing table.
func (s *Server) newRoutes() *router.Router {
	r := router.New()
	r.RedirectTrailingSlash = false
	r.RedirectFixedPath = false
	r.GlobalOPTIONS = s.on(routeOther, s.preflight)
	r.MethodNotAllowed = s.on(routeOther, func(*fasthttp.RequestCtx) error { return errMethod })
	r.NotFound = s.on(routeOther, func(*fasthttp.RequestCtx) error { return errNoRoute })
	r.PanicHandler = s.panicked

	get := func(path string, label route, h handler) {
		r.GET(path, s.on(label, h))
		r.HEAD(path, s.on(label, h))
	}
	s.events, s.bulk = s.on(routeEvents, s.postEvent), s.on(routeBulk, s.postBulk)
	r.POST("/events", s.events)
	r.POST("/events/bulk", s.bulk)
	get("/metrics", routeMetrics, s.getMetrics)
	get("/health", routeHealth, s.getHealth)
	get("/ready", routeReady, s.getReady)
	get("/openapi.yaml", routeOpenAPI, s.getOpenAPI)
	return r
}

// on wraps h with what every answer has: headers, its place in the counters,
// and a recover, because fasthttp has none and one bad request would take down
// the process with everything in flight.
func (s *Server) on(label route, h handler) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		defer s.done(ctx, label)
		if x := exchangeOf(ctx); x == nil || !x.bare { // else finish does it
			commonHeaders(ctx)
			s.cors.allow(ctx)
		}
		if err := framing(&ctx.Request.Header); err != nil {
			s.fail(ctx, err)
			ctx.SetConnectionClose() // where the next request begins is anybody's guess
			return
		}
		if err := h(ctx); err != nil {
			s.fail(ctx, err)
			s.skipBody(ctx, err)
		}
	}
}

// framing refuses what fasthttp lets pass and a proxy in front may read
// otherwise: versions other than 1.x; header lines that end in a bare LF, which
// to some are part of the line; lines folded into the one before, which some take
// for a header of their own; names that are no tokens, which some cut short; and
// transfer encodings other than chunked, of which RFC 9112 6.3 says that nobody knows
// where the body ends.
func framing(h *fasthttp.RequestHeader) error {
	if p := h.Protocol(); len(p) < 6 || p[5] != '1' {
		return errVersion
	}
	// A CR anywhere but before LF has been refused already.
	for raw := h.RawHeaders(); len(raw) > 0 && string(raw) != "\r\n"; {
		end := bytes.IndexByte(raw, '\n')
		if end < 1 || raw[end-1] != '\r' {
			return errHTTP
		}
		for at, c := range raw[:end] {
			if !isToken[c] {
				if c != ':' || at == len(transferEncoding) && equalFold(raw[:at], transferEncoding) && !equalFold(bytes.TrimSpace(raw[at+1:end]), "chunked") {
					return errHTTP
				}
				break
			}
		}
		raw = raw[end+1:]
	}
	return nil
}

const transferEncoding = "transfer-encoding"

// isToken are the bytes a header's name may have, RFC 9110 5.6.2.
var isToken = func() (table [256]bool) {
	for c := range table {
		table[c] = '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c))
	}
	return table
}()

// done counts the answer. It is what on defers, so recover works here.
func (s *Server) done(ctx *fasthttp.RequestCtx, label route) {
	if v := recover(); v != nil {
		s.panicked(ctx, v)
	}
	status := ctx.Response.StatusCode()
	if status == fasthttp.StatusContinue {
		return // the answer is still to come
	}
	if x := exchangeOf(ctx); x != nil && x.waiting {
		x.label = label
		return // here, too
	}
	if s.draining.Load() { // or it would meet the end of its connection: when stopping, idle ones are closed
		ctx.SetConnectionClose()
	}
	s.stats.observe(label, status, since(ctx))
}

// panicked answers 500 in place of whatever was half said.
func (s *Server) panicked(ctx *fasthttp.RequestCtx, v any) {
	s.stats.Panics.Inc()
	s.log.Error("handler panicked", "err", fmt.Sprint(v), "stack", string(debug.Stack()))
	if x := exchangeOf(ctx); x != nil && !x.waiting && x.waiter != nil {
		x.waiter.state.CompareAndSwap(pending, abandoned)
		x.waiter = nil // the producer may have it
	}
	ctx.Response.Reset()
	commonHeaders(ctx)
	s.fail(ctx, errPanic)
	ctx.SetConnectionClose()
}

// commonHeaders sets what every answer has. HSTS is ours to say only when the
// connection's TLS ends here; a proxy in front that ends it says so itself.
func commonHeaders(ctx *fasthttp.RequestCtx) {
	h := &ctx.Response.Header
	h.SetContentTypeBytes(valJSON)
	h.SetCanonical(keyNoSniff, valNoSniff)
	h.SetCanonical(keyCacheControl, valNoStore)
	if ctx.IsTLS() {
		h.SetCanonical(keyHSTS, valHSTS)
	}
}

// expect answers a client that waits for permission to send its body: whatever
// the header alone decides is said now, with its sentence, and the body never
// travels. fasthttp asks for a status here and calls the response not ours to
// modify, yet an answer without its sentence helps nobody, and it sends what
// stands in the response as it is; TestExpectContinue would notice a change.
func (s *Server) expect(ctx *fasthttp.RequestCtx) int {
	s.serve(ctx)
	status := ctx.Response.StatusCode()
	if status == fasthttp.StatusContinue {
		ctx.SetStatusCode(fasthttp.StatusOK)
	}
	return status
}

func (s *Server) getMetrics(ctx *fasthttp.RequestCtx) error {
	if s.cfg.Query == nil {
		return errNoQuery
	}
	if s.stopping.Load() {
		return errStopping
	}
	key, err := s.enter(ctx, Read)
	if err != nil {
		return err
	}
	args := ctx.QueryArgs()
	req, err := query.Parse(func(name string) string { return string(args.Peek(name)) }, began(ctx))
	if err != nil {
		return parameterError{err}
	}
	if key != nil {
		if wait := key.take(1, time.Now()); wait > 0 {
			return rateError(wait)
		}
	}
	// Not ctx as parent: it ends with Shutdown, which lets requests finish. A second
	// more, so that the server's own word on a query that takes too long comes first.
	limit, cancel := context.WithTimeout(context.Background(), s.cfg.QueryTimeout+time.Second)
	defer cancel()
	res, err := s.cfg.Query(limit, req)
	if errors.Is(err, query.ErrTooExpensive) {
		return query.ErrTooExpensive
	}
	if err != nil {
		s.log.Error("metrics query failed; the client gets 503", "err", err)
		return storeError{err}
	}
	answer := s.memory.fill(res.AppendJSON)
	if answer == nil {
		return errMemory
	}
	s.answerBlock(ctx, answer)
	return nil
}

// answerBlock has the answer's body in blk, which is given back when the client has read
// it or is gone.
func (s *Server) answerBlock(ctx *fasthttp.RequestCtx, blk *block) {
	if x := exchangeOf(ctx); x != nil {
		x.long = blk
		ctx.Response.SetBodyRaw(blk.b)
		return
	}
	body := &blockBody{of: s.memory, block: blk}
	body.Reset(blk.b)
	ctx.Response.SetBodyStream(body, len(blk.b))
}

// blockBody is a body in a block, which fasthttp closes after it.
type blockBody struct {
	bytes.Reader
	of    *memory
	block *block
}

// Close implements io.Closer.
func (b *blockBody) Close() error {
	b.of.put(b.block)
	b.block = nil
	return nil
}

func (s *Server) getHealth(ctx *fasthttp.RequestCtx) error {
	ctx.Response.SetBodyRaw(bodyHealthy)
	return nil
}

// openAPI describes this listener for client generators and for people. The
// tests hold every request and answer of theirs to it.
//
//go:embed openapi.yaml
var openAPI []byte

func (s *Server) getOpenAPI(ctx *fasthttp.RequestCtx) error {
	ctx.Response.Header.SetContentTypeBytes(valYAML)
	ctx.Response.SetBodyRaw(openAPI)
	return nil
}

// getReady reports every check, and all that fail in one sentence.
func (s *Server) getReady(ctx *fasthttp.RequestCtx) error {
	var problems string
	problem := func(text string) {
		if problems != "" {
			problems += "; "
		}
		problems += text
	}
	checks := []byte(`{`)
	for i, c := range s.cfg.Checks {
		state := "ok"
		if err := c.Func(); err != nil {
			state = err.Error()
			problem(c.Name + ": " + state)
		}
		if i > 0 {
			checks = append(checks, ',')
		}
		checks = append(query.AppendString(checks, c.Name), ':')
		checks = query.AppendString(checks, state)
	}
	checks = append(checks, '}')
	if s.draining.Load() {
		problem("the server is stopping")
	}
	if problems == "" {
		ctx.Response.SetBodyRaw(fmt.Appendf(nil, `{"status":"ready","checks":%s}`, checks))
		return nil
	}
	body := query.AppendString([]byte(`{"status":"not ready","error":`), problems)
	body = append(append(body, `,"checks":`...), checks...)
	s.answerError(ctx, fasthttp.StatusServiceUnavailable, append(body, '}'))
	return nil
}
