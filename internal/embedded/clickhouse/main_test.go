package clickhouse

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
)

// The test binary, started again with childEnv set, plays `edge clickhouse`.
const childEnv = "EDGE_TEST_CLICKHOUSE_DIR"

func TestMain(m *testing.M) {
	roles := map[string]func(string) int{childEnv: childMain, middleEnv: middleMain, panicEnv: panicMain}
	for env, role := range roles {
		if arg := os.Getenv(env); arg != "" {
			os.Exit(role(arg))
		}
	}
	m.Run()
}

func childMain(dir string) int {
	ln, lifeline, ok := ListenerFromParent()
	if !ok {
		fmt.Fprintln(os.Stderr, "no listener from the parent")
		return 2
	}
	// So that a limit on file sizes is an error of write(2) and no more.
	signal.Ignore(syscall.SIGXFSZ)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	level := slog.LevelWarn
	if os.Getenv("EDGE_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	cfg := Config{Dir: dir, Password: os.Getenv("EDGE_TEST_PASSWORD"), Lifeline: lifeline, Drain: 300 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))}
	cfg.MaxInsertBytes, _ = strconv.ParseInt(os.Getenv("EDGE_TEST_MAX_INSERT"), 10, 64)
	cfg.MaxConnections, _ = strconv.Atoi(os.Getenv("EDGE_TEST_MAX_CONNECTIONS"))
	cfg.MaxMemory, _ = strconv.ParseInt(os.Getenv("EDGE_TEST_MAX_MEMORY"), 10, 64)
	if err := Run(ctx, cfg, ln); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// needLibrary skips a test where libchdb is not installed.
func needLibrary(t testing.TB) string {
	t.Helper()
	path, err := FindLibrary()
	if err != nil {
		if os.Getenv("EDGE_REQUIRE_ENGINE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return path
}

// testLog writes the child's output to the test's log.
func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// startChild starts a server on dir (a fresh directory when empty).
func startChild(t testing.TB, dir string, env ...string) *Child {
	t.Helper()
	return startChildOn(t, dir, "", testLog(t), env...)
}

func startChildOn(t testing.TB, dir, listen string, log *slog.Logger, env ...string) *Child {
	t.Helper()
	lib := needLibrary(t)
	if dir == "" {
		dir = filepath.Join(t.TempDir(), "data")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child, err := StartChild(t.Context(), ChildConfig{
		Command: []string{exe},
		Env:     append([]string{childEnv + "=" + dir, "CHDB_LIBRARY=" + lib}, env...),
		Listen:  listen,
		Log:     log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := child.Close(ctx); err != nil {
			t.Errorf("close the child: %v", err)
		}
	})
	return child
}

func dial(t testing.TB, child *Child, change ...func(*ch.Options)) *ch.Client {
	t.Helper()
	opt := ch.Options{Dialer: child, ReadTimeout: time.Minute} // an engine that starts is slow on a busy machine
	for _, f := range change {
		f(&opt)
	}
	c, err := ch.Dial(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func do(t testing.TB, c *ch.Client, sql string) {
	t.Helper()
	if err := c.Do(t.Context(), ch.Query{Body: sql}); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}
