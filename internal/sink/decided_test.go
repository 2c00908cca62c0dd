package sink

import (
	"fmt"
	"math"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"edge/internal/codec"
)

// TestWindowChangesBeforeARecovery has a batch of two months declared under one
// deduplication window and recovered under another, from every state that a crash leaves.
func TestWindowChangesBeforeARecovery(t *testing.T) {
	t.Parallel() // it waits more than it works
	january := func(_ int, ev *codec.Event) { twoMonths(0, ev) }
	february := func(_ int, ev *codec.Event) { twoMonths(1, ev) }
	later := func(_ int, ev *codec.Event) { // in an hour of its own
		twoMonths(1, ev)
		ev.Timestamp += 5 * 86_400_000
	}
	lose := func(l *lab, where string) {
		l.uncountAll(where)
		l.lose("events", where)
	}
	const all, noRollups, noFebruary, noJanuary, noRows = "all", "no rollups", "no february", "no january", "no rows"
	leave := map[string]func(l *lab, declared string){
		all:        func(*lab, string) {},
		noRollups:  func(l *lab, declared string) { l.uncountAll(declared) },
		noFebruary: func(l *lab, declared string) { lose(l, declared+" AND toYYYYMM(ts) = 202402") },
		noJanuary:  func(l *lab, declared string) { lose(l, declared+" AND toYYYYMM(ts) = 202401") },
		noRows:     func(l *lab, declared string) { lose(l, declared) },
	}
	changes := []struct {
		name          string
		before, after int64 // DedupIDs
		partitions    int   // added
		states        []string
	}{
		{name: "off", before: 1000, after: 0, states: []string{all, noFebruary}},
		{name: "smaller", before: 1000, after: 10, states: []string{noFebruary, noRows}},
		{name: "larger", before: 10, after: 1000, states: []string{noRollups, noJanuary}},
		{name: "partitions added", before: 100, after: 100, partitions: 7, states: []string{all, noFebruary, noJanuary}},
	}
	for _, c := range changes {
		// again is an event with the id of one that is 10 to 100 records back.
		again := func(l *lab, change ...func(int, *codec.Event)) {
			if c.before > 10 {
				l.repeat(0, change...)
			} else {
				l.one(0, change...)
			}
		}
		for _, state := range c.states {
			t.Run(c.name+", "+state, func(t *testing.T) {
				l := newLab(t, 1)
				l.one(0, withID("old"))
				l.one(0, withID("older"))
				l.produce(20)
				window := func(ids int64) func(*Config) { return func(c *Config) { c.DedupIDs = ids } }
				s := l.start(window(c.before))
				l.settled()
				s.stop()

				first := l.cluster.PartitionInfo(topic, 0).HighWatermark
				l.one(0, withID("a"), january)
				l.produce(15, twoMonths)
				again(l, withID("old"), january)
				again(l, withID("a"), later)
				if c.partitions > 0 {
					again(l, withID("older"), february)
				}
				l.one(0, withID("b"), february)
				l.repeat(0, withID("b"), february)
				l.append([]*kgo.Record{{Value: []byte("poison")}})
				l.produce(5, twoMonths)
				s = l.start(window(c.before))
				l.settled()
				l.exact()
				s.stop()
				last := l.cluster.PartitionInfo(topic, 0).HighWatermark - 1
				l.commit(0, first, plans{{l.src(), first, last}}.String())
				leave[state](l, fmt.Sprintf("_offset >= %d", first))
				if c.partitions > 0 {
					if _, err := l.admin.CreatePartitions(t.Context(), c.partitions, topic); err != nil {
						t.Fatal(err)
					}
				}

				s = l.start(window(c.after))
				l.settled()
				if state == noRows { // what is a duplicate is decided anew
					l.rollupsAreRaw()
					l.batchesAddUp()
				} else {
					l.exact()
				}
				s.stop()
			})
		}
	}
}

// A crash between the parts of two months leaves a batch open in each partition of the
// flight. Their windows are not in memory side by side: each is recovered by itself.
func TestOpenBatchesOfManyPartitions(t *testing.T) {
	t.Parallel()
	const partitions = 3
	l := newLab(t, partitions)
	for p := range int32(partitions) {
		l.one(p, withID(fmt.Sprint("old", p)))
	}
	s := l.start()
	l.settled()
	s.stop()
	for p := range int32(partitions) {
		for i := range 4 {
			l.one(p, func(_ int, ev *codec.Event) { twoMonths(i, ev) })
		}
		l.repeat(p, withID(fmt.Sprint("old", p)), twoMonths)
	}
	s = l.start()
	l.settled()
	s.stop()
	for p := range int32(partitions) {
		l.commit(p, 1, plans{{l.src(), 1, 5}}.String())
	}
	lost := "_offset >= 1 AND toYYYYMM(ts) = 202402"
	l.uncountAll(lost)
	l.lose("events", lost)
	s = l.start()
	l.settled()
	l.exact()
	s.stop()
	if n := s.sink.stats.recovered.Load(); n != partitions {
		t.Errorf("%d recoveries; want one of each partition", n)
	}
}

