package clickhouse

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestTTL(t *testing.T) {
	t.Parallel()
	o := database(t)
	m := options()
	m.Exclusive = true
	p := open(t, o)
	f := func(ttl time.Duration, want string) {
		t.Helper()
		m.TTL = ttl
		for range 2 { // the second run finds nothing to do
			migrate(t, o, m)
			got, err := p.Strings(testContext(t), `SELECT concat(name, ': ', extract(engine_full, 'TTL (.*?) SETTINGS')) FROM system.tables
				WHERE database = currentDatabase() AND name IN ('events', 'events_1m', 'events_users') ORDER BY name`)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(got, "; "); got != want {
				t.Errorf("TTL %s: got %s; want %s", ttl, got, want)
			}
		}
	}
	day := 24 * time.Hour
	f(0, "events: ; events_1m: ; events_users: ")
	f(30*day, "events: toDateTime(ts) + toIntervalSecond(2592000); events_1m: toDateTime(m) + toIntervalSecond(2592000 + 60); "+
		"events_users: toDateTime(at) + toIntervalSecond(2592000 + multiIf(width < 86400, width, width = 86400, 22204800, 22118400))")
	f(3*day, "events: toDateTime(ts) + toIntervalSecond(259200); events_1m: toDateTime(m) + toIntervalSecond(259200 + 60); "+
		"events_users: toDateTime(at) + toIntervalSecond(259200 + multiIf(width < 86400, width, width = 86400, 22204800, 22118400))")

	expiry := func() Expiry {
		t.Helper()
		e, err := p.ReadExpiry(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	gone := func(ttl, older time.Duration) {
		t.Helper()
		e := expiry()
		if e.TTL != ttl || e.Now.Sub(e.Set) > time.Minute || (e.Now.Sub(e.Gone)-older).Abs() > time.Minute {
			t.Errorf("got %+v; want a TTL of %s set just now, and rows gone that were older than %s", e, ttl, older)
		}
	}
	gone(3*day, 30*day)

	insert := func(age time.Duration) {
		exec(t, p, fmt.Sprintf("INSERT INTO events (ts, event_name) SELECT now64(3) - toIntervalSecond(%d), 'e' FROM numbers(10)", int(age.Seconds())))
	}
	insert(2 * day)
	insert(10 * day)
	exec(t, p, "OPTIMIZE TABLE events FINAL")
	exec(t, p, "OPTIMIZE TABLE events_users FINAL")
	if n := row(t, p, "SELECT count() FROM events"); n != "10" {
		t.Errorf("%s rows are left of 10 within the TTL and 10 past it", n)
	}
	if left := row(t, p, "SELECT arraySort(groupUniqArray(width)) FROM events_users WHERE width <= 86400 AND at < now() - toIntervalDay(9)"); left != "[86400]" {
		t.Errorf("buckets of %s s are left of the rows past the TTL; want only days, which wider ones are compared with", left)
	}
	m.KeepTTL = true
	m.TTL = 0
	migrate(t, o, m)
	gone(3*day, 30*day)
	m.KeepTTL = false
	f(0, "events: ; events_1m: ; events_users: ")
	gone(0, 3*day)
	insert(10 * day)
	exec(t, p, "OPTIMIZE TABLE events FINAL")
	if n := row(t, p, "SELECT count() FROM events"); n != "20" {
		t.Errorf("%s rows; want 20 with no TTL", n)
	}
}

// No bucket of a rollup may vanish before the last event it counts.
func TestRollupsOutliveTheirEvents(t *testing.T) {
	t.Parallel()
	o := database(t)
	m := options()
	m.Exclusive, m.TTL = true, 240*time.Hour
	migrate(t, o, m)
	p := open(t, o)
	exec(t, p, "INSERT INTO events (ts, event_name) SELECT now64(3) - toIntervalSecond(240 * 3600 - 30), 'e' FROM numbers(10)")
	for _, table := range []string{"events", "events_1m", "events_users"} {
		exec(t, p, "OPTIMIZE TABLE "+table+" FINAL")
	}
	if got := row(t, p, "SELECT (SELECT count() FROM events), (SELECT sum(n) FROM events_1m), (SELECT sum(n) FROM events_users)"); got != "(10,10,100)" {
		t.Errorf("raw, minutes, users: %s", got)
	}
}

// Parts say when their rows go, by the TTL they were written under. A longer one keeps them
// all the same, and a shorter one takes them.
func TestTTLOfPartsThatWereThere(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	o := database(t)
	m := options()
	m.Exclusive = true
	p := open(t, o)
	set := func(ttl time.Duration) {
		t.Helper()
		m.TTL = ttl
		migrate(t, o, m)
		for row(t, p, "SELECT count() FROM system.mutations WHERE database = currentDatabase() AND NOT is_done") != "0" {
			if testContext(t).Err() != nil {
				t.Fatal("the parts are not written anew")
			}
		}
	}
	rows := func(want string) {
		t.Helper()
		for _, table := range []string{"events", "events_1m", "events_users"} {
			exec(t, p, "OPTIMIZE TABLE "+table+" FINAL")
		}
		if got := row(t, p, "SELECT (SELECT count() FROM events), (SELECT sum(n) FROM events_1m)"); got != want {
			t.Errorf("TTL of %s: rows and minutes are %s; want %s", m.TTL, got, want)
		}
	}
	set(40 * day)
	exec(t, p, "INSERT INTO events (ts, event_name) SELECT now64(3) - toIntervalDay(40) + toIntervalSecond(2), 'e' FROM numbers(10)")
	set(300 * day)
	row(t, p, "SELECT sleep(2.5)") // their forty days are over
	rows("(10,10)")
	set(30 * day)
	rows("(0,0)")
}
