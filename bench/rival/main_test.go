package rival

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"edge/internal/clickhouse"
	embedded "edge/internal/embedded/clickhouse"
	"edge/migrations"
)

const topic = "events"

// This binary, started again, is the broker of the produce benchmarks, so that
// the processor time of this process is the client's alone, or the engine.
func TestMain(m *testing.M) {
	var err error
	switch {
	case os.Getenv("RIVAL_BROKER") != "":
		err = serveBroker()
	case os.Getenv("RIVAL_ENGINE") != "":
		err = serveEngine(os.Getenv("RIVAL_ENGINE"))
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serveBroker() error {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.BlackholeProduce(), kfake.SeedTopics(partitions, topic))
	if err != nil {
		return err
	}
	defer cluster.Close()
	fmt.Println(cluster.ListenAddrs()[0])
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the benchmark is gone
	return nil
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

// nullBroker starts a broker that acknowledges and throws away, in a process of
// its own, and returns its address.
func nullBroker(b *testing.B) string {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "RIVAL_BROKER=1")
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	if err1 != nil || err2 != nil {
		b.Fatal(err1, err2)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(line)
}

const database = "rival"

// engine starts ClickHouse with the schema and returns a pool and what dials.
func engine(b *testing.B) (*clickhouse.Pool, *embedded.Child) {
	b.Helper()
	lib, err := embedded.FindLibrary()
	if err != nil {
		if os.Getenv("EDGE_REQUIRE_ENGINE") == "1" {
			b.Fatal(err)
		}
		b.Skip("no embedded engine: ", err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	child, err := embedded.StartChild(b.Context(), embedded.ChildConfig{
		Command: []string{self}, Log: log,
		Env: []string{"RIVAL_ENGINE=" + filepath.Join(b.TempDir(), "data"), "CHDB_LIBRARY=" + lib},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := child.Close(ctx); err != nil {
			b.Error(err)
		}
	})
	o := clickhouse.Options{Addr: "(embedded)", Database: database, Username: "default", Dialer: child}
	if err := clickhouse.Migrate(b.Context(), o, clickhouse.MigrateOptions{Files: migrations.FS, Exclusive: true, Logger: log}); err != nil {
		b.Fatal(err)
	}
	pool, err := clickhouse.Open(o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	return pool, child
}
