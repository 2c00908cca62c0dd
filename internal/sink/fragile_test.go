package sink

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	engine "edge/internal/embedded/clickhouse"
)

// shim compiles testdata/crash.c. The engine's library calls libc by name, so
// preloading works, and the program around it may well be built without cgo.
func shim(t testing.TB) string {
	t.Helper()
	needLibrary(t)
	so := filepath.Join(t.TempDir(), "crash.so")
	out, err := exec.CommandContext(t.Context(), "gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", so, "testdata/crash.c", "-ldl").CombinedOutput()
	switch {
	case err == nil:
		return so
	case errors.Is(err, exec.ErrNotFound) && os.Getenv("EDGE_REQUIRE_CRASH") != "1":
		t.Skip("crash points need a small C library, and there is no gcc to build it")
	default:
		t.Fatalf("build testdata/crash.c: %v\n%s", err, out)
	}
	return ""
}

// fragile is an engine that dies or fails at a chosen call.
type fragile struct {
	*engine.Child
	plan string // the file that testdata/crash.c follows
}

func startFragile(t testing.TB, so string) *fragile {
	t.Helper()
	dir := t.TempDir()
	plan := filepath.Join(dir, "plan")
	return &fragile{engineOn(t, filepath.Join(dir, "data"), "LD_PRELOAD="+so, "CRASH_PLAN="+plan), plan}
}

// engineOn starts an engine on dir with more environment for the test.
func engineOn(t testing.TB, dir string, env ...string) *engine.Child {
	t.Helper()
	lib, err := engine.FindLibrary()
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child, err := engine.StartChild(t.Context(), engine.ChildConfig{
		Command: []string{exe},
		Env:     append(env, childEnv+"="+dir, "CHDB_LIBRARY="+lib),
		Log:     slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := child.Close(ctx); err != nil {
			t.Errorf("close the engine: %v", err)
		}
	})
	return child
}

// arm makes the engine follow plan from its next call on.
func (f *fragile) arm(t testing.TB, plan string) {
	t.Helper()
	whole := f.plan + ".whole"
	if err := os.WriteFile(whole, []byte(plan), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(whole, f.plan); err != nil {
		t.Fatal(err)
	}
}

func (f *fragile) disarm() { os.Remove(f.plan) }

// restart kills the engine and waits until the next one is started.
func (f *fragile) restart(t testing.TB) {
	t.Helper()
	before, pid := f.Restarts(), f.Pid()
	if err := syscall.Kill(pid, syscall.SIGKILL); pid == 0 || err != nil {
		t.Fatalf("kill engine %d: %v", pid, err)
	}
	eventually(t, "the engine starts again", func() error {
		if f.Restarts() == before {
			return errCut
		}
		return nil
	})
}

// struck returns the calls that the plan has struck so far: "kill 12 write …".
func (f *fragile) struck() []string {
	text, err := os.ReadFile(f.plan + ".log")
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}
