// Package clickhouse is what the sink and the query engine share about
// ClickHouse: connections over the native protocol, a pool of them, and the
// schema's migrations. It holds no SQL about events.
package clickhouse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/chpool"
	"github.com/ClickHouse/ch-go/proto"
)

// Options says which server, as whom, and over what.
type Options struct {
	Addr     string // host:port
	Database string
	Username string
	Password string
	TLS      *tls.Config // nil: plain
	Dialer   ch.Dialer   // nil: net.Dialer; the embedded engine brings its own
	MaxConns int         // of a Pool; 0: 8
	Compress bool        // LZ4; pays across a network, costs on loopback
}

// client returns ch-go's form of o for one database ("" is the server's own default).
func (o Options) client(database string) ch.Options {
	compression := ch.CompressionDisabled
	if o.Compress {
		compression = ch.CompressionLZ4
	}
	return ch.Options{
		Address:     o.Addr,
		Database:    database,
		User:        o.Username,
		Password:    o.Password,
		ClientName:  "edge",
		Compression: compression,
		Dialer:      o.Dialer,
		TLS:         o.TLS,
		DialTimeout: 5 * time.Second,
		// A server that accepts and then says nothing (starting, or hung)
		// must not hold a caller for ch-go's five minutes.
		HandshakeTimeout: 10 * time.Second,
		// ch-go looks at a cancelled context between reads of this length.
		ReadTimeout: time.Second,
		Settings:    wholeAnswers,
	}
}

// wholeAnswers are for a user whose profile has the server leave out what is beyond a
// limit: a total would be short, and a sink would take what it has stored for missing.
var wholeAnswers = []ch.Setting{
	{Key: "timeout_overflow_mode", Value: "throw", Important: true},
	{Key: "read_overflow_mode", Value: "throw", Important: true},
	{Key: "read_overflow_mode_leaf", Value: "throw", Important: true},
	{Key: "result_overflow_mode", Value: "throw", Important: true},
	{Key: "group_by_overflow_mode", Value: "throw", Important: true},
	{Key: "sort_overflow_mode", Value: "throw", Important: true},
	{Key: "distinct_overflow_mode", Value: "throw", Important: true},
	{Key: "set_overflow_mode", Value: "throw", Important: true},
	{Key: "join_overflow_mode", Value: "throw", Important: true},
}

// Pool is a bounded set of connections, dialed when first needed. All methods
// may be called from any goroutine.
type Pool struct {
	pool *chpool.Pool
	opts Options
}

// Open returns a pool without connecting: a database that is down or not yet
// migrated is an error of the first query, not of start-up.
func Open(o Options) (*Pool, error) {
	maxConns := o.MaxConns
	if maxConns == 0 {
		maxConns = 8
	}
	p, err := chpool.New(context.Background(), chpool.Options{
		ClientOptions:   o.client(o.Database),
		MaxConns:        int32(maxConns),
		MaxConnIdleTime: time.Minute,
	})
	if err != nil {
		return nil, fmt.Errorf("open pool for %s: %w", o.Addr, err)
	}
	return &Pool{pool: p, opts: o}, nil
}

// Do runs one query. A connection that broke is not used again. A query that
// only reads and finds its idle connection closed by the server (restarted, or
// tired of waiting) is run once more, on a new connection because the next idle
// one would be as dead; but never when OnResult has seen a row, which it would
// see twice.
func (p *Pool) Do(ctx context.Context, q ch.Query) error {
	answered := false
	if onResult := q.OnResult; onResult != nil {
		q.OnResult = func(ctx context.Context, b proto.Block) error {
			answered = true
			return onResult(ctx, b)
		}
	}
	c, err := p.pool.Acquire(ctx)
	if err != nil {
		return p.connectError(err)
	}
	if err = c.Do(ctx, q); err == nil {
		c.Release()
		return nil
	}
	// After an error ch-go may have half a query on the wire.
	_ = c.Close()
	if answered || !hungUp(err) || !isRead(q) || ctx.Err() != nil {
		return err
	}
	fresh, err := p.Dial(ctx)
	if err != nil {
		return err
	}
	defer fresh.Close()
	return fresh.Do(ctx, q)
}

func (p *Pool) connectError(err error) error {
	return fmt.Errorf("connect to ClickHouse at %s: %w", p.opts.Addr, err)
}

// Exec runs a statement that answers no rows.
func (p *Pool) Exec(ctx context.Context, sql string) error {
	return p.Do(ctx, ch.Query{Body: sql})
}

// Ping dials or borrows a connection and waits for the server's Pong.
func (p *Pool) Ping(ctx context.Context) error {
	c, err := p.pool.Acquire(ctx)
	if err != nil {
		return p.connectError(err)
	}
	if err := c.Ping(ctx); err != nil {
		_ = c.Close()
		return fmt.Errorf("ping ClickHouse at %s: %w", p.opts.Addr, err)
	}
	c.Release()
	return nil
}

// Dial opens a connection of the caller's own, outside the pool.
func (p *Pool) Dial(ctx context.Context) (*ch.Client, error) {
	c, err := ch.Dial(ctx, p.opts.client(p.opts.Database))
	if err != nil {
		return nil, p.connectError(err)
	}
	return c, nil
}

// Compressed tells whether blocks are compressed on their way.
func (p *Pool) Compressed() bool { return p.opts.Compress }

// InUse is how many connections queries hold, or are about to when they are there.
func (p *Pool) InUse() int {
	s := p.pool.Stat()
	return int(s.AcquiredResources() + s.ConstructingResources())
}

// Close closes every connection and waits for queries that hold one.
func (p *Pool) Close() { p.pool.Close() }

// Code returns the ClickHouse error code in err, or 0.
func Code(err error) int {
	if e, ok := ch.AsException(err); ok {
		return int(e.Code)
	}
	return 0
}

// hungUp reports whether err is the other side having closed the connection.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, ch.ErrClosed)
}

func isRead(q ch.Query) bool {
	sql := strings.TrimSpace(q.Body)
	return len(q.Input) == 0 && (strings.HasPrefix(sql, "SELECT") || strings.HasPrefix(sql, "WITH"))
}

// Quote returns s as a SQL string literal. Everything that a literal could end
// or escape with is written as an escape.
func Quote(s string) string {
	b := make([]byte, 0, len(s)+2)
	b = append(b, '\'')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '\'', '\\':
			b = append(b, '\\', c)
		case 0:
			b = append(b, `\0`...)
		case '\n':
			b = append(b, `\n`...)
		default:
			b = append(b, c)
		}
	}
	return string(append(b, '\''))
}

// Strings runs a query of one String column and returns its rows.
func (p *Pool) Strings(ctx context.Context, sql string) ([]string, error) {
	var col proto.ColStr
	var out []string
	err := p.Do(ctx, ch.Query{
		Body:   sql,
		Result: proto.Results{{Data: &col}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range col.Rows() {
				out = append(out, col.Row(i))
			}
			return nil
		},
	})
	return out, err
}
