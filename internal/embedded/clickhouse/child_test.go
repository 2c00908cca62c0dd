package clickhouse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
)

func TestKilledChildIsRestartedWithItsData(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (n UInt64) ENGINE=MergeTree ORDER BY n")
	do(t, c, "INSERT INTO t SELECT number FROM numbers(1000)")
	for kills := uint64(1); kills <= 2; kills++ {
		old := child.Pid()
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := c.Ping(t.Context()); err == nil {
			t.Error("a connection to a killed child still answers")
		}
		// No waiting here: the new connection waits in the backlog.
		c = dial(t, child)
		if got := value(t, c, "(SELECT count() FROM t)"); got != "1000" {
			t.Errorf("got %s rows; want 1000", got)
		}
		if got := child.Restarts(); got != kills {
			t.Errorf("got %d restarts; want %d", got, kills)
		}
		if child.Pid() == old || child.Pid() == 0 {
			t.Errorf("the child's process is %d, as before", child.Pid())
		}
	}
}

func TestChildThatAnotherStopsSaysSo(t *testing.T) {
	var logged bytes.Buffer
	child := startChildOn(t, "", "", slog.New(slog.NewTextHandler(&logged, nil)))
	old := child.Pid()
	if err := syscall.Kill(old, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another child runs", func() bool { return child.Pid() != old && child.Pid() != 0 })
	if err := child.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(logged.String(), "edge had not told it to stop") {
		t.Errorf("the log does not say why the child ended:\n%s", &logged)
	}
}

func TestCloseKeepsTheData(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	child := startChild(t, dir)
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (n UInt64) ENGINE=MergeTree ORDER BY n")
	do(t, c, "CREATE TABLE dropped (n UInt64) ENGINE=MergeTree ORDER BY n")
	do(t, c, "INSERT INTO t SELECT number FROM numbers(1000)")
	do(t, c, "INSERT INTO dropped SELECT number FROM numbers(1000)")
	stored := value(t, c, "(SELECT arrayElement(data_paths, 1) FROM system.tables WHERE name='dropped')")
	do(t, c, "DROP TABLE dropped")
	if _, err := os.Stat(stored); err != nil {
		t.Fatalf("the path of a table: %v", err)
	}
	if err := child.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if child.Pid() != 0 {
		t.Errorf("process %d is left", child.Pid())
	}
	again := startChild(t, dir)
	if got := value(t, dial(t, again), "(SELECT count() FROM t)"); got != "1000" {
		t.Errorf("got %s rows; want 1000", got)
	}
	if _, err := os.Stat(stored); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a dropped table's data is still there: %v", err)
	}
}

