//go:build linux

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestReload holds when files are read again: when one changes, whichever way,
// and on a signal; once for a change, also when it cannot be used.
func TestReload(t *testing.T) {
	path := writeFile(t, filepath.Join(t.TempDir(), "keys"), "one")
	second := writeFile(t, filepath.Join(t.TempDir(), "second"), "two")
	synctest.Test(t, func(t *testing.T) {
		var log lockedLog
		var loads atomic.Int64
		var broken atomic.Bool
		var rs reloads
		r := &reload{name: "KEYS_FILE", paths: []string{path, second}, load: func() error {
			loads.Add(1)
			if broken.Load() {
				return errors.New("line 3: want scope, id, SHA-256 and perhaps a rate")
			}
			return nil
		}}
		if err := rs.add(r); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		hangup, done := make(chan os.Signal), make(chan struct{})
		go func() {
			defer close(done)
			rs.run(ctx, hangup, slog.New(slog.NewTextHandler(&log, nil)))
		}()
		f := func(what string, want int, change func()) {
			t.Helper()
			loads.Store(0)
			change()
			for range 5 {
				<-time.After(reloadEvery)
				synctest.Wait()
			}
			if got := loads.Load(); got != int64(want) {
				t.Errorf("%s: read %d times; want %d", what, got, want)
			}
		}
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		f("nothing", 0, func() {})
		f("replaced", 1, func() { writeFile(t, path, "one") })
		f("written in place", 1, func() { check(os.WriteFile(path, []byte("more"), 0o600)) })
		f("touched", 1, func() { check(os.Chtimes(path, time.Time{}, time.Now().Add(time.Minute))) })
		f("the second of two", 1, func() { writeFile(t, second, "2") })
		f("away", 1, func() { check(os.Remove(path)) })
		f("back", 1, func() { writeFile(t, path, "one") })
		// As Kubernetes mounts a secret: the name is a link that is pointed elsewhere.
		f("link", 1, func() { check(os.Remove(path)); check(os.Symlink(second, path)) })
		f("signal", 1, func() { hangup <- syscall.SIGHUP })
		if strings.Contains(log.String(), "ERROR") {
			t.Errorf("got an error in the log:\n%s", log.String())
		}
		broken.Store(true)
		f("broken", 1, func() { writeFile(t, second, "broken") })
		if got := log.String(); strings.Count(got, "level=ERROR") != 1 || !strings.Contains(got, "setting=KEYS_FILE") || !strings.Contains(got, "line 3") {
			t.Errorf("want one error that names the setting and says why:\n%s", got)
		}
		if ok, bad := r.ok.Load(), r.bad.Load(); ok != 8 || bad != 1 {
			t.Errorf("counted %d good and %d bad; want 8 and 1", ok, bad)
		}
		cancel()
		<-done
	})
}
