package sink

import (
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"edge/internal/codec"
)

// A state of exactly exactUsers users is a set, and becomes a sketch when it
// meets one of them again: that is no damage.
func TestAuditAtTheEdgeOfASet(t *testing.T) {
	l := newLab(t, 1)
	l.produce(1, twoMonths)
	s := l.start()
	l.settled()
	s.stop()
	audited := func(want uint64) {
		t.Helper()
		r, err := (&Audit{ClickHouse: l.pool}).Run(t.Context())
		if err != nil || uint64(r.Users) != want {
			t.Errorf("%d cells have other users, %v, %v; want %d", r.Users, r.Problems, err, want)
		}
	}
	l.exec(`INSERT INTO events (ts, event_name, user_id, _offset) SELECT toDateTime64(1706600000, 3, 'UTC'), 'edge', toString(number), 1000 + number FROM numbers(512)`)
	audited(0)
	again := `INSERT INTO events_users (event_name, by_channel, width, at, channel, n, u)
		SELECT 'edge', 1, 3600, toStartOfHour(toDateTime(1706600000, 'UTC')) AS at, '', 0, uniqCombined64State(14)(toString(number)) FROM numbers(`
	l.exec(again + "512)")
	if l.value("SELECT uniqCombined64Merge(14)(u) FROM events_1h WHERE event_name = 'edge'") == "512" {
		t.Error("the state is still a set: nothing is tested")
	}
	audited(0)
	l.exec(again + "700)") // users that no row has, nor any day
	audited(2)
}

// What a TTL has taken from the rows and not yet from their rollups is no damage.
func TestAuditWithTTL(t *testing.T) {
	l := newLab(t, 1)
	l.exec("INSERT INTO events (ts, event_name, user_id, _offset) SELECT now64(3) - toIntervalDay(number), 'edge', toString(number), number FROM numbers(40)")
	audited := func(want int64) {
		t.Helper()
		r, err := (&Audit{ClickHouse: l.pool, MaxAge: time.Hour}).Run(t.Context())
		if err != nil || r.Mismatched+r.Users != want {
			t.Errorf("%d rows and %d cells differ, %v, %v; want %d", r.Mismatched, r.Users, r.Problems, err, want)
		}
	}
	audited(0)
	l.exec("ALTER TABLE events MODIFY TTL toDateTime(ts) + toIntervalSecond(1728000)")
	l.exec("OPTIMIZE TABLE events FINAL")
	if n := l.value("SELECT count() FROM events"); n != "20" {
		t.Errorf("%s rows are left of 20 younger than the TTL", n)
	}
	audited(0)
	// A day of 300 days ago is still there, its wide buckets are gone.
	l.exec("INSERT INTO events_users (by_channel, width, at, event_name, n, u) SELECT arrayJoin([0, 1]), 86400, toStartOfDay(now() - toIntervalDay(300)), 'edge', 1, uniqCombined64State(14)('1')")
	audited(0)
	l.exec("INSERT INTO events_1m (m, event_name, channel, n) SELECT toStartOfMinute(now() - toIntervalDay(3)), 'edge', '', 1")
	audited(3) // that minute, and the five minutes around it that do not have it, by channel and of all
}

// Parts that have nothing but rows of the last second of a bucket are part of it.
func TestAuditOfLastSeconds(t *testing.T) {
	l := newLab(t, 1)
	l.exec("SYSTEM STOP MERGES events")
	offset := 0
	for _, end := range []string{"2023-12-31 23:59:59", "2024-01-31 23:59:59", "2024-02-05 23:59:59", "2024-02-05 13:59:59", "2024-02-05 13:04:59", "2024-02-05 13:02:59"} {
		for _, ms := range []string{"000", "001", "443", "999"} {
			offset++
			l.exec(fmt.Sprintf("INSERT INTO events (ts, event_name, user_id, _offset) SELECT toDateTime64('%s.%s', 3, 'UTC'), 'edge', 'u', %d", end, ms, offset))
		}
	}
	r, err := (&Audit{ClickHouse: l.pool}).Run(t.Context())
	if err != nil || r.Mismatched+r.Users != 0 {
		t.Errorf("%d rows and %d cells differ, %v, %v", r.Mismatched, r.Users, r.Problems, err)
	}
}