func TestCloseDoesNotWaitForAnEndlessQuery(t *testing.T) {
	child := startChild(t, "")
	c, other := dial(t, child), dial(t, child)
	done := make(chan error, 1)
	go func() { done <- other.Do(t.Context(), ch.Query{Body: endless, OnResult: ignore}) }()
	eventually(t, "the query runs", func() bool { return running(t, c, "SELECT sleep%") == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if err := child.Close(ctx); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("a query that was cut off succeeded")
	}
}

func TestTwoChildrenCannotShareADirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	startChild(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if f, err := lockDir(ctx, testLog(t), dir); err == nil {
		f.Close()
		t.Fatal("locked a directory that is in use")
	}
}

func TestChildThatCannotStartIsAnError(t *testing.T) {
	f := func(want string, cfg ChildConfig) {
		t.Helper()
		cfg.Log = testLog(t)
		child, err := StartChild(t.Context(), cfg)
		if err == nil {
			t.Errorf("the child started: %v", child.Close(t.Context()))
			return
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v; want %q", err, want)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f("no command", ChildConfig{})
	f("no such file", ChildConfig{Command: []string{"/nonexistent/edge"}})
	f("no such file", ChildConfig{Command: []string{exe}, Env: []string{childEnv + "=" + t.TempDir(), "CHDB_LIBRARY=/nonexistent"}})
	f("not an absolute path", ChildConfig{Command: []string{exe}, Env: []string{childEnv + "=relative"}})
}

func TestTCPListener(t *testing.T) {
	child := startChildOn(t, "", "127.0.0.1:0", testLog(t))
	host, _, err := net.SplitHostPort(child.address)
	if err != nil || host != "127.0.0.1" {
		t.Fatalf("got address %q", child.address)
	}
	c, err := ch.Dial(t.Context(), ch.Options{Address: child.address})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := value(t, c, "1"); got != "1" {
		t.Errorf("got %q; want 1", got)
	}
}

// The middle process starts a child and is killed; the child must go too.
const middleEnv = "EDGE_TEST_CLICKHOUSE_MIDDLE"

func middleMain(dir string) int {
	exe, err := os.Executable()
	if err != nil {
		return 1
	}
	child, err := StartChild(context.Background(), ChildConfig{Command: []string{exe}, Env: []string{childEnv + "=" + dir, middleEnv + "="}, Listen: "127.0.0.1:0"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(child.Pid(), child.address)
	select {}
}

// startMiddle starts one, and returns its child's process and address.
func startMiddle(t *testing.T, dir string) (middle *exec.Cmd, pid int, addr string) {
	t.Helper()
	lib := needLibrary(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	middle = exec.Command(exe)
	middle.Env = append(os.Environ(), middleEnv+"="+dir, "CHDB_LIBRARY="+lib)
	middle.Stderr = t.Output()
	out, err := middle.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := middle.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanln(out, &pid, &addr); err != nil {
		t.Fatalf("the middle process did not say which its child is: %v", err)
	}
	return middle, pid, addr
}

func kill(t *testing.T, middle *exec.Cmd) {
	t.Helper()
	if err := middle.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = middle.Wait()
}

func TestChildEndsWithItsKilledParent(t *testing.T) {
	middle, pid, _ := startMiddle(t, filepath.Join(t.TempDir(), "data"))
	kill(t, middle)
	eventually(t, "the child has ended", func() bool { return ended(pid) })
}

// An edge that is started again at once finds the engine of the one that was killed still
// dying, with its directory and its port.
func TestChildWaitsForADyingOne(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	middle, pid, addr := startMiddle(t, dir)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	kill(t, middle)
	time.AfterFunc(200*time.Millisecond, func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	if child := startChildOn(t, dir, addr, testLog(t)); child.address != addr {
		t.Errorf("a child serves on %s; want %s", child.address, addr)
	}
	// It gives the directory back before it ends.
	eventually(t, "the one before has ended", func() bool { return ended(pid) })
}

// What looks like a hang is a wait for somebody else, who has a name.
func TestWaitForWhatIsInUseIsLogged(t *testing.T) {
	f := func(name string, start func(context.Context, *slog.Logger) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var logged bytes.Buffer
		log := slog.New(slog.NewTextHandler(io.MultiWriter(&logged, writerFunc(cancel)), nil))
		err := start(ctx, log)
		if !errors.Is(err, context.Canceled) || strings.Count(logged.String(), "\n") != 1 || !strings.Contains(logged.String(), name) {
			t.Errorf("%s in use: got %v and the log %q; want one line before the context ends", name, err, &logged)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f(ln.Addr().String(), func(ctx context.Context, log *slog.Logger) error {
		_, err := StartChild(ctx, ChildConfig{Command: []string{"true"}, Listen: ln.Addr().String(), Log: log})
		return err
	})
	dir := t.TempDir()
	lock, err := lockDir(t.Context(), testLog(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	f(filepath.Join(dir, "LOCK"), func(ctx context.Context, log *slog.Logger) error {
		_, err := lockDir(ctx, log, dir)
		return err
	})
}

// writerFunc is called for every write.
type writerFunc func()

func (f writerFunc) Write(p []byte) (int, error) {
	f()
	return len(p), nil
}

// ended reports whether a process is gone; a zombie, which nobody may reap in a
// container without init, is gone too.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z")
}

// What killed processes left goes at a later start: not what somebody listens on, nor what
// somebody may be about to.
func TestLeftSocketsAreRemoved(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "left") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := func(name string, age time.Duration, listens bool) string {
		t.Helper()
		path := filepath.Join(dir, socketDir+name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(path, "native.sock")})
		if err != nil {
			t.Fatal(err)
		}
		if ln.SetUnlinkOnClose(false); listens {
			t.Cleanup(func() { ln.Close() })
		} else {
			ln.Close()
		}
		then := time.Now().Add(-age)
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
		return path
	}
	dead, young, alive := socket("1", time.Hour, false), socket("2", time.Second, false), socket("3", time.Hour, true)
	removeLeftSockets(dir)
	for path, want := range map[string]bool{dead: false, young: true, alive: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s is there: %t; want %t", path, err == nil, want)
		}
	}
}
