package sink

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"edge/internal/clickhouse"
	"edge/internal/codec"
	"edge/migrations"
)

// TestClickHouseDown takes ClickHouse away under load: the sink holds three
// blocks and no more, the lag and the time it is stuck are reported, and it
// goes on by itself.
func TestClickHouseDown(t *testing.T) {
	t.Parallel() // it waits more than it works
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

// TestClickHouseSlow gives the sink a narrow wire to ClickHouse: it makes fewer
// and larger inserts, and keeps its partitions.
func TestClickHouseSlow(t *testing.T) {
	l := newLab(t, 2)
	s := l.start()
	l.produce(20, twoMonths)
	l.settled()
	member := s.member.name()
	s.click.slow(300_000)
	stop := l.load()
	defer stop()
	flights := func(n uint64) {
		t.Helper()
		want := s.sink.stats.stored.Load() + n
		eventually(t, "inserts get through", func() error {
			if got := s.sink.stats.stored.Load(); got < want {
				return fmt.Errorf("%d of %d", got, want)
			}
			return nil
		})
	}
	flights(3) // the first carry what came before there was anything to wait for
	rows, inserts := s.sink.stats.rows.Load(), s.sink.stats.stored.Load()
	flights(4)
	rows, inserts = s.sink.stats.rows.Load()-rows, s.sink.stats.stored.Load()-inserts
	stop()
	full := uint64(l.config().FlushRows)
	if rows < inserts*full*9/10 {
		t.Errorf("%d inserts of %d rows in all; want them full, %d each", inserts, rows, full)
	}
	s.click.slow(0)
	l.settled()
	l.exact()
	if now := s.member.name(); now != member || s.sink.stats.disowned.Load()+s.sink.stats.recovered.Load() > 0 {
		t.Errorf("member %s became %s: %s", member, now, s.sink.outcomes())
	}
}

// refuseInserts has ClickHouse answer inserts with code, by way of spoil, under
// a sink that was well. What is not stored must not be passed meanwhile.
func (l *lab) refuseInserts(s *process, code int, spoil string) {
	l.t.Helper()
	l.produce(20, twoMonths)
	l.settled()
	l.exec(spoil)
	l.produce(40, twoMonths)
	eventually(l.t, fmt.Sprintf("inserts fail with %d", code), func() error { return s.failedWith(code, 1) })
	at := l.committed()
	for _, stored := range []string{"count() FROM events", "sum(n) FROM events_1m",
		"sum(n) FROM events_users WHERE width = 300 AND by_channel = 1", "sum(n) FROM events_users WHERE width = 1382400 AND by_channel = 0"} {
		if got, err := strconv.ParseInt(l.value("SELECT "+stored), 10, 64); err != nil || got < at {
			l.t.Errorf("the group is past %d records; %s is %d, %v", at, stored, got, err)
		}
	}
}

// mended wants everything stored and the sink well.
func (l *lab) mended(s *process) {
	l.t.Helper()
	l.produce(400, twoMonths)
	l.settled()
	l.exact()
	if err := s.sink.Ready(time.Second); err != nil {
		l.t.Errorf("not ready when mended: %v", err)
	}
}

// committed is the sum of the group's offsets.
func (l *lab) committed() (sum int64) {
	for _, c := range l.cluster.GroupInfo(group).Commits[topic] {
		sum += c.Offset
	}
	return sum
}

// failedWith wants n failed inserts of a code.
func (p *process) failedWith(code int, n uint64) error {
	p.sink.stats.mu.Lock()
	defer p.sink.stats.mu.Unlock()
	if p.sink.stats.insertErrors[fmt.Sprint(code)] < n {
		return fmt.Errorf("errors so far: %v", p.sink.stats.insertErrors)
	}
	return nil
}

// TestMVThrows has a view fail every insert, of which events and some rollups
// may have their part by then: recovery looks, and adds what is missing.
func TestMVThrows(t *testing.T) {
	l := newLab(t, 2)
	s := l.start()
	l.exec("CREATE TABLE poisoned (n UInt64) ENGINE = Null")
	l.refuseInserts(s, 395, "CREATE MATERIALIZED VIEW throwing TO poisoned AS SELECT throwIf(count() > 0) AS n FROM events")
	l.exec("DROP VIEW throwing")
	l.mended(s)
}

// TestTooManyParts: events takes parts and a rollup does not. The sink waits,
// longer each time, says why, and goes on by itself.
func TestTooManyParts(t *testing.T) {
	l := newLab(t, 2)
	l.exec("SYSTEM STOP MERGES events_users")
	s := l.start()
	l.refuseInserts(s, 252, "ALTER TABLE events_users MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1")
	if err := s.sink.Ready(time.Millisecond); err == nil || !strings.Contains(err.Error(), "252") {
		t.Errorf("readiness says %v; want 252", err)
	}
	l.exec("ALTER TABLE events_users RESET SETTING parts_to_throw_insert, parts_to_delay_insert")
	l.mended(s)
	l.exec("SYSTEM START MERGES events_users")
	if s.sink.stats.retried.Load() == 0 {
		t.Error("no try was counted as retried")
	}
}

// TestClickHouseMemoryLimit: queries of others take the memory that the server
// may have, and give it back.
func TestClickHouseMemoryLimit(t *testing.T) {
	needLibrary(t)
	l := newLabOn(t, engineOn(t, filepath.Join(t.TempDir(), "data"), childMemoryEnv+"=600000000"), 2)
	s := l.start()
	l.produce(20, twoMonths)
	l.settled()
	l.exec("CREATE TABLE others (n UInt64) ENGINE = Memory")
	eventually(t, "an insert meets the limit", func() error {
		// Refused itself at last, and then there is little left.
		_ = l.pool.Exec(t.Context(), "INSERT INTO others SELECT number FROM numbers(2000000) SETTINGS max_block_size = 65536")
		if l.atEnd() == nil {
			l.produce(200, twoMonths)
		}
		return s.failedWith(241, 1)
	})
	eventually(t, "the memory is given back", func() error { return l.pool.Exec(t.Context(), "TRUNCATE TABLE others") })
	l.mended(s)
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
	f("RENAME TABLE events_users TO users", "RENAME TABLE users TO events_users", "events_users is not")
	f("RENAME TABLE events TO kept", "RENAME TABLE kept TO events", "no column")
	f("RENAME TABLE events TO kept, sources TO events", "RENAME TABLE events TO sources, kept TO events", "no column")
	l.start()
	l.produce(10)
	l.settled()
	l.exact()
}

// TestSchemaDrift takes a column away from under a running sink. No event is at
// fault, so none becomes a dead letter: the sink stands still, says what is
// missing, and goes on when it is back. A sink that starts meanwhile ends.
func TestSchemaDrift(t *testing.T) {
	l := newLab(t, 2)
	s := l.start()
	l.produce(20, twoMonths)
	l.settled()
	at := l.committed()
	l.exec("ALTER TABLE events RENAME COLUMN metadata TO data")
	l.produce(40, twoMonths)
	eventually(t, "readiness names the column", func() error {
		if err := s.sink.Ready(time.Millisecond); err == nil || !strings.Contains(err.Error(), "metadata") {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})
	other := l.prepare()
	defer other.pool.Close()
	var schema *SchemaError
	if err := other.sink.Run(t.Context()); !errors.As(err, &schema) || strings.Contains(err.Error(), "\n") {
		t.Errorf("a sink that starts says %v; want one sentence about the schema", err)
	}
	if got := l.committed(); got != at {
		t.Errorf("the group went on from %d to %d", at, got)
	}
	l.exec("ALTER TABLE events RENAME COLUMN data TO metadata")
	l.mended(s)
	if got := len(l.letters()); got != 0 {
		t.Errorf("%d dead letters; want none", got)
	}
}

// TestTTLChangedByHand shortens how long rows are kept behind edge's back: rows
// that are past it go when they are inserted, and the rollups count them. The
// audit says so. The next start takes the TTL away, and comparing the log with
// what is stored, as after a power cut, brings the rows back.
func TestTTLChangedByHand(t *testing.T) {
	l := newLab(t, 2)
	s := l.start()
	l.produce(20)
	l.settled()
	l.exec("ALTER TABLE events MODIFY TTL toDateTime(ts) + INTERVAL 1 DAY")
	l.produce(40)
	l.settled()
	s.stop()
	audit := Audit{ClickHouse: l.pool, Log: &Log{Kafka: l.kafka, Topic: topic, Group: group}}
	report, err := audit.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if report.OK() {
		t.Errorf("the audit finds nothing wrong: %s", report)
	}
	if err := clickhouse.Migrate(t.Context(), l.clickhouse, clickhouse.MigrateOptions{Files: migrations.FS, Exclusive: true, Logger: l.log("schema")}); err != nil {
		t.Fatal(err)
	}
	filled := make(chan struct{})
	l.start(func(c *Config) { c.Rescan = func() { close(filled) } })
	l.produce(10)
	l.settled()
	<-filled
	l.exact()
	if report, err = audit.Run(t.Context()); err != nil || !report.OK() {
		t.Errorf("after the next start: %v\n%s", err, report)
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
		l.commit(p.Partition, first, plans{{l.src(), first, p.HighWatermark - 1}}.String())
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

// A ClickHouse that takes connections and answers nothing holds the sink at its
// first question, before it has seen a record. The lag has to show all the same.
func TestClickHouseHangsBeforeTheFirstRecord(t *testing.T) {
	t.Parallel() // it waits more than it works
	l := newLab(t, 1)
	s := l.start()
	eventually(t, "the sink has joined", func() error { return s.sink.Ready(time.Hour) })
	s.click.freeze()
	l.produce(5)
	eventually(t, "the lag is noticed", func() error {
		if stuck, _ := s.sink.Stuck(); stuck == 0 {
			return errors.New("not stuck")
		}
		return nil
	})
	if err := s.sink.Ready(0); err == nil {
		t.Error("a sink that stores nothing is ready")
	}
	s.sink.state.mu.Lock()
	if at := s.sink.state.partitions[0]; at.high-at.stored != 5 || at.oldest.IsZero() {
		t.Errorf("the lag is %d, the oldest of %v; want 5 and a time", at.high-at.stored, at.oldest)
	}
	s.sink.state.mu.Unlock()
	s.click.thaw()
	l.settled()
	l.exact()
	if stuck, err := s.sink.Stuck(); stuck != 0 {
		t.Errorf("still stuck for %s: %v", stuck, err)
	}
}
