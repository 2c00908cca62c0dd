package sink

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"edge/internal/clickhouse"
	"edge/internal/codec"
	"edge/migrations"
)

// twoMonths spreads events over January and February 2024, so that an insert
// makes two parts in events and in every rollup.
func twoMonths(i int, ev *codec.Event) {
	ev.Timestamp = 1_706_600_000_000 + int64(i%2)*86_400_000*3 + int64(i)*7919
}

// declare brings the lab to a state that a sink left behind when it died: n
// records in the log, all of them declared, and in ClickHouse what leave makes
// of a finished insert. declared is the condition for the rows.
func (l *lab) declare(n int, leave func(l *lab, declared string)) {
	l.t.Helper()
	first := l.cluster.PartitionInfo(topic, 0).HighWatermark
	l.produce(n*int(l.partitions), twoMonths)
	s := l.start() // FlushRows is larger: one flight for all of it
	l.settled()
	s.stop()
	for _, p := range l.cluster.PartitionInfos(topic) {
		last := p.HighWatermark - 1
		l.commit(p.Partition, first, plans{{l.src(), first, last}}.String())
	}
	leave(l, fmt.Sprintf("_offset >= %d", first))
}

// lose deletes rows of a table for good.
func (l *lab) lose(table, where string) {
	l.t.Helper()
	l.exec("ALTER TABLE " + table + " DELETE WHERE " + where + " SETTINGS mutations_sync = 2")
}

// A crash leaves what came after the part of events and before the part of a
// rollup. uncountMinutes and uncountUsers take rows out of theirs. Its part holds
// counts of the history as well, so it is filled again without them.
func (l *lab) uncountMinutes(where string) {
	l.t.Helper()
	l.exec("TRUNCATE TABLE events_1m")
	l.exec(`INSERT INTO events_1m (m, event_name, channel, n) SELECT toStartOfMinute(ts) AS m, event_name, channel, toInt64(count())
		FROM events WHERE NOT (` + where + `) GROUP BY m, event_name, channel`)
}

// uncountUsers has every bucket, so where may name a width, too.
func (l *lab) uncountUsers(where string) {
	l.t.Helper()
	l.exec("TRUNCATE TABLE events_users")
	l.countUsers("NOT (" + where + ")")
}

func (l *lab) countUsers(where string) {
	l.t.Helper()
	l.exec(fmt.Sprintf(`INSERT INTO events_users (event_name, by_channel, width, at, channel, n, u)
		SELECT event_name, by_channel, width, toDateTime(intDiv(toUnixTimestamp(ts), width) * width, 'UTC') AS cell, if(by_channel = 1, channel, '') AS c,
			toInt64(count()), uniqCombined64State(14)(user_id)
		FROM events ARRAY JOIN [0,0,0,0,0,1,1,1,1,1] AS by_channel, [%[1]s,%[1]s] AS width WHERE %[2]s GROUP BY event_name, by_channel, width, cell, c`, list(widths), where))
}

func (l *lab) uncountAll(where string) {
	l.t.Helper()
	l.uncountMinutes(where)
	l.uncountUsers(where)
}

