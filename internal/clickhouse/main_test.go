package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	embedded "edge/internal/embedded/clickhouse"
	"edge/migrations"
)

// The test binary, started again with childEnv set, is the engine's process.
const childEnv = "EDGE_TEST_MIGRATE_CLICKHOUSE_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := serveEngine(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if err := stopServer(); err != nil {
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

// server is the one engine of all tests, started by the first that needs it:
// a start costs a second. Tests keep apart by database.
var server struct {
	once  sync.Once
	dir   string
	child *embedded.Child
	err   error
}

var databases atomic.Int64

// database returns options for a database that nobody else has.
func database(t testing.TB) Options {
	t.Helper()
	lib, err := embedded.FindLibrary()
	if err != nil {
		if os.Getenv("EDGE_REQUIRE_ENGINE") == "1" {
			t.Fatal(err)
		}
		t.Skip("no embedded engine: ", err)
	}
	server.once.Do(func() { server.err = startServer(lib) })
	if server.err != nil {
		t.Fatal(server.err)
	}
	return Options{Addr: "embedded", Database: fmt.Sprint("db", databases.Add(1)), Dialer: server.child}
}

func startServer(lib string) (err error) {
	if server.dir, err = os.MkdirTemp("", "edge-migrate-"); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server.child, err = embedded.StartChild(ctx, embedded.ChildConfig{
		Command: []string{exe},
		Env:     []string{childEnv + "=" + filepath.Join(server.dir, "data"), "CHDB_LIBRARY=" + lib},
		Log:     quiet,
	})
	return err
}

func stopServer() error {
	var err error
	if server.child != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err = server.child.Close(ctx)
	}
	if server.dir != "" {
		err = errors.Join(err, os.RemoveAll(server.dir))
	}
	return err
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func options() MigrateOptions { return MigrateOptions{Files: migrations.FS, Logger: quiet} }

func migrate(t testing.TB, o Options, m MigrateOptions) {
	t.Helper()
	if err := Migrate(testContext(t), o, m); err != nil {
		t.Fatal(err)
	}
}

// open returns a pool on o, whose database is created when absent.
func open(t testing.TB, o Options) *Pool {
	t.Helper()
	if o.Database != "" {
		if err := createDatabase(testContext(t), o, ""); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func exec(t testing.TB, p *Pool, sql string) {
	t.Helper()
	if err := p.Exec(testContext(t), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// row returns the one value of a query as text.
func row(t testing.TB, p *Pool, sql string) string {
	t.Helper()
	rows, err := p.Strings(testContext(t), "SELECT toString(assumeNotNull(("+sql+")))")
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if len(rows) != 1 {
		t.Fatalf("%s: %d rows", sql, len(rows))
	}
	return rows[0]
}

// connections counts what the pool dials.
type connections struct {
	engine *embedded.Child
	mu     sync.Mutex
	all    []net.Conn
}

func (d *connections) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := d.engine.DialContext(ctx, network, addr)
	if err == nil {
		d.mu.Lock()
		d.all = append(d.all, c)
		d.mu.Unlock()
	}
	return c, err
}

func (d *connections) dialed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.all)
}
