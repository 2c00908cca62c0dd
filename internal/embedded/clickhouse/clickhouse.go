// Package clickhouse is the ClickHouse of a single-machine edge: the engine as
// a library (libchdb) with a server in front that speaks ClickHouse's native
// TCP protocol, so that ch-go, clickhouse-go and every other client talk to it
// as to any ClickHouse, and the rest of edge cannot tell the difference.
//
// Two processes. The library replaces signal handlers, runs its own threads,
// cannot be unloaded, and takes its process with it when it crashes or runs out
// of memory. Ingestion must survive that, so the engine lives in a child
// process, the same binary started again: Run is the child's body, StartChild
// the parent's side. The parent makes the listening socket and hands it down,
// and so still owns it when the child dies: connections made meanwhile wait in
// the backlog for the next child instead of being refused. A pipe nobody writes
// to ties the lives together: its end tells the child that the parent is gone,
// kill -9 included.
//
// One session with the engine per connection keeps USE, SET and temporary
// tables apart. The library reads and writes the Native format of protocol
// revision 0; the server re-frames blocks between that and the client's
// revision without decoding values (block.go). A block on the wire has no
// length, so it is walked by its types, and what the walk passes goes on in
// large spans: from the socket into an anonymous file the engine reads an
// INSERT from, and from the engine's memory to the socket for a SELECT.
//
// An INSERT reaches the engine only after the client has said that all its rows
// are sent, as one statement over one file: the client that dies half-way has
// written nothing, and one block of up to 1,048,449 rows becomes one block in
// the engine. Bytes from the wire are untrusted: a length never sizes an
// allocation, offsets and dictionary indexes are checked before the engine
// trusts them, and a malformed packet or a panic ends its connection only.
package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Config is what the child serves. The zero value of a field but Dir means its
// default.
type Config struct {
	// Dir holds the data; it must be absolute: the engine's fsync of a
	// directory fails on a relative path.
	Dir string

	User     string // default "default"
	Password string

	// MaxInsertBytes bounds one INSERT in memory (default 512 MiB): the largest
	// block a client should send, 1,048,449 rows, at 500 bytes each.
	MaxInsertBytes int64
	// MaxBufferedBytes bounds all of them together (default twice as much).
	MaxBufferedBytes int64
	// MaxConnections bounds the sessions (default 256). Each costs half a
	// megabyte, and a thread while a query runs. There may be twice as many
	// connections, those included that are on their way to becoming one.
	MaxConnections int
	// MaxMemory is the engine's own limit; 0 is half of the machine's memory,
	// or of the cgroup's.
	MaxMemory int64

	// Drain is how long queries may go on after the end was asked for, before
	// they are killed (default 5 s).
	Drain time.Duration
	// Lifeline, as ListenerFromParent returns it, ends Run when the parent dies.
	Lifeline *os.File
	// Serving, if there is one, is called when the directory is locked and the engine
	// open: from then on clients are answered.
	Serving func()
	// Log takes what the server has to say; slog.Default() when nil.
	Log *slog.Logger
}

func (c *Config) setDefaults() error {
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("data directory %q is not an absolute path", c.Dir)
	}
	if c.User == "" {
		c.User = "default"
	}
	if c.MaxInsertBytes <= 0 {
		c.MaxInsertBytes = 512 << 20
	}
	if c.MaxBufferedBytes <= 0 {
		c.MaxBufferedBytes = 2 * c.MaxInsertBytes
	}
	if c.MaxConnections <= 0 {
		c.MaxConnections = 256
	}
	if c.Drain <= 0 {
		c.Drain = 5 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}

// Run is the child's body: it opens the engine on cfg.Dir, serves ln until ctx
// ends or the lifeline breaks, and closes the engine. It owns its process: the
// working directory moves to an empty one, where a relative file name in a
// query finds nothing, and the library stays loaded afterwards.
func Run(ctx context.Context, cfg Config, ln net.Listener) error {
	defer ln.Close()
	if err := cfg.setDefaults(); err != nil {
		return fmt.Errorf("embedded ClickHouse: %w", err)
	}
	if err := run(ctx, cfg, ln); err != nil {
		return fmt.Errorf("embedded ClickHouse in %s: %w", cfg.Dir, err)
	}
	return nil
}

func run(ctx context.Context, cfg Config, ln net.Listener) error {
	ctx, end := context.WithCancelCause(ctx)
	stop := func() { end(nil) }
	defer stop()
	if cfg.Lifeline != nil {
		go func() {
			// The parent never writes, so a read returns when it is gone.
			_, _ = cfg.Lifeline.Read(make([]byte, 1))
			stop()
		}()
	}
	path, err := FindLibrary()
	if err == nil {
		path, err = filepath.Abs(path) // prepareDir goes to another directory
	}
	if err != nil {
		return err
	}
	lock, err := lockDir(ctx, cfg.Log, cfg.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	argv, err := prepareDir(&cfg)
	if err != nil {
		return err
	}
	lib, err := loadLibrary(path)
	if err != nil {
		return err
	}
	eng, err := openEngine(lib, argv)
	if err != nil {
		return err
	}
	srv := &server{cfg: cfg, log: cfg.Log, eng: eng, end: end}
	if err := srv.readVersion(); err != nil {
		eng.close()
		return err
	}
	if cfg.Serving != nil {
		cfg.Serving()
	}
	if err := srv.serve(ctx, ln); err != nil {
		// A session still inside the engine: closing under it would crash, and
		// ending the process is as safe as any kill.
		return err
	}
	if err := context.Cause(ctx); errors.Is(err, errNotWritten) {
		return err // and leave the files alone
	}
	eng.close()
	return nil
}

// errBusy is lockDir's reason when another process keeps the directory.
var errBusy = errors.New("another process is using the directory")
