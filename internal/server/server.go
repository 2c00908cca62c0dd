// Package server is the front door: the public HTTP listener that turns
// requests into checked batches and answers with what became of them, and the
// handler of the admin listener.
//
// Small POST requests that arrive in one piece are answered in an event loop
// (exchange.go). Every other request is served by fasthttp, which has a goroutine for it
// and calls the handler once the header is in. Three choices shape how those are served:
//
// Bodies are streamed (StreamRequestBody), though every decoder here wants its
// body in one piece. Unstreamed, fasthttp reads the whole body before it asks
// us anything, into a buffer that belongs to the connection until it closes: a
// thousand keep-alive connections that once sent 10 MiB would pin 10 GiB.
// Streamed, it reads at most 8 KiB and asks. Everything the header decides
// (route, key, type, encoding, declared size) is answered before the body is
// read, and what is read goes into blocks charged to one budget (memory.go), so
// the bytes of all bodies together have a bound. Over it the answer is 429.
//
// Body memory is given back before Publish waits: a Batch holds copies. A
// request parked for its acknowledgement costs its connection, and its batch until
// the producer has copied that.
//
// What requests need of the pipeline is three functions: Publish and Start, which are
// the same for a goroutine and for a loop, and Query. A process without their role
// leaves them nil and the route answers 404.
//
// Everything a fasthttp.RequestCtx hands out dies with the handler; nothing
// here keeps any of it. All methods may be called from any goroutine.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"edge/internal/codec"
	"edge/internal/loop"
	"edge/internal/producer"
	"edge/internal/query"

	"github.com/fasthttp/router"
	"github.com/valyala/fasthttp"
)

// Config is what a Server needs to know. It has no defaults: a number is positive unless
// its comment gives 0 a meaning, and whoever reads it from a user says what is wrong with it.
type Config struct {
	// Events holds the batches that requests are decoded into and Publish takes
	// them on: nil once every event is durable as promised, else
	// producer.ErrFull, ErrTimeout, ErrClosed or the broker's error. The server's
	// reference to the batch is Publish's, as in producer.Producer. Publish is nil in
	// a process that does not ingest.
	Events  *codec.Pool
	Publish func(*codec.Batch) error
	// Start is Publish for requests in a loop, which cannot wait: it reports true
	// when the Waiter will hear of the outcome, as in producer.Producer, and then has a
	// reference of its own: the server releases its own at once. They give up after AckTimeout with ErrTimeout.
	Start      func(*codec.Batch, producer.Waiter) (bool, error)
	AckTimeout time.Duration
	// Query answers a parsed metrics query. Nil in a process that does not.
	Query func(context.Context, query.Request) (*query.Result, error)
	// Checks decide /ready.
	Checks []Check
	Log    *slog.Logger

	MaxEventBytes    int   // one event's text, as in codec.Rules
	MaxBodyBytes     int   // one bulk body as it comes over the wire
	MaxInflatedBytes int   // one bulk body after its content encoding is undone
	MaxInflightBytes int64 // all bodies and long answers held at one time; MinInflightBytes at least
	MaxConns         int   // open connections
	MaxConnsPerIP    int   // open connections of one IPv4 address or IPv6 /64; 0 is no limit
	Loops            int   // event loops for small requests; 0 is a goroutine a connection

	ReadTimeout  time.Duration // a whole request, from its first byte; also a silent new connection
	WriteTimeout time.Duration // one answer
	IdleTimeout  time.Duration // between two requests on a connection
	QueryTimeout time.Duration // one metrics query
	RetryAfter   time.Duration // what 429 and 503 ask for, rounded up to whole seconds

	// WriteKeys guard the POST routes and ReadKeys guard GET /metrics, each only
	// when not empty. An entry is the key, or "sha256:" and its digest in hex, as CheckKeys
	// accepts them.
	WriteKeys, ReadKeys []string
	// KeyFile has more keys, and with it both scopes are guarded; nil is no
	// file. SetKeyFile replaces it in the running server.
	KeyFile *KeyFile
	KeyRate int // events a second of one write key; 0 is no limit
	// Origins may call from a browser: "*" is any, empty is none.
	Origins []string
}