// TestDecided draws a batch, takes months of its rows away, and decides it again. Under
// the same window every record is what it was. Under any other there are as many
// duplicates as there were, what is stored is a row, and every id has one. When a life after
// the copy has the rows that were taken away, nothing is left to be stored.
func TestDecided(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const history = 50
		size, age := rapid.Int64Range(1, 60).Draw(t, "size"), rapid.Int64Range(1000, 60_000).Draw(t, "age")
		w, far, fresh := newWindow(size, age), newWindow(200, math.MaxInt64), newWindow(200, math.MaxInt64)
		var rest window // of a later life
		b, d := newBlock(), &decided{stored: make(map[int64]struct{})}
		var was []bool
		ids := make(map[[16]byte]bool) // of rows
		lost := rapid.SampledFrom([]int{202401, 202402, 0}).Draw(t, "lost")
		now := int64(1_700_000_000_000)
		for offset := range rapid.Int64Range(history+1, history+60).Draw(t, "records") {
			now += rapid.Int64Range(-3000, 5000).Draw(t, "ms")
			ev := codec.Event{ID: testID(rapid.IntRange(0, 40).Draw(t, "id")), ReceivedAt: now}
			duplicate := w.seen(ev.ID, offset, now)
			if offset < history {
				if !duplicate {
					ids[ev.ID] = true
					far.store(ev.ID, offset, now)
					fresh.store(ev.ID, offset, now)
				}
				continue
			}
			twoMonths(rapid.IntRange(0, 1).Draw(t, "month"), &ev)
			b.append(&ev, 0, offset)
			was = append(was, duplicate)
			switch {
			case duplicate:
				d.batch.duplicates++
			case b.month(b.rows()-1) != lost:
				d.stored[offset] = struct{}{}
				d.batch.rows++
			default:
				rest.lose(ev.ID, original{history + 100, now, true})
				d.batch.rows++
			}
		}
		if len(d.stored) == 0 {
			return // nothing is known of it
		}
		today := newWindow(size, age)
		same := rapid.Bool().Draw(t, "same window")
		if !same {
			today = newWindow(rapid.Int64Range(1, 100).Draw(t, "size today"), rapid.Int64Range(1000, 60_000).Draw(t, "age today"))
		}
		d.far = far
		got, n := d.duplicates(b, today), 0
		for i, duplicate := range got {
			id, offset, _ := b.id(i)
			if _, stored := d.stored[offset]; stored && duplicate {
				t.Fatalf("offset %d is stored, and a duplicate", offset)
			}
			if same && duplicate != was[i] {
				t.Fatalf("offset %d: duplicate %t; was %t", offset, duplicate, was[i])
			}
			if duplicate {
				n++
			} else {
				ids[id] = true
			}
		}
		if n != d.batch.duplicates {
			t.Fatalf("%d duplicates; there were %d", n, d.batch.duplicates)
		}
		if same {
			today.lost, d.far = rest.lost, fresh
			for i, duplicate := range d.duplicates(b, today) {
				_, offset, _ := b.id(i)
				if _, stored := d.stored[offset]; duplicate == stored {
					t.Fatalf("offset %d: stored %t, duplicate %t", offset, stored, duplicate)
				}
			}
		}
		for i := range got {
			if id, offset, _ := b.id(i); !ids[id] {
				t.Fatalf("no row has the id of offset %d", offset)
			}
		}
	})
}

// What is decided of the plans of thousands of partitions is asked in queries that a
// server reads.
func TestDecidedOfManyPartitions(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	p := l.prepare()
	t.Cleanup(p.pool.Close)
	next := make(map[int32]plan)
	for id := range int32(3000) {
		next[id] = plan{1, 1_000_000_000, 1_000_000_099}
	}
	if _, err := (&session{Sink: p.sink, source: source{logNumbers: logNumbers{now: 1}}}).decided(t.Context(), next); err != nil {
		t.Errorf("%.300v", err)
	}
}

// The window is turned off between a plan and its recovery; the repeat is of the month that
// is missing, and what it repeats further back than the batch is long.
func TestWindowTurnedOffBeforeARecovery(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	january := func(_ int, ev *codec.Event) { twoMonths(0, ev) }
	february := func(_ int, ev *codec.Event) { twoMonths(1, ev) }
	l.one(0, withID("old"))
	l.produce(40)
	s := l.start()
	l.settled()
	first := l.cluster.PartitionInfo(topic, 0).HighWatermark
	s.stop()
	l.one(0, withID("a"), january)
	l.one(0, withID("b"), february)
	l.repeat(0, withID("old"), february)
	s = l.start()
	l.settled()
	l.exact()
	s.stop()
	l.commit(0, first, plans{{l.src(), first, first + 2}}.String())
	lost := fmt.Sprintf("_offset >= %d AND toYYYYMM(ts) = 202402", first)
	l.uncountAll(lost)
	l.lose("events", lost)
	l.start(func(c *Config) { c.DedupIDs = 0 })
	l.settled()
	l.exact()
}
