package sink

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestOwnerFrozenThenResumed takes a sink for dead between its insert and the commit past
// it: the next one finds the rows, and the commit of the first is refused.
func TestOwnerFrozenThenResumed(t *testing.T) {
	l := newLab(t, 1)
	first := l.start()
	l.produce(10)
	l.settled()
	fault := l.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.CoordinatorNotAvailable, Count: -1,
		When: func(req kmsg.Request) bool { return !isPlan(req) }})
	l.produce(20)
	if err := fault.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	first.kafka.freeze()
	fault.Remove()
	first.evict()
	second := l.start()
	l.settled()
	l.exact()
	if got := second.sink.stats.present.Load(); got != 1 {
		t.Errorf("the successor found %d declared batches whole; want 1", got)
	}
	first.kafka.thaw()
	first.told(func() uint64 { return first.sink.stats.disowned.Load() + first.sink.stats.rebalances.Load() })
}

// told waits until a sink that was thawed has heard, by count, that its partition is
// another's; records that come then are stored once.
func (p *process) told(count func() uint64) {
	p.l.t.Helper()
	eventually(p.l.t, "the first owner is told", func() error {
		if count() == 0 {
			return errCut
		}
		return nil
	})
	p.l.produce(10)
	p.l.settled()
	p.l.exact()
}

// freezesAtItsPlan appends 20 events, and freezes wires when the coordinator has the plan of
// them and ClickHouse the INSERT without a row.
func (l *lab) freezesAtItsPlan(wires ...*wire) {
	l.t.Helper()
	frozen := make(chan struct{})
	freeze := sync.OnceFunc(func() {
		for _, w := range wires {
			w.freeze()
		}
		close(frozen)
	})
	l.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Observe: true, Count: -1, When: func(req kmsg.Request) bool {
		if isPlan(req) {
			freeze()
		}
		return true
	}})
	l.produce(20)
	<-frozen
}

// frozenAtItsPlan is a sink that has stored 10 events and is frozen at the plan of 20 more.
func (l *lab) frozenAtItsPlan() *process {
	l.t.Helper()
	first := l.start()
	l.produce(10)
	l.settled()
	l.freezesAtItsPlan(first.click, first.kafka)
	return first
}

// TestOwnerFrozenBeforeItsRows freezes a sink when ClickHouse has taken its INSERT and
// the coordinator its plan, lets another recover the batch, and thaws the first: its
// rows are of an insert that was killed.
func TestOwnerFrozenBeforeItsRows(t *testing.T) {
	l := newLab(t, 1)
	first := l.frozenAtItsPlan()
	first.evict()
	second := l.start()
	l.settled()
	l.exact()
	if got := second.sink.stats.reinserted.Load(); got != 1 {
		t.Errorf("the successor inserted %d declared batches; want 1", got)
	}
	first.click.thaw()
	first.kafka.thaw()
	first.told(first.sink.stats.disowned.Load)
}

// TestRecoveryBesideAnotherDatabase has two groups store one topic in two databases of one
// server. A recovery in one does not touch the insert of the other that is under way.
func TestRecoveryBesideAnotherDatabase(t *testing.T) {
	l, other := newLab(t, 1), newLab(t, 1)
	s := l.start()
	l.produce(20)
	s.settled()
	l.freezesAtItsPlan(s.click)
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: topic, At: 0, LeaderEpoch: -1, Metadata: plans{{l.src(), 0, 9}}.String()})
	if err := l.admin.CommitAllOffsets(t.Context(), "other", offsets); err != nil {
		t.Fatal(err)
	}
	beside := other.start(func(c *Config) { c.Kafka.Brokers, c.Group = l.kafka.Brokers, "other" })
	eventually(t, "the plan is recovered in the other database", func() error {
		if beside.sink.stats.recovered.Load() == 0 {
			return errCut
		}
		return nil
	})
	s.click.thaw()
	s.settled()
	l.exact()
	if got := s.sink.outcomes(); s.sink.stats.retried.Load() > 0 || s.sink.stats.recovered.Load() > 0 {
		t.Errorf("%s, %d tries failed: its insert was killed", got, s.sink.stats.retried.Load())
	}
}

// TestOwnerFrozenBeforeItsRecoveryInsert freezes a sink that has seen which rows
// of a declared batch are missing, lets another recover the batch, and thaws the
// first: its insert gets as far as the fence.
func TestOwnerFrozenBeforeItsRecoveryInsert(t *testing.T) {
	l := newLab(t, 1)
	l.declare(20, func(l *lab, declared string) {
		l.uncountAll(declared)
		l.lose("events", declared)
	})
	first := l.prepare()
	frozen, answered := make(chan struct{}), make(chan struct{})
	var insert *wireConn
	looked := false
	first.click.watch = func(c *wireConn, p []byte, sent bool) {
		switch {
		case sent && !looked && bytes.Contains(p, []byte("SELECT _offset FROM events")):
			looked = true // the query goes out, nothing after it
			first.click.freezeLocked()
			first.kafka.freeze()
			close(frozen)
		case sent && looked && insert == nil && bytes.Contains(p, []byte("INSERT INTO")):
			insert = c
		case !sent && c == insert && answered != nil && len(p) > 0:
			close(answered)
			answered = nil
		}
	}
	took := answered
	first.run()
	<-frozen
	first.evict()
	l.start()
	l.settled()
	l.exact()
	first.click.thaw()
	<-took // ClickHouse would take the rows
	first.kafka.thaw()
	first.told(first.sink.stats.disowned.Load)
}