// TestAuditOfExpiredRows has a TTL take the rows of whole batches and of halves. Of what
// came after it was set, only what may be as old as that has expired.
func TestAuditOfExpiredRows(t *testing.T) {
	l := newLab(t, 1)
	s := l.start()
	const batches, each = 10, 20
	now := time.Now().UnixMilli()
	for i := range batches { // of days of their own, from 40 days ago on, the last of today
		l.produce(each, func(j int, ev *codec.Event) {
			ev.Timestamp = now - int64(batches-i-1)*4*86_400_000 - int64(each-j)*3_600_000
			ev.ReceivedAt = ev.Timestamp + 60_000
		})
		l.settled()
	}
	s.stop()
	audit := func(maxAge time.Duration) *Report {
		t.Helper()
		a := &Audit{ClickHouse: l.pool, MaxAge: maxAge, Log: &Log{Kafka: l.kafka, Topic: topic, Group: group}}
		r, err := a.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	adds := func(r *Report, rows, expired int64) {
		t.Helper()
		if c := r.Partitions[0]; !r.OK() || c.Rows != rows || c.Expired != expired || c.First+rows+expired != batches*each {
			t.Errorf("got\n%swant %d rows, %d expired and the rest before them", r, rows, expired)
		}
	}
	adds(audit(time.Hour), batches*each, 0)
	const ttl = "ALTER TABLE events MODIFY TTL toDateTime(ts) + toIntervalSecond(729000)" // through the batch of eight days ago
	set := func(at time.Time) {
		l.exec(fmt.Sprintf("ALTER TABLE events MODIFY COMMENT 'TTL set at %d'", at.Unix()))
	}
	set(time.Now())
	l.exec(ttl)
	l.exec("OPTIMIZE TABLE events FINAL")
	rows, err := strconv.ParseInt(l.value("SELECT count() FROM events"), 10, 64)
	if err != nil || rows%each == 0 {
		t.Fatalf("%d rows are left, %v: no batch is cut", rows, err)
	}
	r := audit(time.Hour)
	adds(r, rows, each-rows%each)

	// A batch of a month ago has one young row, and all between have expired.
	l.exec(fmt.Sprintf(`INSERT INTO events (ts, event_name, user_id, received_at, _src, _part, _offset, _first, _last, _rows)
		SELECT now64(3), 'name1', 'late', now64(3) - toIntervalDay(30), %d, 0, 19, 0, 19, 20`, l.src()))
	adds(audit(time.Hour), rows+1, batches*each-rows-1)

	// All that is left goes, and the log has it still.
	l.exec("TRUNCATE TABLE events")
	for _, table := range []string{"events_1m", "events_users"} {
		l.exec("TRUNCATE TABLE " + table)
	}
	if r := audit(time.Hour); !r.OK() || r.Partitions[0].Expired != batches*each || r.Pending != 0 {
		t.Errorf("got\n%swant all to have expired", r)
	}
	// Of a TTL that was there before, nothing of this log, which was written just now.
	set(time.Now().Add(-30 * 24 * time.Hour))
	if r := audit(time.Hour); r.OK() || r.Missing() != batches*each || r.Pending != 0 {
		t.Errorf("got\n%swant all to be missing", r)
	}
	if _, err := (&Audit{ClickHouse: l.pool}).Run(t.Context()); err == nil {
		t.Error("nothing says how old events may be, and the audit has a result")
	}
}

// TestAuditOfTheHead loses what was stored first, with the log and the group as they were:
// by halves, then all. The group moved back to the start is what mends it.
func TestAuditOfTheHead(t *testing.T) {
	l := newLab(t, 1)
	l.history(3, 20)
	audited := func(missing, pending int64) {
		t.Helper()
		r, err := (&Audit{ClickHouse: l.pool, Log: &Log{Kafka: l.kafka, Topic: topic, Group: group}}).Run(t.Context())
		if err != nil || r.Missing() != missing || r.OK() != (missing == 0) || r.Pending != pending {
			t.Errorf("%v, got\n%swant %d missing and %d pending", err, r, missing, pending)
		}
	}
	audited(0, 0)
	for _, table := range []string{"events", "events_1m", "events_users"} {
		l.exec("TRUNCATE TABLE " + table)
	}
	audited(60, 0)
	l.history(1, 20) // goes on behind the gap
	audited(60, 0)
	l.exec(fmt.Sprintf("INSERT INTO empty_batches VALUES (%d, 0, 20, 59, 40, 0, now())", l.src()))
	audited(20, 0)
	l.lose("empty_batches", "1")
	if _, err := l.admin.DeleteRecords(t.Context(), offsetsAt(10)); err != nil {
		t.Fatal(err)
	}
	audited(50, 0) // what is not in the log any more, nobody knows
	l.commit(0, 30, "")
	audited(20, 30)
	l.commit(0, 10, "")
	audited(0, 50)
	l.forget(func(p place) bool { return p.offset < 10 })
	l.start()
	l.settled()
	l.exact()
	audited(0, 0)
}

func offsetsAt(at int64) (o kadm.Offsets) {
	o.Add(kadm.Offset{Topic: topic, At: at})
	return o
}

// TestWhatTheLogHasBefore has what is stored begin behind the start of the log, with and
// without a reason.
func TestWhatTheLogHasBefore(t *testing.T) {
	const now = 7 // the log's number
	own := Coverage{Source: now, First: 100, Last: 199}
	at := logPosition{logNumbers: logNumbers{now: now}, end: 200, committed: 200}
	f := func(name string, change func(*logPosition), expired, missing, pending int64, stored ...Coverage) {
		t.Helper()
		r, at := &Report{Partitions: stored}, at
		change(&at)
		r.compare(map[int32]logPosition{0: at})
		var gotExpired int64
		for _, c := range r.Partitions {
			gotExpired += c.Expired
		}
		if gotExpired != expired || r.Missing() != missing || r.Pending != pending || (len(r.Problems) > 0) != (missing > 0) {
			t.Errorf("%s: %d expired, %d missing, %d pending, %q; want %d, %d and %d", name, gotExpired, r.Missing(), r.Pending, r.Problems, expired, missing, pending)
		}
	}
	same := func(*logPosition) {}
	f("nothing before", func(at *logPosition) { at.start, at.first, at.young = 100, 100, 100 }, 0, 0, 0, own)
	f("all of it", same, 0, 100, 0, own)
	f("nothing stored", same, 0, 200, 0)
	f("nothing stored, of a group without offsets", func(at *logPosition) { at.committed = -1 }, 0, 0, 200)
	f("the group has no offsets", func(at *logPosition) { at.committed = -1 }, 0, 0, 100, own)
	f("the group was moved back", func(at *logPosition) { at.committed = 40 }, 0, 40, 60, own)
	f("retention", func(at *logPosition) { at.start, at.first, at.young = 150, 150, 150 }, 0, 0, 0, own)
	f("compacted", func(at *logPosition) { at.first = 90 }, 0, 10, 0, own)
	f("without times", func(at *logPosition) { at.first = 200 }, 0, 0, 0, own)
	f("expired", func(at *logPosition) { at.young = 130 }, 100, 0, 0, own)
	f("half expired", func(at *logPosition) { at.young = 30 }, 30, 70, 0, own)
	f("expired and moved back", func(at *logPosition) { at.young, at.committed = 130, 40 }, 40, 0, 0, own)
	f("of another topic", same, 0, 100, 0, Coverage{Source: 5, Last: 99}, own)
	f("of another partition", same, 0, 100, 0, Coverage{Source: now, Partition: 1, Last: 99}, own)
	f("the tail, too", func(at *logPosition) { at.end, at.committed = 300, 250 }, 0, 150, 50, own)
}

// TestWhatMayHaveExpired has batches that lack rows and batches, before and after the time
// up to which what was received may have expired.
func TestWhatMayHaveExpired(t *testing.T) {
	for _, c := range []struct {
		name             string
		batches          []auditBatch
		expired, missing int64
	}{
		{"whole", []auditBatch{{0, 9, 10, 10, 10, 0, 0, 50}, {10, 19, 10, 10, 10, 0, 0, 150}}, 0, 0},
		{"rows of an old one", []auditBatch{{0, 9, 7, 10, 7, 0, 0, 50}, {10, 19, 10, 10, 10, 0, 0, 150}}, 3, 0},
		{"rows of a young one", []auditBatch{{0, 9, 10, 10, 10, 0, 0, 50}, {10, 19, 7, 10, 7, 0, 0, 150}}, 0, 3},
		{"batches after an old one", []auditBatch{{0, 9, 10, 10, 10, 0, 0, 50}, {20, 29, 10, 10, 10, 0, 0, 150}}, 10, 0},
		{"batches after a young one", []auditBatch{{0, 9, 10, 10, 10, 0, 0, 150}, {20, 29, 10, 10, 10, 0, 0, 160}}, 0, 10},
		{"batches after an old one, half of them young by the log", []auditBatch{{20, 29, 10, 10, 10, 0, 0, 50}, {60, 69, 10, 10, 10, 0, 0, 150}}, 20, 10},
		{"rows of one that is young by the log", []auditBatch{{50, 59, 7, 10, 7, 0, 0, 50}}, 0, 3},
	} {
		r, p := new(Report), &coverage{expiring: 100, young: 50, committed: math.MaxInt64, next: c.batches[0].first}
		for _, b := range c.batches {
			r.batch(p, b)
		}
		if p.Expired != c.expired || p.Missing != c.missing || (len(r.Problems) > 0) != (c.missing > 0) {
			t.Errorf("%s: %d expired, %d missing, %q; want %d and %d", c.name, p.Expired, p.Missing, r.Problems, c.expired, c.missing)
		}
	}
}

// TestWhatMayBeUnderWay has batches that lack rows and batches, around the group's offset.
func TestWhatMayBeUnderWay(t *testing.T) {
	f := func(missing, pending int64, batches ...auditBatch) {
		t.Helper()
		r, c := new(Report), &coverage{committed: 100}
		for _, b := range batches {
			r.batch(c, b)
		}
		if c.Missing != missing || r.Pending != pending || (len(r.Problems) > 0) != (missing > 0) {
			t.Errorf("%d missing, %d pending, %q; want %d and %d", c.Missing, r.Pending, r.Problems, missing, pending)
		}
	}
	whole := func(first, last int64) auditBatch {
		n := last - first + 1
		return auditBatch{first: first, last: last, rows: n, said: n, offsets: n}
	}
	f(0, 0, whole(0, 99), whole(100, 109))
	f(0, 10, whole(0, 99), whole(110, 119))
	f(10, 0, whole(0, 89), whole(100, 119))
	f(10, 20, whole(0, 89), whole(120, 129))
	f(0, 15, whole(0, 99), whole(110, 119), whole(125, 129))
	f(0, 3, whole(0, 99), auditBatch{first: 100, last: 109, rows: 7, said: 10, offsets: 7})
	f(3, 0, whole(0, 89), auditBatch{first: 90, last: 99, rows: 7, said: 10, offsets: 7})
}

// TestAuditorWithoutTheLog: what is missing is said, also when the log does not tell
// whether it is under way.
func TestAuditorWithoutTheLog(t *testing.T) {
	l := newLab(t, 1)
	l.history(3, 20)
	l.lose("events", "_offset = 25")
	for _, topic := range []string{topic, "gone"} {
		a := &Auditor{ClickHouse: l.pool, Logger: slog.New(slog.DiscardHandler), Every: time.Minute, Look: time.Hour, Log: &Log{Kafka: l.kafka, Topic: topic, Group: group}}
		a.once(t.Context())
		if got := a.missing.Load(); got != 1 {
			t.Errorf("topic %s: %d missing; want 1", topic, got)
		}
	}
}

// An audit of the last hour is not of all that came after a record from a clock that was
// ahead.
func TestAuditAfterAClockThatWasAhead(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	const day = 86_400_000
	now := time.Now().UnixMilli()
	s := l.start()
	l.produce(1, func(_ int, ev *codec.Event) { ev.ReceivedAt = now + 365*day })
	l.settled()
	l.produce(100, func(_ int, ev *codec.Event) { ev.ReceivedAt = now - 3*day })
	l.settled()
	s.stop()
	r, err := (&Audit{ClickHouse: l.pool, Since: time.Now().Add(-time.Hour)}).Run(t.Context())
	if err != nil || len(r.Partitions) > 0 {
		t.Errorf("the audit of the last hour, in which nothing came, is of %+v, %v", r.Partitions, err)
	}
}

// An audit of the last hour compares the hours that its events are of, the newest first, and
// no more of them than it can read in its time.
func TestAuditOfRecentHours(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	now := time.Now().Truncate(time.Hour).Add(-48 * time.Hour) // what came now is of then
	row := func(hours int, received string) {
		l.exec(fmt.Sprintf("INSERT INTO events (ts, event_name, user_id, received_at, _offset) SELECT toDateTime64(%d, 3, 'UTC'), 'edge', 'u', %s, %d", now.Unix()+int64(hours)*3600, received, hours))
	}
	row(0, "now64(3)")
	row(3, "now64(3)")
	row(5, "now64(3) - toIntervalDay(1)")
	a := &Audit{ClickHouse: l.pool, Since: time.Now().Add(-time.Hour)}
	differ := func(hours int, want int64) {
		t.Helper()
		at := now.Unix() + int64(hours)*3600
		l.exec(fmt.Sprintf("INSERT INTO events_1m (m, event_name, channel, n) SELECT toDateTime(%d, 'UTC'), 'edge', '', 1", at))
		var r Report
		if err := a.rollups(t.Context(), &r); err != nil || r.Mismatched != want {
			t.Errorf("hour %d: %d rows differ, %v, %v; want %d", hours, r.Mismatched, r.Problems, err, want)
		}
		l.exec(fmt.Sprintf("INSERT INTO events_1m (m, event_name, channel, n) SELECT toDateTime(%d, 'UTC'), 'edge', '', -1", at))
	}
	const minuteAndFive = 3 // against the row, by channel and of all
	differ(0, minuteAndFive)
	differ(3, minuteAndFive)
	differ(5, 0)
	l.exec(fmt.Sprintf("INSERT INTO events_users (event_name, by_channel, width, at, n) SELECT 'many', 0, 3600, toDateTime(%d, 'UTC'), %d", now.Unix()+3*3600, mostRows))
	hours, err := a.recentHours(t.Context())
	if err != nil || len(hours) != 1 || hours[0] != now.Unix()+3*3600 {
		t.Errorf("of an hour with all that an audit reads and one before: %v, %v", hours, err)
	}
}

// A query that fails behind its first rows has no answer.
func TestUnixSecondsOfAQueryThatFails(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	got, err := unixSeconds(t.Context(), l.pool, "SELECT toString(number + throwIf(number > 50000)) AS s FROM numbers(1000000) SETTINGS max_block_size = 1000, max_threads = 1")
	if err == nil {
		t.Errorf("%d of a million rows, and no error", len(got))
	}
}
