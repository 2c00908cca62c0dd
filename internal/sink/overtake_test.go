package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/codec"
)

// What the log ends with left no rows, only notes, and the group is put back: nothing of it
// is taken again and noted in batches of another cut, which no audit could make sense of.
func TestOffsetsPutBackBehindNotes(t *testing.T) {
	t.Parallel()
	f := func(name string, tail func(l *lab), back func(l *lab)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			s := l.start()
			l.produce(10)
			l.one(0, withID("a"))
			l.settled()
			for range 2 { // two notes
				tail(l)
				l.settled()
			}
			s.stop()
			l.adds()
			back(l)
			l.produce(5)
			l.start()
			l.settled()
			l.exact()
			l.adds()
		})
	}
	f("repeats, put back to the start", func(l *lab) { l.append(l.records(3, withID("a"))) }, func(l *lab) { l.commit(0, 0, "") })
	f("dead letters, the group forgotten", func(l *lab) { l.append([]*kgo.Record{{Value: []byte("poison")}, {Value: []byte("poison")}}) }, func(l *lab) {
		if _, err := l.admin.DeleteGroups(l.t.Context(), group); err != nil {
			l.t.Fatal(err)
		}
	})
}

// All that waits turns out to be stored, and nothing else comes: the sink is not stuck.
func TestIdleAfterOffsetsArePutBack(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(2, 20)
	l.commit(0, 0, "")
	s := l.start()
	l.settled()
	s.sink.state.end(0, l.cluster.PartitionInfo(topic, 0).HighWatermark)
	if stuck, err := s.sink.Stuck(); stuck != 0 || err != nil {
		t.Errorf("stuck for %s, %v", stuck, err)
	}
	if err := s.sink.Ready(0); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

// Comparing rollups takes longer than a rebalance waits for: another sink joins meanwhile,
// nobody is put out of the group, and the first gets to the end of it.
func TestSinkJoinsWhileAnotherCompares(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(2, 20)
	l.commit(0, 0, "")
	lock := l.lockRollups()
	defer lock.unlock()
	slow := func(c *Config) { c.RevokeTimeout = time.Minute } // a rebalance waits two minutes and more
	first := l.prepare(slow)
	waits := make(chan struct{})
	once := sync.OnceFunc(func() { close(waits) })
	first.click.watch = func(_ *wireConn, p []byte, sent bool) {
		if sent && bytes.Contains(p, []byte(repairMark)) {
			once()
		}
	}
	first.run()
	<-waits
	second := l.start(slow)
	eventually(t, "the second is a member", func() error { return second.sink.Ready(time.Hour) })
	lock.unlock()
	l.settled()
	l.exact()
	for _, p := range []*process{first, second} {
		if n := p.sink.stats.disowned.Load(); n != 0 {
			t.Errorf("%d flights were disowned", n)
		}
	}
	if got := first.owns(); len(got) != 1 {
		t.Errorf("the first has partitions %v; want the one", got)
	}
}

// What is stored is asked for longer than a rebalance waits. Another sink joins meanwhile,
// and gets a partition unless it is inserts that have to end first.
func TestSinkJoinsWhileAnotherAsks(t *testing.T) {
	t.Parallel()
	f := func(name, query string, gets int) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 2)
			l.history(2, 20)
			l.commit(0, 0, "")
			l.commit(1, 0, "")
			slow := func(c *Config) { c.RevokeTimeout = time.Minute } // a rebalance waits two minutes and more
			first := l.prepare(slow)
			asks, answer := make(chan struct{}), make(chan struct{})
			answered := sync.OnceFunc(func() { close(answer) })
			defer answered()
			once := sync.OnceFunc(func() { close(asks); <-answer })
			first.click.watch = func(_ *wireConn, p []byte, sent bool) {
				if sent && bytes.Contains(p, []byte(query)) {
					once()
				}
			}
			first.run()
			select {
			case <-asks:
			case <-time.After(30 * time.Second):
				t.Fatalf("nobody asks %q", query)
			}
			second := l.start(slow)
			eventually(t, "the second is a member", func() error {
				if got := len(second.owns()); got < gets {
					return fmt.Errorf("it has %d partitions", got)
				}
				return second.sink.Ready(time.Hour)
			})
			answered()
			l.settled()
			l.exact()
		})
	}
	f("earlier inserts", "KILL QUERY", 0)
	f("what lies beyond", "min(f) AS lo", 1)
	f("holes", "max(said) AS said", 1)
	f("windows", "toUnixTimestamp64Milli(received_at)", 1)
}

