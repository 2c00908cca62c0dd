//go:build linux

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// SIGTERM under load: /ready says so at once, requests are served for the
// PRESTOP_DELAY that a load balancer needs, what was promised is stored, the
// process ends by itself with status 0, and the next start has nothing to recover.
func TestSIGTERM(t *testing.T) {
	needEngine(t)
	p := newNode(t, "DATA_DIR", t.TempDir(), "PRESTOP_DELAY", "1s")
	p.start()
	p.ready()
	l := &promises{promised: make(map[string]struct{})}
	stop := make(chan struct{})
	wg := l.load(func() string { return "http://" + p.public }, 4, stop)
	accepted := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.promised)
	}
	within(t, time.Minute, "events are accepted", func() error { return atLeast(accepted(), 2000) }, p.process)
	p.signal(syscall.SIGTERM)
	began := time.Now()
	within(t, time.Second, "not ready any more", func() error {
		if p.isReady() == nil {
			return errStillReady
		}
		return nil
	}, p.process)
	before := accepted()
	within(t, time.Second, "events are accepted still", func() error { return atLeast(accepted(), before+1) }, p.process)
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		t.Fatal("edge did not stop within a minute")
	}
	if took := time.Since(began); took < time.Second || took > 25*time.Second {
		t.Errorf("edge stopped after %s; want between PRESTOP_DELAY and SHUTDOWN_TIMEOUT, 25 s", took)
	}
	close(stop)
	wg.Wait()
	if status := p.cmd.ProcessState.ExitCode(); status != 0 {
		t.Errorf("exit status %d; want 0\n%s", status, p.tail(40))
	}
	p.start()
	p.ready()
	checkLedger(t, p, l)
}

// A second signal ends at once, whatever is still being drained.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	needEngine(t)
	p := newNode(t, "DATA_DIR", t.TempDir(), "PRESTOP_DELAY", "10m")
	p.start()
	p.ready()
	p.signal(syscall.SIGTERM)
	within(t, time.Minute, "not ready any more", func() error {
		if p.isReady() == nil {
			return errStillReady
		}
		return nil
	}, p.process)
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		t.Fatal("edge drains on after a second signal")
	}
}

// An engine that hangs has a stop wait for it, and is killed in time for the broker: the
// next start is a clean one.
func TestStopWithAHungEngine(t *testing.T) {
	needEngine(t)
	p := newNode(t, "DATA_DIR", t.TempDir(), "SHUTDOWN_TIMEOUT", "2s")
	p.start()
	p.ready()
	engine := childOf(t, p.cmd.Process.Pid)
	if err := syscall.Kill(engine, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(engine, syscall.SIGCONT) }) // it is gone, as a rule
	// With this the sink waits for an answer, and holds a connection.
	if _, err := request(http.MethodPost, "http://"+p.public+"/events", "application/json", []byte(`{"event_name":"e","user_id":"u","timestamp":1708732800000}`), http.StatusAccepted); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p.terminate()
	if log := p.tail(40); !strings.Contains(log, "stop engine: ") || strings.Contains(log, "stop broker: ") {
		t.Errorf("want the engine's stop to fail, and not the broker's:\n%s", log)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the stop took %s; SHUTDOWN_TIMEOUT is 2s", took)
	}
	p.start()
	p.ready()
	text, err := request(http.MethodGet, "http://"+p.admin+"/metrics", "", nil, http.StatusOK)
	if err != nil || !strings.Contains(string(text), "\nedge_unclean_starts_total 0\n") {
		t.Errorf("the next start is not a clean one, or does not say: %v", err)
	}
}

// A stop whose time is up blames the part that took it, and no part that had nothing to do
// or that the process has not. With ACK=memory it ends with what is lost.
func TestStopThatTakesTooLong(t *testing.T) {
	cfg, err := loadConfig(map[string]string{
		"ROLES": "ingest", "ACK": "memory", "KAFKA_BROKERS": "127.0.0.1:" + freePort(t), "SHUTDOWN_TIMEOUT": "100ms",
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	ln := listeners{listen(t), listen(t)}
	go func() { done <- run(ctx, cfg, ln, slog.New(slog.DiscardHandler), new(slog.LevelVar)) }()
	events := []byte(`{"event_name":"e","user_id":"u","timestamp":1708732800000}` + "\n" + `{"event_name":"e","user_id":"u","timestamp":1708732800000}`)
	for range 2 {
		if _, err := request(http.MethodPost, "http://"+ln.public.Addr().String()+"/events/bulk", "application/x-ndjson", events, http.StatusAccepted); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	const end = "; 4 events that were answered 202 are lost"
	if err = <-done; err == nil || !strings.HasPrefix(err.Error(), "stop producer: flush ") || !strings.HasSuffix(err.Error(), end) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v; want that the producer could not flush, with %q, and no other part", err, end)
	}
}

// childOf returns the only child of a process.
func childOf(t *testing.T, parent int) (child int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		stat, _ := os.ReadFile(name) // it may be gone by now
		_, fields, _ := strings.Cut(string(stat), ") ")
		var state string
		var ppid int
		if _, err := fmt.Sscan(fields, &state, &ppid); err != nil || ppid != parent {
			continue
		}
		if child != 0 {
			t.Fatalf("process %d has several children", parent)
		}
		if child, err = strconv.Atoi(filepath.Base(filepath.Dir(name))); err != nil {
			t.Fatal(err)
		}
	}
	if child == 0 {
		t.Fatalf("process %d has no child", parent)
	}
	return child
}

// Where there is no file to read again SIGHUP stops in order, as SIGTERM does at any moment
// of a start.
func TestSIGHUPAndEarlySIGTERM(t *testing.T) {
	needEngine(t)
	p := newNode(t, "DATA_DIR", t.TempDir())
	ends := func(s syscall.Signal) {
		t.Helper()
		p.signal(s)
		select {
		case <-p.done:
		case <-time.After(time.Minute):
			t.Fatal("edge did not stop within a minute")
		}
		if status := p.cmd.ProcessState.ExitCode(); status != 0 {
			t.Fatalf("exit status %d after %s; want 0\n%s", status, s, p.tail(40))
		}
	}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it for edge, too
		p.start()
		p.ready()
		ends(syscall.SIGHUP)
	}
	p.start()
	within(t, time.Minute, "the admin listener answers, which is first", func() error {
		_, err := request(http.MethodGet, "http://"+p.admin+"/health", "", nil, http.StatusOK)
		return err
	}, p.process)
	ends(syscall.SIGTERM)
}
