package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A server accepts connections and gives each a session with the engine.
type server struct {
	cfg     Config
	log     *slog.Logger
	eng     *engine
	version engineVersion
	base    baseSettings
	end     context.CancelCauseFunc // of serve

	buffered atomic.Int64  // bytes of inserts under way
	schema   atomic.Uint64 // grows with each statement that may change a table
	arrivals arrivals

	mu       sync.Mutex
	sessions map[*session]struct{}
	admitted int        // sessions whose credentials were right
	greeting []*session // those of the others that are let wait for theirs, oldest first
	serial   uint64
	ended    sync.WaitGroup
}

type engineVersion struct {
	major, minor, patch int
	timezone            string
}

func (srv *server) readVersion() error {
	v := &srv.version
	number, err := srv.eng.admin.text("SELECT version()")
	if err == nil {
		_, err = fmt.Sscanf(number, "%d.%d.%d", &v.major, &v.minor, &v.patch)
	}
	if err == nil {
		v.timezone, err = srv.eng.admin.text("SELECT timezone()")
	}
	if err != nil {
		return fmt.Errorf("ask the engine for its version: %w", err)
	}
	return nil
}

// serve accepts until ctx ends, then waits for the queries under way. It
// returns an error when one would not stop.
func (srv *server) serve(ctx context.Context, ln net.Listener) error {
	srv.sessions = make(map[*session]struct{})
	accepted := make(chan error, 1)
	go func() { accepted <- srv.accept(ctx, ln) }()
	srv.ended.Go(func() { srv.watchWrites(ctx) })
	var err error
	select {
	case <-ctx.Done():
		ln.Close()
		err = <-accepted
	case err = <-accepted:
	}
	return errors.Join(err, srv.drain())
}

func (srv *server) accept(ctx context.Context, ln net.Listener) error {
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			srv.start(ctx, conn)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			// Out of file descriptors, most likely: they come back when
			// sessions end, and giving up would not bring them sooner.
			srv.log.Warn("accept a connection", "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

// start gives conn a session. Twice as many connections as may be open are let in
// as far as the handshake, where those beyond the limit hear why: an answer before
// the client has asked would often be lost with the connection. Whoever comes when
// there are so many takes the place of the one that has had the longest time to
// shake hands, so silence keeps nobody out.
func (srv *server) start(ctx context.Context, conn net.Conn) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.admitted+len(srv.greeting) >= 2*srv.cfg.MaxConnections { // admitted is half of it at most
		oldest := srv.greeting[0]
		srv.greeted(oldest)
		oldest.conn.Close()
		srv.log.Debug("connection closed", "err", "it has not said who it is, and others come")
	}
	srv.serial++
	s := newSession(srv, conn, "edge-session-"+strconv.FormatUint(srv.serial, 10))
	srv.sessions[s] = struct{}{}
	srv.greeting = append(srv.greeting, s)
	srv.ended.Go(func() {
		s.run(ctx)
		srv.leave(s)
		conn.Close() // last: who waits for it finds the place free
	})
}

// admit makes s one of the connections that count.
func (srv *server) admit(s *session) error {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.admitted >= srv.cfg.MaxConnections {
		return &exception{code: codeTooManyQueries,
			message: fmt.Sprintf("Too many connections: the limit is %d", srv.cfg.MaxConnections)}
	}
	srv.admitted++
	s.admitted = true
	srv.greeted(s)
	return nil
}

// greeted ends the wait of s, which may have ended before. Callers hold mu.
func (srv *server) greeted(s *session) {
	if i := slices.Index(srv.greeting, s); i >= 0 {
		srv.greeting = slices.Delete(srv.greeting, i, i+1)
	}
}

// leave frees the place of s. A second time it does nothing.
func (srv *server) leave(s *session) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	delete(srv.sessions, s)
	srv.greeted(s)
	if s.admitted {
		s.admitted = false
		srv.admitted--
	}
}

// drain ends all sessions: idle ones at once, busy ones after their query or,
// past the time allowed, with it.
func (srv *server) drain() error {
	done := make(chan struct{})
	go func() { srv.ended.Wait(); close(done) }()
	srv.each(func(s *session) {
		if !s.busy.Load() {
			s.conn.Close()
		}
	})
	if waited(done, srv.cfg.Drain) {
		return nil
	}
	for range 20 {
		srv.each(func(s *session) {
			s.conn.Close()
			if err := srv.eng.kill(s.tag); err != nil {
				srv.log.Warn("kill a query at shutdown", "err", err)
			}
		})
		if waited(done, 250*time.Millisecond) {
			return nil
		}
	}
	return errors.New("a query would not stop")
}

func (srv *server) each(f func(*session)) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for s := range srv.sessions {
		f(s)
	}
}

func waited(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}