// Check is one thing readiness depends on. Func is called for every GET /ready
// and must not block: report state that is already known.
type Check struct {
	Name string
	Func func() error
}

// maxHeaderBytes bounds the request line and header. Browsers send up to 4 KiB of cookies
// next to a long referrer. A connection of fasthttp owns a read buffer of this size.
const maxHeaderBytes = 8 << 10

// MinInflightBytes is the least MaxInflightBytes for these limits: a body and its
// inflated form are held together, in power-of-two blocks that exist twice while
// they grow.
func MinInflightBytes(maxBody, maxInflated int) int64 {
	return 3 * (int64(maxBody) + int64(maxInflated))
}

// MaxAnswerBytes is the most that one answer takes of the budget: verdicts on as many
// events, or a metrics query's names, which stand in JSON.
func MaxAnswerBytes(maxEvents int) int64 {
	const verdict, names = 256, 8 << 20
	return int64(prefetch) << classOf(max(maxEvents*verdict, names))
}

// Server is the public listener.
type Server struct {
	cfg     Config
	http    *fasthttp.Server
	routes  *router.Router
	events  fasthttp.RequestHandler // of POST /events
	bulk    fasthttp.RequestHandler // of POST /events/bulk
	memory  *memory
	inflate *inflaters
	gate    *gate
	keys    atomic.Pointer[keyring]
	cors    cors
	retry   []byte // value of Retry-After
	log     *slog.Logger
	stats   Stats

	mu       sync.Mutex
	loops    *loop.Group
	accepted chan struct{} // closed when loops gets no more connections
	listener net.Listener  // of loops

	draining atomic.Bool // not ready, still serving
	stopping atomic.Bool // refuses new work
}

// New returns a server for cfg.
func New(cfg Config) *Server {
	if (cfg.Publish == nil) != (cfg.Start == nil) || cfg.Publish != nil && cfg.Events == nil {
		panic("BUG: to ingest, a server needs Events, Publish and Start")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg:     cfg,
		memory:  newMemory(cfg.MaxInflightBytes, max(cfg.MaxBodyBytes, cfg.MaxInflatedBytes)),
		inflate: newInflaters(),
		cors:    newCORS(cfg.Origins),
		retry:   appendSeconds(nil, cfg.RetryAfter),
		log:     cfg.Log,
	}
	s.keys.Store(newKeyring(&cfg))
	if cfg.KeyFile != nil {
		s.SetKeyFile(cfg.KeyFile)
	}
	s.stats.init()
	s.gate = newGate(&cfg, s)
	s.routes = s.newRoutes()
	s.http = &fasthttp.Server{
		Handler:           s.serve,
		ErrorHandler:      s.badRequest,
		ExpectHandler:     s.expect,
		ConnState:         s.gate.connState,
		Logger:            quiet{cfg.Log},
		StreamRequestBody: true,
		// With streaming this only caps what is read ahead of the handler.
		MaxRequestBodySize: max(cfg.MaxBodyBytes, cfg.MaxEventBytes),
		ReadBufferSize:     maxHeaderBytes,
		// Answers are a few hundred bytes; longer ones bypass the buffer.
		WriteBufferSize: 1 << 10,
		ReadTimeout:     cfg.ReadTimeout,
		WriteTimeout:    cfg.WriteTimeout,
		IdleTimeout:     cfg.IdleTimeout,
		// The gate is the limit. A worker is freed a little after its connection
		// is counted out, so fasthttp's own limit needs room above it.
		Concurrency: 2 * cfg.MaxConns,
		// TCPKeepalive stays off: net.Listen has set it on every connection
		// already, and when setting it fails here (the client is gone again)
		// fasthttp stops accepting for good.
		CloseOnShutdown:              true,
		DisablePreParseMultipartForm: true,
		NoDefaultServerHeader:        true,
		SecureErrorLogMessage:        true,
	}
	return s
}

