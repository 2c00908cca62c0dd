//go:build linux

package child

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestStatTime(t *testing.T) {
	f := func(line string, want time.Duration) {
		t.Helper()
		if got := statTime([]byte(line)); got != want {
			t.Errorf("%q: got %v; want %v", line, got, want)
		}
	}
	f("12 (edge) S 1 12 12 0 -1 4194560 100 0 0 0 250 50 7 3 20 0 9 0 1", 3*time.Second)
	f("12 (a ) b) c) S 1 12 12 0 -1 4194560 100 0 0 0 1 2 7 3 20 0 9 0 1", 30*time.Millisecond)
	f("12 (edge) S 1", 0)
	f("", 0)
}

func TestStatusBytes(t *testing.T) {
	text := []byte("Name:\tedge\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
	if rss, peak := statusBytes(text, "VmRSS:"), statusBytes(text, "VmHWM:"); rss != 1<<20 || peak != 2<<20 {
		t.Errorf("got %d and %d", rss, peak)
	}
	if statusBytes(text, "VmSwap:") != 0 {
		t.Error("a line that is not there has a value")
	}
}

func start(t *testing.T, script string) *Process {
	t.Helper()
	p, err := Start(Command{Name: "shell", Args: []string{"sh", "-c", script}, Env: []string{"GREETING=hello"}, Log: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func TestProcessStopsWhenAsked(t *testing.T) {
	p := start(t, `trap 'exit 0' TERM; echo "$GREETING"; while :; do read -r line < /dev/null; done`)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.Await(ctx, func() error {
		if p.Tail() != "hello" || CPU(p.Pid()) == 0 || Ran(p.Pid()) < tick/2 {
			return errors.New("not yet")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if now, peak := Memory(p.Pid()); now <= 0 || peak < now {
		t.Errorf("resident %d, at most %d", now, peak)
	}
	if p.Asked() {
		t.Error("nobody has asked it to end yet")
	}
	if err := p.Stop(); err != nil || !p.Asked() {
		t.Errorf("%v; asked: %v", err, p.Asked())
	}
	if CPU(p.Pid()) != 0 || Ran(p.Pid()) != 0 {
		t.Error("a process that has ended uses processor time")
	}
}

func TestProcessThatEndsBadlySaysSo(t *testing.T) {
	p := start(t, "echo no good; exit 3")
	err := p.Await(t.Context(), func() error { return errors.New("not ready") })
	if err == nil || !strings.Contains(err.Error(), "ended before it was ready") || !strings.Contains(err.Error(), "no good") {
		t.Errorf("got %v; want its end and its last words", err)
	}
	if err := p.Stop(); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v; want exit status 3", err)
	}
	if p.Asked() {
		t.Error("it ended by itself, and was asked to only after that")
	}
}

func TestChildren(t *testing.T) {
	p := start(t, "cat /dev/zero > /dev/null & wait")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var children []int
	if err := p.Await(ctx, func() error {
		if children = Children(p.Pid()); len(children) != 1 {
			return errors.New("no child yet")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if c, err := os.FindProcess(children[0]); err == nil {
		_ = c.Kill()
	}
	<-p.Ended()
}

func TestFreePortIsNeverTheSame(t *testing.T) {
	seen := make(map[string]bool)
	for range 20 {
		port, err := FreePort()
		if err != nil || seen[port] {
			t.Fatalf("port %s again, or %v", port, err)
		}
		seen[port] = true
	}
}
