package query

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"edge/internal/clickhouse"
)

// What a TTL has taken of some widths and not yet of others counts for no question.
func TestTTL(t *testing.T) {
	pool := openDatabase(t, "ttl")
	const ttl = 30 * day
	now := time.Now().Unix()
	base := (now - 60*day) / day * day
	var events []event
	for at := base; at < now; at += 1800 {
		events = append(events, event{at * 1000, "view", "web", fmt.Sprint("c", at%7), fmt.Sprint("u", at%97)})
	}
	insert(t, pool, events)
	migrate(t, "ttl", clickhouse.MigrateOptions{TTL: ttl * time.Second, MaxAge: 24 * time.Hour})
	engines := []*Engine{New(pool, Options{TTL: ttl * time.Second}), New(pool, Options{TTL: ttl * time.Second, States: 32 << 20})}
	ask := func(from, to int64) {
		t.Helper()
		for _, r := range []Request{
			{}, {GroupBy: "day"}, {GroupBy: "hour"}, {GroupBy: "channel"}, {GroupBy: "campaign_id"},
			{GroupBy: "day", Zone: "Europe/Berlin"}, {GroupBy: "hour", CountsOnly: true},
		} {
			r.EventName, r.From, r.To = "view", from, to
			for _, e := range engines {
				before := e.keptFrom(time.Now())
				got, err := e.Query(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				kept := got.KeptFrom
				if after := e.keptFrom(time.Now()); from < before && (kept < before || kept > after) {
					t.Errorf("%+v: kept from %d; want %d to %d", r, kept, before, after)
				}
				left := r
				left.From = min(max(from, kept), to)
				want := oracle(events, left, mustZone(t, r.Zone))
				want.Request, want.KeptFrom = r, kept
				if d := cmp.Diff(&want, got, cmpopts.EquateEmpty()); d != "" {
					t.Errorf("%+v: -want +got\n%s", r, d)
				}
			}
		}
	}
	for _, taken := range []bool{false, true} {
		for _, table := range []string{"events", "events_1m", "events_users"} {
			if !taken {
				continue
			}
			if err := pool.Exec(t.Context(), "OPTIMIZE TABLE "+table+" FINAL"); err != nil {
				t.Fatal(err)
			}
		}
		ask(base+2*day, base+3*day) // all of it is too old
		ask(now-45*day, now)
		ask(now-ttl+2*day+11, now-7) // none is
	}
}

func TestKeptFrom(t *testing.T) {
	f := func(ttl time.Duration, now, want int64) {
		t.Helper()
		if got := New(nil, Options{TTL: ttl}).keptFrom(time.Unix(now, 999)); got != want {
			t.Errorf("TTL %s at %d: kept from %d; want %d", ttl, now, got, want)
		}
	}
	f(0, 1e9, 0)
	f(time.Hour, 10, 0)
	f(time.Hour, 3600+240, 300)
	f(time.Hour, 3600+241, 600)
}
