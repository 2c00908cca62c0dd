package sink

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestOffsetsOfFlights has flights of two partitions declare and land.
func TestOffsetsOfFlights(t *testing.T) {
	var r runway
	admit := func(batches map[int32]*batch) *flight {
		f := newFlight(nil)
		f.batches = batches
		if !r.admit(f, MaxInserts) {
			t.Fatal("not admitted")
		}
		return f
	}
	got := func(offsets map[int32]commitOffset) string {
		var all []string
		for _, id := range []int32{0, 1} {
			if o, ok := offsets[id]; ok {
				all = append(all, fmt.Sprintf("%d@%d %s", id, o.at, o.metadata))
			}
		}
		return strings.Join(all, ", ")
	}
	is := func(what string, offsets map[int32]commitOffset, want string) {
		t.Helper()
		if got := got(offsets); got != want {
			t.Errorf("%s: %s; want %s", what, got, want)
		}
	}
	a := admit(map[int32]*batch{0: {first: 10, last: 19}, 1: {first: 5, last: 5}})
	b := admit(map[int32]*batch{0: {first: 20, last: 29}})
	c := admit(map[int32]*batch{0: {first: 33, last: 39}, 1: {first: 6, last: 8}}) // retention took 30 to 32
	is("the second declares first", r.declare(b, 7), "0@10 v2;7;19;20;29")
	is("the first", r.declare(a, 7), "0@10 v2;7;19;20;29, 1@5 v1;7;5")
	is("the first passes, the third is not declared", r.pass(a, 7), "0@20 v1;7;29, 1@6 ")
	is("the third", r.declare(c, 7), "0@20 v2;7;29;33;39, 1@6 v1;7;8")
	r.leave(a)
	is("the second passes", r.pass(b, 7), "0@33 v1;7;39")
	r.leave(b)
	is("the third passes", r.pass(c, 7), "0@40 , 1@9 ")
	r.leave(c)

	// One that is not declared is between two that are.
	a, b, c = admit(map[int32]*batch{0: {first: 40, last: 49}}), admit(map[int32]*batch{0: {first: 50, last: 59}}), admit(map[int32]*batch{0: {first: 60, last: 69}})
	is("the third declares before the others", r.declare(c, 7), "0@40 v2;7;49;50;59;60;69")
	is("the first declares, the second has not", r.declare(a, 7), "0@40 v2;7;49;50;59;60;69")
	is("the first passes, the second has not declared", r.pass(a, 7), "0@50 v2;7;59;60;69")
	r.leave(a)
	is("the second passes, which has no rows to declare", r.pass(b, 7), "0@60 v1;7;69")
	r.leave(b)
	is("the third passes", r.pass(c, 7), "0@70 ")
	r.leave(c)

	d := newFlight(nil)
	d.recover, d.batches, d.later = true, map[int32]*batch{0: {first: 0, last: 9}, 1: {first: 0, last: 9}}, map[int32]plans{0: {{7, 10, 19}, {7, 20, 29}}}
	if !r.admit(d, 1) || r.admit(newFlight(nil), 2) {
		t.Error("a recovery was not admitted, or something beside it")
	}
	is("a recovery declares", r.declare(d, 7), "0@0 v2;7;9;10;19;20;29, 1@0 v1;7;9")
	is("a recovery passes", r.pass(d, 7), "0@10 v2;7;19;20;29, 1@10 ")
}

