package sink

import (
	"fmt"
	"testing"
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
		r, err := (&Audit{ClickHouse: l.pool}).Run(t.Context())
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
