package sink

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"edge/internal/codec"
)

// TestClickHouseDown takes ClickHouse away under load: the sink holds two
// blocks and no more, the lag and the time it is stuck are reported, and it
// goes on by itself.
func TestClickHouseDown(t *testing.T) {
	l := newLab(t, 2)
	s := l.start(func(c *Config) { c.FlushRows = 100 })
	l.produce(50)
	l.settled()
	s.click.cut()
	l.produce(5000)
	eventually(t, "lag and trouble are reported", func() error {
		stuck, err := s.sink.Stuck()
		s.sink.state.mu.Lock()
		lag := s.sink.state.lagLocked()
		s.sink.state.mu.Unlock()
		if err == nil || stuck < 200*time.Millisecond || lag < 5000 {
			return fmt.Errorf("stuck %s, lag %d, err %v", stuck, lag, err)
		}
		return nil
	})
	if err := s.sink.Ready(100 * time.Millisecond); err == nil {
		t.Error("ready although stuck")
	}
	var before, later runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	l.produceUnread(20_000)
	runtime.GC()
	runtime.ReadMemStats(&later)
	if grown := int64(later.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("heap grew by %d bytes in an outage", grown)
	}
	s.click.mend()
	l.settled()
	l.exact()
	if err := s.sink.Ready(time.Second); err != nil {
		t.Errorf("not ready afterwards: %v", err)
	}
}

// produceUnread is produce, for many.
func (l *lab) produceUnread(n int) {
	for ; n > 0; n -= 1000 {
		l.produce(min(n, 1000))
	}
}

// TestInsertFails has ClickHouse refuse inserts: a view that throws, and a
// table with too many parts.
func TestInsertFails(t *testing.T) {
	l := newLab(t, 2)
	s := l.start()
	l.produce(20, twoMonths)
	l.settled()
	f := func(what, spoil, mend string, code int) {
		t.Helper()
		l.exec(spoil)
		l.produce(40, twoMonths)
		eventually(t, what, func() error {
			s.sink.stats.mu.Lock()
			defer s.sink.stats.mu.Unlock()
			if s.sink.stats.insertErrors[fmt.Sprint(code)] == 0 {
				return fmt.Errorf("errors so far: %v", s.sink.stats.insertErrors)
			}
			return nil
		})
		l.exec(mend)
		l.settled()
		l.exact()
		if t.Failed() {
			t.FailNow()
		}
	}
	l.exec("CREATE TABLE poisoned (n UInt64) ENGINE = Null")
	f("a view throws", "CREATE MATERIALIZED VIEW throwing TO poisoned AS SELECT throwIf(count() > 0) AS n FROM events", "DROP VIEW throwing", 395)
	l.exec("SYSTEM STOP MERGES events_1h")
	f("too many parts", "ALTER TABLE events_1h MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1",
		"ALTER TABLE events_1h RESET SETTING parts_to_throw_insert, parts_to_delay_insert", 252)
	l.exec("SYSTEM START MERGES events_1h")
}

// TestSchemaIsChecked spoils the schema in every way that would make an insert
// mean something else. The sink refuses to start and, mended, goes on.
func TestSchemaIsChecked(t *testing.T) {
	l := newLab(t, 1)
	f := func(spoil, mend, problem string) {
		t.Helper()
		l.exec(spoil)
		p := l.prepare()
		defer p.pool.Close()
		err := p.sink.Run(t.Context())
		var schema *SchemaError
		if !errors.As(err, &schema) || !strings.Contains(err.Error(), problem) {
			t.Errorf("%s\ngot  %v\nwant %s", spoil, err, problem)
		}
		if err := p.sink.Ready(time.Minute); err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("%s: ready says %v", spoil, err)
		}
		l.exec(mend)
	}
	f("ALTER TABLE events RENAME COLUMN metadata TO data", "ALTER TABLE events RENAME COLUMN data TO metadata", "no column metadata")
	f("DETACH TABLE events_1m_mv", "ATTACH TABLE events_1m_mv", "view events_1m_mv is missing")
	f("RENAME TABLE events_1d TO days", "RENAME TABLE days TO events_1d", "events_1d is not")
	f("RENAME TABLE events TO kept", "RENAME TABLE kept TO events", "no column")
	f("RENAME TABLE events TO kept, sources TO events", "RENAME TABLE events TO sources, kept TO events", "no column")
	l.start()
	l.produce(10)
	l.settled()
	l.exact()
}

// TestReadiness: an idle sink forgets an error, rejoining hides none.
func TestReadiness(t *testing.T) {
	var p progress
	p.assigned(0, 10)
	p.failed(errCut)
	p.idle()
	if p.err != nil {
		t.Errorf("an idle sink remembers %v", p.err)
	}
	p.end(0, 20)
	p.moved = time.Now().Add(-time.Hour)
	p.failed(errCut)
	p.idle()
	p.forgetAll()
	p.assigned(0, 10)
	s := &Sink{}
	s.state.partitions, s.state.moved, s.state.err = p.partitions, p.moved, p.err
	if stuck, err := s.Stuck(); stuck < time.Hour || err == nil {
		t.Errorf("after rejoining: stuck for %s, %v", stuck, err)
	}
	if s.Ready(time.Minute) == nil {
		t.Error("ready")
	}
}

// TestLargeAndOddFlights: more hours than a condition lists, ten months in one
// block, a block that is full by bytes, one that is full by rows.
func TestLargeAndOddFlights(t *testing.T) {
	l := newLab(t, 2)
	years := func(i int, ev *codec.Event) {
		ev.Timestamp = 946_684_800_000 + int64(i)*5*3_600_000 // 2000 and on, every fifth hour
	}
	s := l.start(func(c *Config) { c.FlushRows = 5000; c.InsertTimeout = time.Minute })
	l.produce(1500, years)
	l.settledWithin(2 * time.Minute)
	l.exact()
	s.stop()

	// The same again through a recovery.
	first := l.cluster.PartitionInfo(topic, 0).HighWatermark
	l.produce(1500, years)
	for _, p := range l.cluster.PartitionInfos(topic) {
		l.commit(p.Partition, first, plan{l.src(), first, p.HighWatermark - 1}.String())
	}
	s = l.start(func(c *Config) { c.FlushRows = 5000; c.InsertTimeout = time.Minute })
	l.settledWithin(2 * time.Minute)
	l.exact()
	s.stop()

	s = l.start(func(c *Config) { c.FlushBytes = 20_000 })
	l.produce(1000, func(_ int, ev *codec.Event) { ev.Metadata = []byte(`{"x":"` + strings.Repeat("y", 1000) + `"}`) })
	l.settled()
	l.exact()
	if got := s.sink.stats.stored.Load(); got < 10 {
		t.Errorf("%d flights for a megabyte; want one per 20 kB or so", got)
	}
}
