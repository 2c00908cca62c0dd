package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"edge/internal/clickhouse"
	embedded "edge/internal/embedded/clickhouse"
	"edge/migrations"
)

// The test binary, started again with childEnv set, plays `edge clickhouse`.
const childEnv = "EDGE_TEST_QUERY_CLICKHOUSE_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := serveEngine(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if err := server.stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func serveEngine(dir string) error {
	ln, lifeline, ok := embedded.ListenerFromParent()
	if !ok {
		return errors.New("no listener from the parent")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return embedded.Run(ctx, embedded.Config{Dir: dir, Lifeline: lifeline, Drain: time.Second}, ln)
}

// server is the one engine of this package's tests, started by the first that
// needs it: a start costs seconds. Tests keep apart by database.
var server engineServer

type engineServer struct {
	once  sync.Once
	dir   string
	child *embedded.Child
	err   error
}

func (s *engineServer) start(lib string) {
	if s.dir, s.err = os.MkdirTemp("", "edge-query-"); s.err != nil {
		return
	}
	var exe string
	if exe, s.err = os.Executable(); s.err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s.child, s.err = embedded.StartChild(ctx, embedded.ChildConfig{
		Command: []string{exe},
		Env:     []string{childEnv + "=" + filepath.Join(s.dir, "data"), "CHDB_LIBRARY=" + lib},
		Log:     slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
}

func (s *engineServer) stop() error {
	var err error
	if s.child != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err = s.child.Close(ctx)
	}
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}

// openDatabase returns a pool on a migrated, empty database of the test's own, which
// goes with the test.
func openDatabase(t *testing.T, name string) *clickhouse.Pool {
	t.Helper()
	pool := keptDatabase(t, name)
	t.Cleanup(func() {
		if err := pool.Exec(context.Background(), "DROP DATABASE "+name+" SYNC"); err != nil {
			t.Error(err)
		}
	})
	return pool
}

// keptDatabase is openDatabase of one that is there again when it is asked for again,
// filled.
func keptDatabase(t testing.TB, name string) *clickhouse.Pool {
	t.Helper()
	lib, err := embedded.FindLibrary()
	if err != nil {
		if os.Getenv("EDGE_REQUIRE_ENGINE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	server.once.Do(func() { server.start(lib) })
	if server.err != nil {
		t.Fatal(server.err)
	}
	pool, err := clickhouse.Open(migrate(t, name, clickhouse.MigrateOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// migrate lays down the schema of a database as m says, and returns how to open it.
func migrate(t testing.TB, name string, m clickhouse.MigrateOptions) clickhouse.Options {
	t.Helper()
	o := clickhouse.Options{Addr: "embedded", Database: name, Dialer: server.child}
	m.Files, m.Exclusive, m.Logger = migrations.FS, true, slog.New(slog.NewTextHandler(io.Discard, nil))
	if err := clickhouse.Migrate(context.Background(), o, m); err != nil {
		t.Fatal(err)
	}
	return o
}