// A hole is to be filled, and the log gives no record: the session ends, and says why.
func TestHoleThatCannotBeRead(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(2, 20)
	l.uncountAll("_offset < 20")
	l.lose("events", "_offset < 20")
	l.commit(0, 0, "")
	l.cluster.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		l.cluster.KeepControl()
		return nil, errCut, true
	})
	s := l.start(func(c *Config) { c.InsertTimeout = 500 * time.Millisecond })
	eventually(t, "the sink says what is wrong", func() error {
		if _, err := s.sink.Stuck(); !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})
}

// A question of a comparison gets no answer: the session ends, and says why.
func TestComparisonWithoutAnswer(t *testing.T) {
	t.Parallel()
	f := func(name, query string) {
		t.Run(name, func(t *testing.T) {
			child := ownEngine(t)
			l := newLabOn(t, child, 1)
			l.history(2, 20)
			l.commit(0, 0, "")
			s := l.prepare(func(c *Config) { c.InsertTimeout = 200 * time.Millisecond })
			stop := sync.OnceFunc(func() { _ = syscall.Kill(child.Pid(), syscall.SIGSTOP) })
			goOn := sync.OnceFunc(func() { _ = syscall.Kill(child.Pid(), syscall.SIGCONT) })
			defer goOn()
			s.click.watch = func(_ *wireConn, p []byte, sent bool) {
				if sent && bytes.Contains(p, []byte(query)) {
					stop()
				}
			}
			s.run()
			eventually(t, "the sink says what is wrong", func() error {
				if _, err := s.sink.Stuck(); !errors.Is(err, context.DeadlineExceeded) {
					return fmt.Errorf("it says %v", err)
				}
				return nil
			})
			goOn()
			l.settled()
			l.exact()
		})
	}
	f("what lies beyond", "min(f) AS lo")
	f("holes", "max(said) AS said")
	f("rollups", "SELECT DISTINCT toString(toUnixTimestamp(toStartOfHour(ts)))")
}

// holds has the answer to query wait for three seconds, at most so many times, and returns how
// often it did, to be read when the sink has stopped.
func (p *process) holds(query string, most int) (times *int) {
	times = new(int)
	p.click.watch = func(c *wireConn, sent []byte, out bool) {
		if out && c.held == nil && *times < most && bytes.Contains(sent, []byte(query)) {
			*times++
			answer := make(chan struct{})
			c.held = answer
			time.AfterFunc(3*time.Second, func() { close(answer) })
		}
	}
	return times
}

// A question of a comparison takes longer than its limit, each time: it is answered in the end.
func TestComparisonThatTakesLong(t *testing.T) {
	t.Parallel()
	f := func(name, query string) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			l.history(2, 20)
			l.uncountAll("_offset < 20")
			l.lose("events", "_offset < 20")
			l.commit(0, 0, "")
			s := l.prepare(func(c *Config) { c.InsertTimeout = 200 * time.Millisecond })
			s.holds(query, math.MaxInt)
			s.run()
			l.settled()
			l.exact()
		})
	}
	f("holes", "max(said) AS said")
	f("the window of a hole", "toUnixTimestamp64Milli(received_at)")
}

// So is the window that says what was decided of a declared batch of which a month is missing.
func TestDecidingThatTakesLong(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(1, 15, twoMonths)
	first := l.cluster.PartitionInfo(topic, 0).HighWatermark
	february := func(_ int, ev *codec.Event) { twoMonths(1, ev) }
	l.one(0, withID("b"), february)
	l.produce(15, twoMonths)
	l.repeat(0, withID("b"), february)
	s := l.start()
	l.settled()
	s.stop()
	last := l.cluster.PartitionInfo(topic, 0).HighWatermark - 1
	l.commit(0, first, plans{{l.src(), first, last}}.String())
	lost := "_offset >= 15 AND toYYYYMM(ts) = 202402"
	l.uncountAll(lost)
	l.lose("events", lost)
	s = l.prepare(func(c *Config) { c.InsertTimeout, c.DedupIDs = 200*time.Millisecond, 0 })
	held := s.holds("toUnixTimestamp64Milli(received_at)", math.MaxInt)
	s.run()
	l.settled()
	l.exact()
	s.stop()
	if n := *held; n < 2 || s.sink.patience == 0 {
		t.Errorf("the window was asked for %d times; want twice or more", n)
	}
}

