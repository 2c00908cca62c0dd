//go:build linux

package main

import (
	"math/rand/v2"
	"testing"
	"time"

	"edge/internal/chaos"
)

// SIGKILL of the whole process at random moments under load: everything that
// was answered 202 is stored once, and so is everything that was sent twice.
func TestSIGKILLEdgeAtC1ToC4(t *testing.T) {
	needEngine(t)
	n := chaos.Rounds(6, 200)
	p := newNode(t, "DATA_DIR", t.TempDir(), "FLUSH_INTERVAL", "20ms")
	l := &promises{promised: make(map[string]struct{})}
	stop := make(chan struct{})
	p.start()
	p.ready()
	wg := l.load(func() string { return "http://" + p.public }, 4, stop)
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	var worst time.Duration
	for range n {
		<-time.After(50*time.Millisecond + time.Duration(rng.IntN(1450))*time.Millisecond)
		p.kill()
		began := time.Now()
		p.start()
		p.ready()
		worst = max(worst, time.Since(began))
	}
	close(stop)
	wg.Wait()
	lost, twice := checkLedger(t, p, l)
	p.terminate()
	chaos.Report(t, chaos.Result{Fault: "SIGKILL of edge and its engine, embedded", Rounds: n,
		Accepted: len(l.promised), Lost: lost, Duplicated: twice, Worst: worst})
}

// checkLedger compares what clients were promised with what is stored.
func checkLedger(t *testing.T, p *node, l *promises) (lost, twice int) {
	t.Helper()
	r := p.verify(int64(len(l.promised)))
	if r.Mismatched != 0 || r.Users != 0 || len(r.Problems) != 0 {
		t.Errorf("it does not add up: %s\n%s", r.text, p.tail(40))
	}
	var rows int64
	for _, c := range r.Partitions {
		rows += c.Rows
		if c.Missing != 0 || c.Extra != 0 {
			t.Errorf("missing %d, extra %d: %s", c.Missing, c.Extra, r.text)
		}
	}
	// Every id that was promised is one row; an id whose request was cut off
	// may be one too.
	if promised := int64(len(l.promised)); rows < promised || rows > promised+l.sent.Load() {
		t.Errorf("%d ids were promised; %d rows are stored", promised, rows)
	}
	lost, twice = storedIDs(t, p.engine, l)
	if lost != 0 || twice != 0 {
		t.Errorf("of %d promised ids %d are missing and %d are stored more than once\n%s", len(l.promised), lost, twice, p.tail(40))
	}
	if len(l.promised) == 0 {
		t.Error("nothing was accepted: the test proved nothing")
	}
	t.Logf("%d ids promised, %d rows, %d requests refused or cut off", len(l.promised), rows, l.refused.Load())
	return lost, twice
}
