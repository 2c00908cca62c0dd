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
				WHERE database = currentDatabase() AND name IN ('events', 'events_1m', 'events_1h', 'events_1d', 'events_users', 'events_channel_users') ORDER BY name`)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(got, "; "); got != want {
				t.Errorf("TTL %s: got %s; want %s", ttl, got, want)
			}
		}
	}
	day := 24 * time.Hour
	f(0, "events: ; events_1d: ; events_1h: ; events_1m: ; events_channel_users: ; events_users: ")
	f(30*day, "events: toDateTime(ts) + toIntervalSecond(2592000); events_1d: toDateTime(d) + toIntervalSecond(24796800); "+
		"events_1h: toDateTime(h) + toIntervalSecond(2595600); events_1m: toDateTime(m) + toIntervalSecond(2592060); "+
		"events_channel_users: toDateTime(at) + toIntervalSecond(24710400); events_users: toDateTime(at) + toIntervalSecond(24710400)")
	f(3*day, "events: toDateTime(ts) + toIntervalSecond(259200); events_1d: toDateTime(d) + toIntervalSecond(22464000); "+
		"events_1h: toDateTime(h) + toIntervalSecond(262800); events_1m: toDateTime(m) + toIntervalSecond(259260); "+
		"events_channel_users: toDateTime(at) + toIntervalSecond(22377600); events_users: toDateTime(at) + toIntervalSecond(22377600)")

	insert := func(age time.Duration) {
		exec(t, p, fmt.Sprintf("INSERT INTO events (ts, event_name) SELECT now64(3) - toIntervalSecond(%d), 'e' FROM numbers(10)", int(age.Seconds())))
	}
	insert(2 * day)
	insert(10 * day)
	exec(t, p, "OPTIMIZE TABLE events FINAL")
	if n := row(t, p, "SELECT count() FROM events"); n != "10" {
		t.Errorf("%s rows are left of 10 within the TTL and 10 past it", n)
	}
	f(0, "events: ; events_1d: ; events_1h: ; events_1m: ; events_channel_users: ; events_users: ")
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
	for _, table := range []string{"events", "events_1m", "events_1h", "events_1d", "events_users", "events_channel_users"} {
		exec(t, p, "OPTIMIZE TABLE "+table+" FINAL")
	}
	if got := row(t, p, "SELECT (SELECT count() FROM events), (SELECT sum(n) FROM events_1m), (SELECT sum(n) FROM events_1h), (SELECT sum(n) FROM events_1d), (SELECT sum(n) FROM events_users), (SELECT sum(n) FROM events_channel_users)"); got != "(10,10,10,10,50,20)" {
		t.Errorf("raw, minutes, hours, days: %s", got)
	}
}
