package sink

import (
	"fmt"
	"strings"
	"testing"

	"edge/internal/codec"
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
		l.commit(p.Partition, first, plan{l.src(), first, last}.String())
	}
	leave(l, fmt.Sprintf("_offset >= %d", first))
}

// lose deletes rows of a table for good.
func (l *lab) lose(table, where string) {
	l.t.Helper()
	l.exec("ALTER TABLE " + table + " DELETE WHERE " + where + " SETTINGS mutations_sync = 2")
}

// uncount takes declared rows out of a rollup: what a crash leaves that came
// after the part of events and before the part of the rollup.
func (l *lab) uncount(table, key, cell, where string) {
	l.t.Helper()
	// The part holds counts of the history as well, so the difference goes in as
	// a negative count, and the states of these users are lost by a rebuild from
	// the others.
	states := ""
	if table != "events_1m" {
		states = ", uniqCombined64State(14)(user_id) AS u"
	}
	l.exec("TRUNCATE TABLE " + table)
	if table == "events_1d" {
		l.exec("TRUNCATE TABLE events_channel_users") // its view fills it again
	}
	columns := key + ", event_name, channel, n"
	if states != "" {
		columns += ", u"
	}
	l.exec(fmt.Sprintf("INSERT INTO %s (%s) SELECT %s AS cell, event_name, channel, toInt64(count()) AS n%s FROM events WHERE NOT (%s) GROUP BY cell, event_name, channel",
		table, columns, cell, states, where))
}

func (l *lab) uncountAll(where string) {
	l.uncount("events_1m", "m", "toStartOfMinute(ts)", where)
	l.uncount("events_1h", "h", "toStartOfHour(ts)", where)
	l.uncount("events_1d", "d", "toDate(ts)", where)
	l.uncountUsers(where)
}

// uncountUsers is uncount of the table that has all widths, and uncountWide of
// the one that has those beyond a day by channel.
func (l *lab) uncountUsers(where string) {
	l.t.Helper()
	l.exec("TRUNCATE TABLE events_users")
	l.exec("INSERT INTO events_users (width, at, event_name, n, u) " + wideCounts("event_name", widths, where))
}

func (l *lab) uncountWide(where string) {
	l.t.Helper()
	l.exec("TRUNCATE TABLE events_channel_users")
	l.exec("INSERT INTO events_channel_users (width, at, event_name, channel, n, u) " + wideCounts("event_name, channel", []int64{long, longer}, where))
}

func wideCounts(key string, widths []int64, where string) string {
	return fmt.Sprintf(`SELECT width, toDateTime(intDiv(toUnixTimestamp(ts), width) * width, 'UTC') AS cell, %[1]s, toInt64(count()), uniqCombined64State(14)(user_id)
		FROM events ARRAY JOIN [%[2]s] AS width WHERE NOT (%[3]s) GROUP BY width, cell, %[1]s`, key, list(widths), where)
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
	{"rows without minutes", func(l *lab, declared string) { l.uncount("events_1m", "m", "toStartOfMinute(ts)", declared) }, "repaired"},
	{"rows without hours", func(l *lab, declared string) { l.uncount("events_1h", "h", "toStartOfHour(ts)", declared) }, "repaired"},
	{"rows without days", func(l *lab, declared string) { l.uncount("events_1d", "d", "toDate(ts)", declared) }, "repaired"},
	{"rows without users", func(l *lab, declared string) { l.uncountUsers(declared) }, "repaired"},
	{"rows without the wide buckets of channels", func(l *lab, declared string) { l.uncountWide(declared) }, "repaired"},
	{"rows without rollups", func(l *lab, declared string) { l.uncountAll(declared) }, "repaired"},
	{"rows without one month of a rollup", func(l *lab, declared string) {
		l.uncount("events_1h", "h", "toStartOfHour(ts)", declared+" AND toYYYYMM(ts) = 202401")
	}, "repaired"},
	{"rollups without rows", func(l *lab, declared string) { l.lose("events", declared) }, "repaired"},
	{"one rollup without rows", func(l *lab, declared string) {
		l.uncount("events_1m", "m", "toStartOfMinute(ts)", declared)
		l.uncount("events_1d", "d", "toDate(ts)", declared)
		l.lose("events", declared)
	}, "repaired"},
	{"rows of one month, rollups of the other", func(l *lab, declared string) {
		l.uncountAll(declared + " AND toYYYYMM(ts) = 202401")
		l.lose("events", declared+" AND toYYYYMM(ts) = 202402")
	}, "repaired"},
	{"a rollup counted twice", func(l *lab, declared string) {
		l.exec(`INSERT INTO events_1h (h, event_name, channel, n, u) SELECT toStartOfHour(ts) AS h, event_name, channel, toInt64(count()) AS n, uniqCombined64State(14)(user_id) AS u
			FROM events WHERE ` + declared + ` GROUP BY h, event_name, channel`)
	}, "repaired"},
	{"days counted twice", func(l *lab, declared string) {
		l.exec(`INSERT INTO events_1d (d, event_name, channel, n, u) SELECT toDate(ts) AS d, event_name, channel, toInt64(count()) AS n, uniqCombined64State(14)(user_id) AS u
			FROM events WHERE ` + declared + ` GROUP BY d, event_name, channel`)
	}, "repaired"},
	{"a few rows of the batch", func(l *lab, declared string) {
		l.uncountAll(declared + " AND _offset % 3 = 0")
		l.lose("events", declared+" AND _offset % 3 = 0")
	}, "reinserted"},
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
