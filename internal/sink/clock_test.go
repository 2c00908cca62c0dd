package sink

import (
	"fmt"
	"testing"
	"time"

	"edge/internal/codec"
)

// TestClockJumps: the clock of the machine that receives events goes an hour
// back and forth. It is written into the rows and decides, within the window,
// what is a duplicate: the same before and after a restart of the sink. A sink
// whose own clock is behind counts no time below zero.
func TestClockJumps(t *testing.T) {
	l := newLab(t, 1)
	at := func(jump time.Duration) func(int, *codec.Event) {
		return func(_ int, ev *codec.Event) { ev.ReceivedAt += jump.Milliseconds() }
	}
	window := func(c *Config) { c.DedupAge = 90 * time.Minute }
	s := l.start(window)
	for _, jump := range []time.Duration{0, -time.Hour, time.Hour, 0, -time.Hour} {
		l.produce(20, at(jump))
	}
	l.one(0, withID("a"))
	l.repeat(0, withID("a"), at(-time.Hour)) // sent again when the clock was put back
	l.repeat(0, withID("a"), at(time.Hour))
	l.one(0, withID("b"), at(time.Hour))
	l.repeat(0, withID("b"))
	l.settled()
	s.stop()
	l.repeat(0, withID("a"), at(-time.Hour))
	l.repeat(0, withID("b"), at(-time.Hour))
	l.one(0, withID("a"), at(2*time.Hour)) // by the clock it is long enough ago
	l.repeat(0, withID("a"), at(time.Hour))
	next := l.start(window)
	next.settled()
	l.exact()
	if got := s.sink.stats.duplicates.Load() + next.sink.stats.duplicates.Load(); got != 6 {
		t.Errorf("%d duplicates; want 6", got)
	}
	if n, sum, _ := s.sink.stats.endToEndSeconds.Snapshot(); sum < 0 || n == 0 {
		t.Errorf("%v rows took %v seconds in all", n, sum)
	}

	// Ids that the server makes do not come from the clock.
	pool := codec.NewPool(codec.Rules{})
	seen := make(map[string]bool)
	now := time.Now()
	for i := range 1000 {
		b := pool.Get()
		if err := b.DecodeArray([]byte(`[{"event_name":"a","user_id":"u","timestamp":1700000000000}]`), now.Add(time.Duration(i%3-1)*time.Hour)); err != nil {
			t.Fatal(err)
		}
		var ev codec.Event
		var d codec.Decoder
		if err := d.DecodeRecord(b.Record(0), &ev); err != nil {
			t.Fatal(err)
		}
		if seen[string(ev.EventID)] {
			t.Fatalf("id %s was made twice", ev.EventID)
		}
		seen[string(ev.EventID)] = true
		b.Release()
	}
}

// TestClockAhead: the clock of one edge is ahead by more than the window is long. What it
// received does not take the others' ids out of the window, neither live, nor after a
// restart of the sink, nor in a recovery.
func TestClockAhead(t *testing.T) {
	l := newLab(t, 1) // the window is an hour long
	s := l.start()
	l.one(0, withID("a"))
	l.one(0, withID("ahead"), func(_ int, ev *codec.Event) { ev.ReceivedAt += (2 * time.Hour).Milliseconds() })
	l.repeat(0, withID("a"))
	l.settled()
	l.exact()
	s.stop()

	first := l.cluster.PartitionInfo(topic, 0).HighWatermark
	l.repeat(0, withID("a"))
	l.produce(5)
	s = l.start()
	l.settled()
	l.exact()
	s.stop()

	last := l.cluster.PartitionInfo(topic, 0).HighWatermark - 1
	l.commit(0, first, plans{{l.src(), first, last}}.String())
	declared := fmt.Sprintf("_offset >= %d", first)
	l.uncountAll(declared)
	l.lose("events", declared)
	l.start()
	l.settled()
	l.exact()
}