// Serve answers connections of ln until Shutdown, and takes ownership of ln. It is
// called once.
func (s *Server) Serve(ln net.Listener) error {
	if s.stopping.Load() {
		return ln.Close()
	}
	var err error
	if tcp, ok := ln.(*net.TCPListener); ok && loop.Supported && s.cfg.Loops > 0 {
		err = s.serveLoops(tcp)
	} else {
		err = s.http.Serve(s.gate.listener(ln))
	}
	if err != nil && !s.stopping.Load() {
		return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
	}
	return nil
}

// serveLoops gives the connections of tcp to loops.
func (s *Server) serveLoops(tcp *net.TCPListener) error {
	loops, err := loop.New(loop.Config{
		Loops: s.cfg.Loops, Handler: s.newWhole,
		// It reports what the client has been told, or could not be.
		Lent:        func(c *loop.Conn) { _ = s.http.ServeConn(c) },
		Closed:      func(c *loop.Conn) { s.gate.leave(c) },
		ReadTimeout: s.cfg.ReadTimeout, WriteTimeout: s.cfg.WriteTimeout, IdleTimeout: s.cfg.IdleTimeout,
		ParkTimeout: s.cfg.AckTimeout,
	})
	if err != nil {
		return errors.Join(err, tcp.Close())
	}
	ln, err := loops.Listener(tcp)
	if err != nil {
		return errors.Join(err, tcp.Close(), loops.Shutdown(context.Background()))
	}
	ln = s.gate.listener(ln)
	s.mu.Lock()
	if s.stopping.Load() { // Shutdown has found no loops
		s.mu.Unlock()
		return errors.Join(ln.Close(), loops.Shutdown(context.Background()))
	}
	s.loops, s.listener, s.accepted = loops, ln, make(chan struct{})
	s.mu.Unlock()
	defer close(s.accepted)
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		loops.Add(c.(*loop.Conn))
	}
}

// Drain makes /ready answer 503 while everything else goes on, so that load
// balancers look elsewhere before Shutdown. Every answer is its connection's last, so
// that those who keep one open come back on a new one, or elsewhere.
func (s *Server) Drain() { s.draining.Store(true) }

// Shutdown stops accepting, lets the requests already admitted finish, answers
// 503 to later ones on connections still open, and closes those that are idle.
// When ctx ends first the connections left are reported as an error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.Drain()
	s.stopping.Store(true)
	s.gate.stop()
	s.mu.Lock()
	loops, ln := s.loops, s.listener
	s.mu.Unlock()
	var err error
	if loops == nil {
		err = s.http.ShutdownWithContext(ctx)
	} else {
		_ = ln.Close()
		<-s.accepted
		err = loops.Shutdown(ctx)
	}
	if err != nil {
		return fmt.Errorf("drain %d http connections: %w", s.gate.open.Load(), err)
	}
	return nil
}

// quiet takes what fasthttp reports about single connections: news about
// clients, not about us, and as frequent as clients like.
type quiet struct{ log *slog.Logger }

// Printf implements fasthttp.Logger. Of an error only the part of TLS or of the
// network is logged: fasthttp's own quotes the request line or header it choked
// on, which may be a key, and a panic's value whatever it held.
func (q quiet) Printf(format string, args ...any) {
	if !q.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	var attrs []any
	for _, a := range args {
		switch a := a.(type) {
		case net.Addr: // fasthttp's order: ours, theirs
			attrs = []any{"remote", a.String()}
		case error:
			if cause := transportCause(a); cause != nil {
				attrs = append(attrs, "err", cause)
			}
		}
	}
	what, _, _ := strings.Cut(format, "%")
	q.log.Debug("fasthttp: "+strings.TrimRight(what, ": "), attrs...)
}

// transportCause returns what TLS or the network said in err, or nil. Many of
// crypto/tls's errors have no type, but all have its prefix.
func transportCause(err error) error {
	for ; err != nil; err = errors.Unwrap(err) {
		if _, ok := err.(*net.OpError); ok || strings.HasPrefix(err.Error(), "tls: ") {
			return err
		}
	}
	return nil
}
