//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// edge clickhouse says that it serves when it does, not while it waits for its directory.
func TestEngineSaysThatItServes(t *testing.T) {
	t.Parallel()
	needEngine(t)
	dir, addr := t.TempDir(), "127.0.0.1:"+freePort(t)
	if err := os.Mkdir(filepath.Join(dir, "clickhouse"), 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(dir, "clickhouse", "LOCK"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	p := spawn(t, "clickhouse", []string{"DATA_DIR", dir, "EMBEDDED_CLICKHOUSE_LISTEN", addr}, os.Args[0], "clickhouse")
	serving := `"msg":"engine serving","addr":"` + addr
	says := func(want string) func() error {
		return func() error {
			if log := p.tail(10); !strings.Contains(log, want) {
				return fmt.Errorf("the log is %q", log)
			}
			return nil
		}
	}
	within(t, time.Minute, "it waits", says("in use by another process"), p)
	if says(serving)() == nil {
		t.Error("it says that it serves, and waits for its directory")
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	within(t, time.Minute, "it serves", says(serving), p)
	p.terminate()
}
