//go:build linux

package main

import (
	"syscall"
	"testing"
	"time"
)

// SIGTERM under load: what was promised is stored, the process ends by itself
// with status 0, and the next start has nothing to recover.
func TestSIGTERM(t *testing.T) {
	needEngine(t)
	p := newNode(t, "DATA_DIR", t.TempDir())
	p.start()
	p.ready()
	l := &promises{promised: make(map[string]struct{})}
	stop := make(chan struct{})
	wg := l.load(func() string { return "http://" + p.public }, 4, stop)
	within(t, time.Minute, "events are accepted", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		return atLeast(len(l.promised), 2000)
	}, p.process)
	p.terminate()
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