// preparedStates are what a dead sink or a dead ClickHouse can leave of a
// declared insert: any subset of the parts it makes, one per table and month,
// and a rollup that counted twice.
var preparedStates = []struct {
	name  string
	leave func(l *lab, declared string)
	found string // the action that recovery counts
}{
	{"no rows", func(l *lab, declared string) {
		l.uncountAll(declared)
		l.lose("events", declared)
	}, "reinserted"},
	{"all rows, all rollups", func(*lab, string) {}, "present"},
	{"one month of two", func(l *lab, declared string) {
		february := declared + " AND toYYYYMM(ts) = 202402"
		l.uncountAll(february)
		l.lose("events", february)
	}, "reinserted"},
	{"rows without minutes", func(l *lab, declared string) { l.uncountMinutes(declared) }, "repaired"},
	{"rows without users", func(l *lab, declared string) { l.uncountUsers(declared) }, "repaired"},
	{"rows without rollups", func(l *lab, declared string) { l.uncountAll(declared) }, "repaired"},
	{"rows without one month of minutes", func(l *lab, declared string) { l.uncountMinutes(declared + " AND toYYYYMM(ts) = 202401") }, "repaired"},
	// What a repair leaves that was killed between two of its steps.
	{"rows without hours", func(l *lab, declared string) { l.uncountUsers(declared + " AND width = 3600") }, "repaired"},
	{"rows without days and more", func(l *lab, declared string) { l.uncountUsers(declared + " AND width >= 86400") }, "repaired"},
	{"rows without the widest buckets", func(l *lab, declared string) { l.uncountUsers(declared + " AND width = 22118400") }, "repaired"},
	{"rows without buckets by channel", func(l *lab, declared string) { l.uncountUsers(declared + " AND by_channel = 1") }, "repaired"},
	{"rows without buckets of all channels", func(l *lab, declared string) { l.uncountUsers(declared + " AND by_channel = 0") }, "repaired"},
	{"rollups without rows", func(l *lab, declared string) { l.lose("events", declared) }, "repaired"},
	{"one rollup without rows", func(l *lab, declared string) {
		l.uncountMinutes(declared)
		l.lose("events", declared)
	}, "repaired"},
	{"rows of one month, rollups of the other", func(l *lab, declared string) {
		l.uncountAll(declared + " AND toYYYYMM(ts) = 202401")
		l.lose("events", declared+" AND toYYYYMM(ts) = 202402")
	}, "repaired"},
	{"users counted twice", func(l *lab, declared string) { l.countUsers(declared) }, "repaired"},
	{"days counted twice", func(l *lab, declared string) { l.countUsers(declared + " AND width = 86400") }, "repaired"},
	{"a few rows of the batch", func(l *lab, declared string) {
		l.uncountAll(declared + " AND _offset % 3 = 0")
		l.lose("events", declared+" AND _offset % 3 = 0")
	}, "reinserted"},
}

// TestRecoveriesFillABlock has plans of four partitions, of which two fill a block.
func TestRecoveriesFillABlock(t *testing.T) {
	l := newLab(t, 4)
	l.declare(25, func(*lab, string) {})
	p := l.start(func(c *Config) { c.FlushRows = 50 })
	p.settled()
	l.exact()
	if n := p.sink.stats.recovered.Load(); n != 2 {
		t.Errorf("%d recoveries; want 2", n)
	}
}

// TestRecoveryBesideLastSeconds has history in parts of which all rows are in the last
// second of an hour, and a batch of that hour.
func TestRecoveryBesideLastSeconds(t *testing.T) {
	l := newLab(t, 1)
	l.exec("SYSTEM STOP MERGES events")
	const hour, length = 1_706_598_000_000, 3_600_000
	during := func(from int64) func(int, *codec.Event) {
		return func(i int, ev *codec.Event) { ev.Timestamp = hour + from + int64(i*11%900) }
	}
	s := l.start()
	for range 3 {
		l.produce(90, during(length-999))
		l.settled()
	}
	first := l.cluster.PartitionInfo(topic, 0).HighWatermark
	l.produce(60, during(0))
	l.settled()
	s.stop()
	l.commit(0, first, plans{{l.src(), first, first + 59}}.String())
	s = l.start()
	s.settled()
	l.exact()
	if got := s.sink.outcomes(); !strings.Contains(got, "present 1, reinserted 0, repaired 0") {
		t.Errorf("recovery found %s; want the batch as it should be", got)
	}
}

