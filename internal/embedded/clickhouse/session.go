package clickhouse

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
)

const (
	// handshakeTimeout bounds all of it: a byte now and then keeps nobody in.
	handshakeTimeout = 30 * time.Second
	// helloSize is the window of a connection until it is admitted.
	helloSize = 4 << 10
	// transferTimeout bounds one read inside a packet and one write: ClickHouse's
	// send_timeout and receive_timeout.
	transferTimeout = 5 * time.Minute
	// progressEvery keeps clients awake during a long query: ch-go gives up on a
	// server that is silent for three seconds.
	progressEvery = 500 * time.Millisecond
)

// A session is one client connection, and one session with the engine behind
// it. Its goroutine owns everything here but the write lock: while a query
// runs, another goroutine sends progress.
type session struct {
	srv      *server
	conn     net.Conn
	version  int
	tag      string
	admitted bool // guarded by srv.mu
	eng      *engineConn
	database string // the current one

	in       *cursor
	unzipped *cursor // the bytes inside in's compressed frames
	frames   *frameReader
	timeout  time.Duration    // for one read; 0 while idle
	zip      *compress.Writer // of the last query's blocks; nil: they are not compressed
	skipping bool             // it failed, and its rows may still be on their way
	walker   walker
	settings sessionSettings
	takes    taken

	out   proto.Buffer // complete packets not yet written
	plain []byte       // output waiting for compression
	lz4   *compress.Writer
	zstd  *compress.Writer

	writing sync.Mutex
	busy    atomic.Bool
}

func newSession(srv *server, conn net.Conn, tag string) *session {
	s := &session{srv: srv, conn: conn, tag: tag}
	s.in = newCursor((*timedReader)(s), helloSize)
	return s
}

// timedReader reads the connection, within the timeout that applies.
type timedReader session

func (r *timedReader) Read(p []byte) (int, error) {
	if r.timeout > 0 {
		if err := r.conn.SetReadDeadline(time.Now().Add(r.timeout)); err != nil {
			return 0, err
		}
	}
	return r.conn.Read(p)
}

// expect sets how long one read may take; 0 is for ever.
func (s *session) expect(timeout time.Duration) error {
	s.timeout = timeout
	if timeout == 0 {
		return s.conn.SetReadDeadline(time.Time{})
	}
	return nil
}

// run serves the connection to its end; its caller closes it. A panic ends this
// session only.
func (s *session) run(ctx context.Context) {
	defer func() {
		if p := recover(); p != nil {
			s.srv.log.Error("session panicked", "err", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
		if s.eng != nil {
			s.eng.close()
		}
	}()
	err := s.serve(ctx)
	var broken *protocolError
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
	case errors.As(err, &broken):
		// The peer may still be reading: say why before hanging up.
		s.sendException(&exception{code: codeUnexpectedPacket, message: broken.Error()})
		_ = s.flush()
		s.srv.log.Warn("connection closed", "remote", s.conn.RemoteAddr().String(), "err", err)
	default:
		s.srv.log.Debug("connection closed", "remote", s.conn.RemoteAddr().String(), "err", err)
	}
}

func (s *session) serve(ctx context.Context) error {
	if err := s.handshake(); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := s.expect(0); err != nil {
			return err
		}
		code, err := s.in.peek()
		if err != nil {
			return err
		}
		s.busy.Store(true)
		if ctx.Err() != nil {
			return nil // shutdown saw an idle session, and closes it
		}
		if err := s.expect(transferTimeout); err != nil {
			return err
		}
		s.in.r++
		if err := s.packet(proto.ClientCode(code)); err != nil {
			return err
		}
		s.busy.Store(false)
	}
	return nil
}

func (s *session) packet(code proto.ClientCode) error {
	switch code {
	case proto.ClientCodeQuery:
		return s.query()
	case proto.ClientCodePing:
		proto.ServerCodePong.Encode(&s.out)
		return s.flush()
	case proto.ClientCodeCancel:
		return nil // it crossed the end of its query
	case proto.ClientCodeData:
		return s.skipBlock()
	case proto.ClientCodeHello:
		// ch-go gives up on a query with a zero byte before its Cancel, and
		// closes the connection.
		return io.EOF
	default:
		return malformed("packet code %d is not expected here", code)
	}
}