// TestOwnerFrozenBeforeItsHole freezes a sink that has seen which rows are missing before
// the offset that was put back, lets another fill the hole, and thaws the first.
func TestOwnerFrozenBeforeItsHole(t *testing.T) {
	l := newLab(t, 1)
	l.history(3, 20, twoMonths)
	const some = "_offset BETWEEN 20 AND 39"
	l.uncountAll(some)
	l.lose("events", some)
	l.commit(0, 0, "")
	first := l.prepare()
	frozen := make(chan struct{})
	freeze := sync.OnceFunc(func() {
		first.click.freezeLocked()
		first.kafka.freeze()
		close(frozen)
	})
	first.click.watch = func(_ *wireConn, p []byte, sent bool) {
		if sent && bytes.Contains(p, []byte("SELECT _offset FROM events")) {
			freeze() // the query goes out, nothing after it
		}
	}
	first.run()
	<-frozen
	first.evict()
	second := l.start()
	l.settled()
	l.exact()
	if got := second.sink.stats.reinserted.Load(); got != 1 {
		t.Errorf("the successor filled %d holes; want 1", got)
	}
	first.click.thaw()
	first.kafka.thaw()
	first.told(first.sink.stats.disowned.Load)
}

// TestOwnerFrozenBeforeItsRowsAndUndeclared is TestOwnerFrozenBeforeItsRows with a plan
// that an older commit replaces, which hung on another connection: nothing tells the next
// owner of the insert but the server that runs it.
func TestOwnerFrozenBeforeItsRowsAndUndeclared(t *testing.T) {
	l := newLab(t, 1)
	first := l.frozenAtItsPlan()
	eventually(t, "the plan is in", func() error {
		if at := l.cluster.GroupInfo(group).Commits[topic][0]; at.Metadata == "" {
			return fmt.Errorf("the group stands at %d", at.Offset)
		}
		return nil
	})
	first.evict()
	l.commit(0, 10, "")
	l.start()
	l.settled()
	l.exact()
	first.click.thaw() // ClickHouse would have the rows of an insert that it took
	first.kafka.thaw()
	first.told(first.sink.stats.disowned.Load)
}

// TestOwnerFrozenBeforeItsNote freezes a sink that notes a batch of nothing but repeats,
// and has another take the partition over that would cut the log shorter.
func TestOwnerFrozenBeforeItsNote(t *testing.T) {
	l := newLab(t, 1)
	first := l.prepare()
	frozen, held := make(chan struct{}), make(chan struct{})
	freeze := sync.OnceFunc(func() {
		first.kafka.freeze()
		close(frozen)
	})
	first.click.watch = func(c *wireConn, p []byte, sent bool) {
		if sent && bytes.Contains(p, []byte("INSERT INTO empty_batches")) {
			c.held = held
			freeze()
		}
	}
	first.run()
	l.one(0, withID("a"))
	l.settled()
	l.append(l.records(10, withID("a")))
	<-frozen
	first.evict()
	l.start(func(c *Config) { c.FlushBytes = 500 })
	l.settled()
	l.produce(5)
	l.settled()
	close(held)
	first.kafka.thaw()
	first.told(func() uint64 { return first.sink.stats.disowned.Load() + first.sink.stats.rebalances.Load() })
	l.exec("OPTIMIZE TABLE empty_batches FINAL")
	l.exact()
}

// TestOwnerFrozenInItsRepair freezes a sink that holds the lock of a repair: the next one
// waits for as long as the lease, repairs, and the first finds its lock gone.
func TestOwnerFrozenInItsRepair(t *testing.T) {
	l := newLab(t, 1)
	l.declare(20, (*lab).uncountAll)
	first := l.prepare(func(c *Config) { c.SessionTimeout = 2 * time.Second })
	frozen := make(chan struct{})
	freeze := sync.OnceFunc(func() {
		first.click.freezeLocked()
		first.kafka.freeze()
		close(frozen)
	})
	first.click.watch = func(_ *wireConn, p []byte, sent bool) {
		if sent && bytes.Contains(p, []byte("CREATE TEMPORARY TABLE difference")) {
			freeze()
		}
	}
	first.run()
	<-frozen
	first.evict()
	second := l.start()
	l.settled()
	l.exact()
	if got := second.sink.stats.repaired.Load(); got != 1 {
		t.Errorf("the successor repaired %d times; want once", got)
	}
	first.click.thaw()
	first.kafka.thaw()
	first.told(func() uint64 { return first.sink.stats.disowned.Load() + first.sink.stats.rebalances.Load() })
}