// TestRecoveryOfManyNames has batches of which names and hours do not fit into a query.
func TestRecoveryOfManyNames(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	big := func(c *Config) { c.FlushRows = 2000 }
	for _, c := range []struct{ names, bytes, hours int }{{33, 1000, 1}, {1000, 20, 1000}, {480, 22, 1000}, {1100, 4, 1000}} {
		first := l.cluster.PartitionInfo(topic, 0).HighWatermark
		l.produce(max(c.names, c.hours), func(i int, ev *codec.Event) {
			ev.Name = fmt.Appendf(nil, "%0*d", c.bytes, i%c.names)
			ev.Timestamp = 1_706_600_000_000 + int64(i%c.hours)*3_600_000
		})
		s := l.start(big)
		l.settled()
		s.stop()
		l.commit(0, first, plans{{l.src(), first, l.cluster.PartitionInfo(topic, 0).HighWatermark - 1}}.String())
		l.uncountAll(fmt.Sprintf("_offset >= %d", first))
		s = l.start(big)
		s.settled()
		l.exact()
		s.stop()
		if got := s.sink.outcomes(); !strings.Contains(got, "repaired 1") {
			t.Errorf("%+v: recovery found %s; want rollups to repair", c, got)
		}
	}
}

// TestRecoveryOfExpiredRows has history that a TTL takes, set later than it came: days and
// wider buckets outlive it, and whoever compares it with the log leaves them alone.
func TestRecoveryOfExpiredRows(t *testing.T) {
	t.Parallel()
	long := time.Now().Truncate(24*time.Hour).AddDate(0, 0, -100).UnixMilli()
	old := func(i int, ev *codec.Event) { ev.Timestamp = long + int64(i)*3_600_000 }
	recent := func(i int, ev *codec.Event) { ev.Timestamp = time.Now().UnixMilli() - int64(i) }
	for _, c := range []struct {
		name   string
		leave  func(l *lab) // where the group stands
		stored string
	}{
		{"a plan of expired rows", func(l *lab) { l.commit(0, 20, plans{{l.src(), 20, 39}}.String()) }, "0"},
		{"a plan of expired rows and others", func(l *lab) {
			l.produce(20, recent)
			l.commit(0, 20, plans{{l.src(), 20, 59}}.String())
		}, "20"},
		{"offsets put back before rows that are kept", func(l *lab) {
			l.commit(0, 40, "")
			s := l.start()
			l.produce(20, recent)
			l.settled()
			s.stop()
			l.commit(0, 0, "")
		}, "20"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, 1)
			l.history(2, 20, old)
			err := clickhouse.Migrate(t.Context(), l.clickhouse, clickhouse.MigrateOptions{Files: migrations.FS, Exclusive: true, TTL: 40 * 24 * time.Hour, Logger: l.log("schema")})
			if err != nil {
				t.Fatal(err)
			}
			expire := func() {
				for _, table := range []string{"events", "events_1m", "events_users"} {
					l.exec("OPTIMIZE TABLE " + table + " FINAL")
				}
			}
			expire()
			days := func() string {
				return l.value(`SELECT toString(groupArray((width, n, users))) FROM (SELECT width, sum(n) AS n, uniqCombined64Merge(14)(u) AS users
					FROM events_users WHERE by_channel = 0 AND at < now() - toIntervalDay(60) AND width <= 1382400 GROUP BY width ORDER BY width)`)
			}
			want := days()
			if !strings.Contains(want, "(86400,40,") || l.value("SELECT count() FROM events") != "0" {
				t.Fatalf("nothing expired, or too much: %s", want)
			}
			c.leave(l)
			l.start()
			l.settled()
			expire()
			if got := days(); got != want {
				t.Errorf("days are %s; want %s", got, want)
			}
			if got := l.value("SELECT count() FROM events"); got != c.stored {
				t.Errorf("%s rows; want %s", got, c.stored)
			}
		})
	}
}

func TestRecoveryFromEveryPreparedState(t *testing.T) {
	t.Parallel() // it waits more than it works
	l := newLab(t, 2)
	l.declare(30, func(*lab, string) {}) // history that recovery must leave alone
	for _, c := range preparedStates {
		l.declare(25, c.leave)
		s := l.start()
		l.produce(10, twoMonths)
		l.settled()
		l.exact()
		s.stop()
		got := s.sink.outcomes()
		if !strings.Contains(got, c.found+" 1") {
			t.Errorf("recovery found %s; want %s", got, c.found)
		}
		if t.Failed() {
			t.Fatalf("after: %s", c.name)
		}
	}
}