// TestFlightsSideBySide holds the first of three full flights: the others are stored
// meanwhile, and passed when it is.
func TestFlightsSideBySide(t *testing.T) {
	l := newLab(t, 1)
	v := l.convoy("a")
	const before = 5 * convoyRows // so that blocks are used again
	l.produce(before, twoMonths)
	v.settled()
	flights := v.sink.stats.stored.Load()
	seen := l.commits()
	planned := func(at int64, lasts ...int64) string {
		p := plans{{l.src(), at, lasts[0]}}
		for _, last := range lasts[1:] {
			p = append(p, plan{l.src(), p[len(p)-1].last + 1, last})
		}
		return fmt.Sprintf("%d %s", at, p)
	}
	l.produce(convoyRows, lettered("a"))
	v.holds("a")
	l.produce(convoyRows, lettered("b"))
	l.has(convoyRows, before+40)
	l.produce(convoyRows, lettered("c"))
	l.has(2*convoyRows, before+40)
	l.produce(convoyRows, lettered("d")) // must wait: three are under way
	want := []string{planned(before, before+39), planned(before, before+39, before+79), planned(before, before+39, before+79, before+119)}
	if diff := cmp.Diff(want, seen()); diff != "" {
		t.Errorf("commits before the first is stored (-want +got):\n%s", diff)
	}
	v.let("a")
	v.settled()
	l.exact()
	if got, want := seen(), planned(before+40, before+79, before+119); len(got) < 5 || got[3] != want {
		t.Errorf("commits are %q; want the fourth to pass the first flight and no other: %s", got, want)
	}
	if n := v.sink.stats.stored.Load() - flights; n != 4 || v.recoveries() > 0 {
		t.Errorf("%d flights stored, %d recoveries; want 4 and none", n, v.recoveries())
	}
}

// TestAuditBesideFlights holds the first of two flights while the second is stored: what is
// under way is pending, for the sink's own audit, too. Passed and not there is missing.
func TestAuditBesideFlights(t *testing.T) {
	l := newLab(t, 1)
	v := l.convoy("a")
	const before = 5 * convoyRows
	l.produce(before, twoMonths)
	v.settled()
	l.produce(convoyRows, lettered("a"))
	v.holds("a")
	l.produce(convoyRows, lettered("b"))
	l.has(convoyRows, before+40)
	log := &Log{Kafka: l.kafka, Topic: topic, Group: group}
	auditor := &Auditor{ClickHouse: l.pool, Log: log, Logger: l.log("audit"), Every: time.Minute, Look: time.Hour}
	audited := func(missing, pending int64) {
		t.Helper()
		r, err := (&Audit{ClickHouse: l.pool, Log: log}).Run(t.Context())
		if err != nil || r.Missing() != missing || r.OK() != (missing == 0) || r.Pending != pending {
			t.Errorf("%v, got\n%swant %d missing and %d pending", err, r, missing, pending)
		}
		auditor.lastSuccess.Set(0)
		auditor.once(t.Context())
		if got := auditor.missing.Load(); got != missing || auditor.lastSuccess.Load() == 0 {
			t.Errorf("the sink's audit found %d missing; want %d", got, missing)
		}
	}
	audited(0, convoyRows)
	v.let("a")
	v.settled()
	audited(0, 0)
	v.stop()
	lost := fmt.Sprintf("_first = %d", before)
	l.uncountAll(lost)
	l.lose("events", lost)
	audited(convoyRows, 0)
}

// TestStopLandsAllFlights ends a sink in good order with three flights under way.
func TestStopLandsAllFlights(t *testing.T) {
	l := newLab(t, 1)
	letters := []string{"a", "b", "c"}
	v := l.convoy(letters...)
	for _, letter := range letters {
		l.produce(convoyRows, lettered(letter))
		v.holds(letter)
	}
	v.end()
	for i, letter := range letters {
		v.let(letter)
		eventually(t, letter+" is passed", func() error {
			if n := v.sink.stats.stored.Load(); n <= uint64(i) {
				return fmt.Errorf("%d flights are", n)
			}
			return nil
		})
	}
	v.stop()
	if err := l.atEnd(); err != nil {
		t.Error(err)
	}
	l.exact()
}

// TestWhatWaitsBehindAFlight: the oldest record that is not stored is that of the flight
// behind, or of the one that fills. Of those that the log has and nobody has seen, none is
// older than what was stored last.
func TestWhatWaitsBehindAFlight(t *testing.T) {
	var p progress
	p.assigned(0, 0)
	p.end(0, 30)
	at := time.Unix(1_700_000_000, 0)
	flights := make([]*flight, 3)
	for i := range flights {
		flights[i] = newFlight(nil)
		flights[i].batches[0] = &batch{first: int64(10 * i), last: int64(10*i + 9), oldest: at.Add(time.Duration(i) * time.Second)}
	}
	for i, c := range []struct {
		waiting []*flight
		want    time.Time
	}{
		{flights[1:], flights[1].batches[0].oldest},
		{nil, flights[1].batches[0].oldest},
		{nil, time.Time{}},
	} {
		p.stored(flights[i], c.waiting)
		if got := p.partitions[0]; !got.oldest.Equal(c.want) || got.stored != int64(10*i+10) {
			t.Errorf("after flight %d: stored up to %d, the oldest of %s; want %d and %s", i, got.stored, got.oldest, 10*i+10, c.want)
		}
	}
}