func (s *session) handshake() error {
	if err := s.conn.SetReadDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	code, err := s.in.peek()
	if err != nil {
		return err
	}
	s.in.r++
	if proto.ClientCode(code) != proto.ClientCodeHello {
		return malformed("the first packet has code %d, not Hello", code)
	}
	hello, err := decodeHello(s.in)
	if err != nil {
		return err
	}
	s.version = min(hello.ProtocolVersion, revision)
	if s.version < oldestRevision {
		return malformed("protocol revision %d is older than %d", hello.ProtocolVersion, oldestRevision)
	}
	if err := s.enter(hello); err != nil {
		s.srv.leave(s) // before it is told, so that whom it tells finds the place free
		s.sendException(err)
		return errors.Join(s.flush(), io.EOF)
	}
	v := s.srv.version
	answer := proto.ServerHello{
		Name: "ClickHouse", Major: v.major, Minor: v.minor, Patch: v.patch, Revision: revision,
		Timezone: v.timezone, DisplayName: "edge",
	}
	answer.EncodeAware(&s.out, s.version)
	if err := s.flush(); err != nil {
		return err
	}
	if proto.FeatureAddendum.In(s.version) {
		if _, err := s.in.string(maxName); err != nil { // quota key
			return err
		}
	}
	s.in.widen()
	return nil
}

// enter checks who it is and opens the engine session.
func (s *session) enter(hello proto.ClientHello) error {
	user := subtle.ConstantTimeCompare([]byte(hello.User), []byte(s.srv.cfg.User))
	password := subtle.ConstantTimeCompare([]byte(hello.Password), []byte(s.srv.cfg.Password))
	if user&password != 1 {
		return &exception{code: codeAuthentication, message: clip(hello.User) +
			": Authentication failed: password is incorrect, or there is no user with such name."}
	}
	if err := s.srv.admit(s); err != nil {
		return err
	}
	eng, err := s.srv.eng.connect(s.tag)
	if err != nil {
		return &exception{code: codeUnknown, message: err.Error()}
	}
	s.eng = eng
	s.settings = sessionSettings{eng: s.srv.eng, conn: eng, base: &s.srv.base}
	s.database = "default"
	if hello.Database != "" && hello.Database != s.database {
		s.database = hello.Database
		return eng.exec("USE "+quoteIdentifier(hello.Database), nil)
	}
	return nil
}

// sendException puts an Exception packet in line.
func (s *session) sendException(err error) {
	e := proto.Exception{Code: codeUnknown, Name: "DB::Exception", Message: err.Error()}
	var known *exception
	if errors.As(err, &known) {
		e.Code, e.Message = known.code, "DB::Exception: "+known.message
	}
	proto.ServerCodeException.Encode(&s.out)
	e.EncodeAware(&s.out, s.version)
}

// flush writes the packets in line.
func (s *session) flush() error {
	if len(s.out.Buf) == 0 {
		return nil
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	err := s.write(s.out.Buf)
	s.out.Reset()
	return err
}

func (s *session) write(p []byte) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(transferTimeout)); err != nil {
		return err
	}
	_, err := s.conn.Write(p)
	return err
}

// A watch looks after the client while the session's goroutine is inside the
// engine: it sends progress, and it kills the query when the client cancels or
// goes away. Until stop returns, the watch owns the session's input.
type watch struct {
	s         *session
	killing   bool
	finished  chan struct{}
	done      sync.WaitGroup
	cancelled atomic.Bool // the client sent Cancel
	gone      atomic.Bool // the client closed the connection
}

// watch starts watching. With killing false the query is let finish whatever
// the client does: its rows are complete, and half a block is not an option.
func (s *session) watch(killing bool) *watch {
	w := &watch{s: s, killing: killing, finished: make(chan struct{})}
	if err := s.expect(0); err != nil {
		w.gone.Store(true)
	}
	w.done.Go(w.listen)
	w.done.Go(w.report)
	return w
}

// stop ends the watch and reports whether the client still wants an answer.
func (w *watch) stop() error {
	close(w.finished)
	_ = w.s.conn.SetReadDeadline(time.Unix(1, 0)) // wakes listen
	w.done.Wait()
	if w.gone.Load() {
		return io.EOF
	}
	return w.s.expect(transferTimeout)
}

func (w *watch) listen() {
	code, err := w.s.in.peek()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return
	case err != nil:
		w.gone.Store(true)
	case proto.ClientCode(code) == proto.ClientCodeHello: // see packet
		w.gone.Store(true)
	case proto.ClientCode(code) == proto.ClientCodeCancel:
		w.s.in.r++
		w.cancelled.Store(true)
	default:
		return // the next packet, sent early
	}
	if !w.killing {
		return
	}
	// The engine hears a kill only once the query is on its list, so it is
	// repeated until the query has ended.
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		if err := w.s.srv.eng.kill(w.s.tag); err != nil {
			w.s.srv.log.Warn("kill a cancelled query", "err", err)
		}
		select {
		case <-w.finished:
			return
		case <-time.After(wait):
		}
	}
}

func (w *watch) report() {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	var b proto.Buffer
	proto.ServerCodeProgress.Encode(&b)
	proto.Progress{}.EncodeAware(&b, w.s.version)
	for {
		select {
		case <-w.finished:
			return
		case <-tick.C:
			w.s.writing.Lock()
			err := w.s.write(b.Buf)
			w.s.writing.Unlock()
			if err != nil {
				return // listen sees the same
			}
		}
	}
}