// Comparing rollups takes long, as it may, and every question is answered at once: the next
// is not waited for any longer.
func TestComparisonIsNoQuestion(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(2, 20)
	l.commit(0, 0, "")
	s := l.prepare(func(c *Config) { c.InsertTimeout = 200 * time.Millisecond })
	held := s.holds("CREATE TEMPORARY TABLE difference", 1)
	s.run()
	l.settled()
	l.exact()
	s.stop()
	if got := s.sink.patience; *held != 1 || got != 0 {
		t.Errorf("compared %d times, and %d questions took too long", *held, got)
	}
}

// The states of a comparison are inserted a few blocks at a time, so that none takes longer
// than an insert may.
func TestStatesOfAComparisonComeInPieces(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(3, 20)
	l.commit(0, 0, "")
	s := l.prepare(func(c *Config) { c.FlushRows = 2 })
	var pieces atomic.Int32
	s.click.watch = func(_ *wireConn, p []byte, sent bool) {
		if sent && bytes.Contains(p, []byte("INSERT INTO events_users")) && bytes.Contains(p, []byte("uniqCombined64State")) {
			pieces.Add(1)
		}
	}
	l.lose("events_users", "1")
	l.exec(`INSERT INTO events_users (event_name, by_channel, width, at, channel, n) SELECT event_name, by_channel, width, toDateTime(intDiv(toUnixTimestamp(ts), width) * width, 'UTC') AS at, if(by_channel = 1, channel, '') AS c, count()
		FROM events ARRAY JOIN [0,0,0,0,0,1,1,1,1,1] AS by_channel, [300, 3600, 86400, 1382400, 22118400, 300, 3600, 86400, 1382400, 22118400] AS width GROUP BY event_name, by_channel, width, at, c`)
	s.run()
	l.settled()
	l.exact()
	if got := pieces.Load(); got != 3 {
		t.Errorf("%d inserts of states for sixty records, twenty at a time", got)
	}
}

// A hole is filled in blocks that are full by bytes, too.
func TestHoleOfManyBytes(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	s := l.start()
	l.produce(200, func(_ int, ev *codec.Event) { ev.Metadata = []byte(`{"a":"` + strings.Repeat("x", 5000) + `"}`) })
	l.settled()
	l.produce(1)
	l.settled()
	s.stop()
	l.uncountAll("_offset < 200")
	l.lose("events", "_offset < 200")
	l.commit(0, 0, "")
	s = l.start(func(c *Config) { c.FlushBytes = 100_000 })
	l.settled()
	l.exact()
	if n := s.sink.stats.recovered.Load(); n < 9 {
		t.Errorf("a megabyte was inserted again in %d blocks of 100 kB", n)
	}
	l.adds()
}

// Another producer writes in transactions. Their markers take offsets and are no events: they
// are dead letters, and everything adds up.
func TestTransactionMarkers(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	s := l.start()
	l.produce(10)
	l.settled()
	client, err := l.kafka.Client(kgo.TransactionalID("other"), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DefaultProduceTopic(topic))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for range 2 {
		records := l.records(5)
		if err := client.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := client.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		l.enter(records)
	}
	l.settled()
	l.rollupsAreRaw()
	l.batchesAddUp()
	l.adds()
	if n := l.value("SELECT count() FROM events"); n != "20" {
		t.Errorf("%s rows of 20 events", n)
	}
	if n := s.sink.stats.lostRecords.Load(); n > 0 {
		t.Errorf("%d records are counted as lost", n)
	}
	if n := len(l.letters()); n != 2 {
		t.Errorf("%d dead letters; want the two markers", n)
	}
}

// A hole is filled after a power cut, and nothing else comes: the sink is not stuck.
func TestIdleAfterARescan(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(3, 20)
	l.uncountAll("_offset < 20")
	l.lose("events", "_offset < 20")
	filled := make(chan struct{})
	s := l.start(func(c *Config) { c.Rescan = func() { close(filled) } })
	<-filled
	l.exact()
	s.sink.state.end(0, 60)
	if stuck, err := s.sink.Stuck(); stuck != 0 || err != nil {
		t.Errorf("stuck for %s, %v", stuck, err)
	}
}
