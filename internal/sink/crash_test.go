package sink

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"edge/internal/chaos"
	"edge/internal/codec"
	engine "edge/internal/embedded/clickhouse"
)

// report leaves the line of a chaos test: what the ledger has and events has not.
func (l *lab) report(fault string, rounds int) {
	l.t.Helper()
	rows, distinct := 0, 0
	if _, err := fmt.Sscan(l.value("SELECT concat(toString(count()), ' ', toString(uniqExact(_part, _offset))) FROM events"), &rows, &distinct); err != nil {
		l.t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	chaos.Report(l.t, chaos.Result{Fault: fault, Rounds: rounds, Accepted: len(l.ledger), Lost: max(len(l.ledger)-distinct, 0), Duplicated: rows - distinct, Worst: l.worst})
}

// dice are random and say how to throw the same again.
func dice(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("EDGE_CHAOS_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("EDGE_CHAOS_SEED: %v", err)
		}
	}
	t.Logf("EDGE_CHAOS_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// load produces without a pause until stop, in small requests, so that the sink
// always has an insert under way.
func (l *lab) load() (stop func()) {
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				l.produce(20, twoMonths)
			}
		}
	})
	return sync.OnceFunc(func() { close(quit); done.Wait() })
}

// after waits a while of the test's own choosing: when something happens, not
// whether it has.
func after(d time.Duration) { <-time.After(d) }

func TestClickHouseRestartsMidInsert(t *testing.T) {
	needLibrary(t)
	dir := filepath.Join(t.TempDir(), "data")
	var (
		mu    sync.Mutex
		child *engine.Child
	)
	start := func() {
		t.Helper()
		next, err := startEngine(dir)
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		child = next
	}
	closeChild := func() {
		if err := child.Close(context.Background()); err != nil {
			t.Errorf("close the engine: %v", err)
		}
	}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		mu.Lock()
		to := child
		mu.Unlock()
		return to.DialContext(ctx, network, addr)
	}
	start()
	t.Cleanup(func() { closeChild() })
	l := newLabOn(t, newWire(dial), 3)
	s := l.start()
	r := dice(t)
	rounds := chaos.Rounds(8, 50)
	for range rounds {
		stop := l.load()
		after(time.Duration(r.IntN(400)) * time.Millisecond)
		if err := syscall.Kill(child.Pid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		after(time.Duration(r.IntN(20)) * time.Millisecond)
		stop()
		// Not its own restart, whose delay grows with every death.
		closeChild()
		start()
	}
	l.settled()
	l.exact()
	l.report("SIGKILL of ClickHouse under load", rounds)
	t.Log(s.sink.outcomes())
}

// TestEngineStandsStill stops the engine's process with the rows in its socket,
// for longer than an insert may take, and lets it go on: the rows must not be
// sent again while the first ones are still to be read.
func TestEngineStandsStill(t *testing.T) {
	t.Parallel() // it waits more than it works
	child := ownEngine(t)
	l := newLabOn(t, child, 1)
	s := l.prepare(func(c *Config) { c.InsertTimeout = 500 * time.Millisecond })
	var armed atomic.Bool
	s.click.watch = func(_ *wireConn, p []byte, sent bool) {
		if !sent || !bytes.Contains(p, []byte(needle)) || !armed.CompareAndSwap(true, false) {
			return
		}
		pid := child.Pid()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Error(err)
		}
		time.AfterFunc(1500*time.Millisecond, func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	}
	s.run()
	for range chaos.Rounds(4, 8) {
		armed.Store(true)
		l.produce(300, func(_ int, ev *codec.Event) { ev.Metadata = []byte(`{"x":"` + needle + `"}`) })
		l.settled()
		if armed.Load() {
			t.Fatal("the engine was not stopped")
		}
	}
	l.settled()
	l.exact()
	t.Log(s.sink.outcomes())
}

// outcomes is what the sink counted, for a log line.
func (s *Sink) outcomes() string {
	st := &s.stats
	return fmt.Sprintf("stored %d, recovered %d, disowned %d; present %d, reinserted %d, repaired %d", st.stored.Load(), st.recovered.Load(),
		st.disowned.Load(), st.present.Load(), st.reinserted.Load(), st.repaired.Load())
}

func TestSinkKilledUnderLoad(t *testing.T) {
	l := newLab(t, 3)
	r := dice(t)
	rounds := chaos.Rounds(10, 50)
	for range rounds {
		stop := l.load()
		s := l.start(func(c *Config) { c.RevokeTimeout, c.FlushRows, c.Inserts = 100*time.Millisecond, 60, 3 })
		after(time.Duration(r.IntN(300)) * time.Millisecond)
		s.kill()
		stop()
	}
	l.start()
	l.settled()
	l.exact()
	l.report("a sink dies under load, the next takes over", rounds)
}

func TestConnectionsDroppedUnderLoad(t *testing.T) {
	l := newLab(t, 3)
	s := l.start()
	r := dice(t)
	stop := l.load()
	rounds := chaos.Rounds(30, 150)
	for range rounds {
		after(time.Duration(r.IntN(60)) * time.Millisecond)
		switch r.IntN(3) {
		case 0:
			s.kafka.drop()
		case 1:
			s.click.drop()
		default:
			s.click.drop()
			s.kafka.drop()
		}
	}
	stop()
	l.settled()
	l.exact()
	l.report("connections to ClickHouse and Kafka cut under load", rounds)
}

// TestInsertCutAtEveryStep cuts the connection to ClickHouse after N bytes of an
// insert, for N over all of it, in either direction; then again during the
// recovery that follows, which has to start over.
func TestInsertCutAtEveryStep(t *testing.T) {
	t.Parallel() // it waits more than it works
	l := newLab(t, 2)
	s := l.start()
	l.produce(50, twoMonths)
	l.settled()
	cuts := uint64(0)
	f := func(what string, writes, reads []int) {
		t.Helper()
		cuts++
		s.click.limit(writes, reads)
		l.produce(30, twoMonths)
		l.settled()
		s.click.limit(nil, nil)
		l.exact()
		if t.Failed() {
			t.Fatalf("after a cut: %s, writes %d, reads %d", what, writes, reads)
		}
	}
	step := 12
	if chaos.Long() {
		step = 4
	}
	// An insert writes some 6 kB and reads 1 kB; what goes beyond does not cut.
	for i := 0; i < 60; i += step {
		f("insert", []int{i * 110}, nil)
		f("answer", nil, []int{i * 20})
	}
	for i := 0; i < 60; i += step {
		f("recovery", []int{3500, i * 400}, nil)
		f("answers to the recovery", []int{3500}, []int{1200 + i*150})
		f("recovery of the recovery", []int{3500, i * 400, i * 333}, nil)
	}
	// One may hit what runs beside an insert, a look for repairs.
	if got := s.sink.stats.retried.Load(); got < cuts/2 {
		t.Errorf("%d inserts of %d that were cut failed; want half of them at least", got, cuts)
	}
	t.Log(s.sink.outcomes())
}