// TestFlightsNotFull has few rows wait for the flight under way, however long it takes:
// they are stored with what comes meanwhile.
func TestFlightsNotFull(t *testing.T) {
	l := newLab(t, 1)
	v := l.convoy("a")
	l.produce(convoyRows, lettered("a"))
	v.holds("a")
	for range 3 {
		l.produce(convoyRows/4, lettered("b"))
		eventually(t, "they are taken", func() error {
			v.sink.state.mu.Lock()
			defer v.sink.state.mu.Unlock()
			if at := v.sink.state.partitions[0]; at.high != l.cluster.PartitionInfo(topic, 0).HighWatermark {
				return fmt.Errorf("the sink has seen the log up to %d", at.high)
			}
			return nil
		})
	}
	v.let("a")
	v.settled()
	l.exact()
	if n := v.sink.stats.stored.Load(); n != 2 {
		t.Errorf("%d flights; want 2", n)
	}
}

// TestFlightFailsBesideAnother breaks the first of two flights, then both: the first
// waits with its recovery until the other has ended its try, and no other leaves.
func TestFlightFailsBesideAnother(t *testing.T) {
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprintf("both=%t", both), func(t *testing.T) {
			l := newLab(t, 1)
			l.declare(20, func(*lab, string) {}) // history in the same hours
			l.commit(0, 20, "")
			seen := l.commits()
			v := l.convoy("a", "b")
			l.produce(convoyRows, lettered("a"))
			v.holds("a")
			l.produce(convoyRows, lettered("b"))
			v.holds("b")
			v.breaks("a")
			eventually(t, "the first has failed", func() error {
				if v.sink.stats.retried.Load() == 0 {
					return errors.New("it has not")
				}
				return nil
			})
			l.produce(convoyRows, lettered("c"))
			if n := v.recoveries(); n != 0 {
				t.Errorf("%d recoveries beside an insert that is under way", n)
			}
			if both {
				v.breaks("b")
			} else {
				v.let("b")
			}
			l.settled()
			l.exact()
			recovered, stored := uint64(1), uint64(2)
			if both {
				recovered, stored = 2, 1
			}
			if st := &v.sink.stats; st.recovered.Load() != recovered || st.stored.Load() != stored || st.reinserted.Load() != recovered {
				t.Errorf("%s; want %d recovered by inserting and %d stored", v.sink.outcomes(), recovered, stored)
			}
			for _, c := range seen() {
				if strings.HasPrefix(c, "20 ") && strings.Contains(c, ";100;") {
					t.Errorf("the third was declared beside the recovery: %q", seen())
				}
			}
		})
	}
}

// TestRevokedWithRecordsLeft takes a partition from a sink that has polled more of it than
// its full block holds.
func TestRevokedWithRecordsLeft(t *testing.T) {
	t.Parallel() // it waits more than it works
	l := newLab(t, 4)
	v := l.convoyOf(func(c *Config) { c.FlushBytes, c.Inserts = 4000, 1 }, "a", "b")
	l.produce(8, lettered("a"))
	v.holds("a")
	const bytes = 180 // of a record, about
	l.produce(7000/bytes, lettered("b"))
	eventually(t, "they are polled", func() error {
		v.sink.state.mu.Lock()
		defer v.sink.state.mu.Unlock()
		for id, at := range v.sink.state.partitions {
			if end := l.cluster.PartitionInfo(topic, id).HighWatermark; at.high < end {
				return fmt.Errorf("the sink has seen partition %d up to %d of %d", id, at.high, end)
			}
		}
		return nil
	})
	other := l.start()
	eventually(t, "a partition is revoked", func() error {
		if v.sink.stats.rebalances.Load() == 0 {
			return errors.New("it is not")
		}
		return nil
	})
	v.let("a")
	v.let("b")
	other.settled()
	l.exact()
	if other.sink.stats.stored.Load() == 0 {
		t.Error("nothing was left for the next owner")
	}
}
