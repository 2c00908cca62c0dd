package query

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// bucketRows are rows as a table of buckets brings them: a bucket of each group, of a user
// of its own and one of all.
func bucketRows(edge uint8, groups ...int64) *rows {
	c := &rows{has: columnSet{time: true, edge: true, state: true}}
	for _, g := range groups {
		c.times.Append(g)
		c.edge.Append(edge)
		c.events.Append(1)
		c.states.AppendBytes([]byte{1, 2, byte(g), 1, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0})
	}
	return c
}

// Of groups in the order of their time only the last one keeps a sketch, and those at the
// edges, however many there are.
func TestFewSketchesAreHeld(t *testing.T) {
	a := newAnswer(&Request{GroupBy: "hour"}, time.UTC)
	for g := range int64(200) {
		if err := a.read(bucketRows(0, g, g, g), 3); err != nil {
			t.Fatal(err)
		}
		if err := a.read(bucketRows(1, 1000, 2000), 2); err != nil {
			t.Fatal(err)
		}
		held := 0
		for _, g := range a.groups {
			if g.sketch != nil {
				held++
			}
		}
		if most := 3; held > most {
			t.Fatalf("after %d groups %d sketches are held; want at most %d", g+1, held, most)
		}
	}
	res := a.finish()
	if res.Events != 1000 || res.Users != 203 || len(res.Groups) != 202 {
		t.Errorf("got %d events, %d users, %d groups; want 1000, 203, 202", res.Events, res.Users, len(res.Groups))
	}
	for _, g := range res.Groups {
		if g.Users != 2 {
			t.Errorf("group %s has %d users; want 2", g.Label, g.Users)
		}
	}
}

// A group whose users were forgotten takes no more of them: rather no answer than a wrong one.
func TestBucketsOutOfOrderAreAnError(t *testing.T) {
	a := newAnswer(&Request{GroupBy: "day"}, time.UTC)
	if err := a.read(bucketRows(0, 1, 1, 2, 2, 3), 5); err != nil {
		t.Fatal(err)
	}
	if err := a.read(bucketRows(0, 2), 1); err == nil || !strings.Contains(err.Error(), "apart") {
		t.Errorf("got %v", err)
	}
}

// On 5 March 2010 at two the clocks of Casey went back to eleven of the fourth, so that
// there was one more hour of a day that had ended.
func TestADayThatComesAgain(t *testing.T) {
	pool := openDatabase(t, "again")
	var (
		zone   = mustZone(t, "Antarctica/Casey")
		from   = time.Date(2010, 3, 2, 0, 0, 0, 0, time.UTC).Unix()
		to     = from + 6*day
		rng    = rand.New(rand.NewPCG(7, 8))
		events []event
	)
	for at := from; at < to; at += 10 * minute {
		events = append(events, event{at * 1000, "view", "web", "", string(rune('a' + rng.IntN(20)))})
	}
	insert(t, pool, events)
	r := Request{EventName: "view", From: from + 601, To: to - 601, GroupBy: "day", Zone: "Antarctica/Casey"}
	got, err := New(pool, Options{}).Query(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want := oracle(events, r, zone)
	if d := cmp.Diff(&want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

// A sketch that estimates more users than there are events is known to be wrong.
func TestNoMoreUsersThanEvents(t *testing.T) {
	f := func(estimate uint64, events int64, want uint64) {
		t.Helper()
		a := newAnswer(&Request{GroupBy: "channel"}, time.UTC)
		a.served = true
		a.whole = cell{events: events, users: estimate}
		a.groups[key{name: "web"}] = &cell{events: events, users: estimate}
		a.groups[key{name: "api"}] = &cell{events: 1, users: 1}
		res := a.finish()
		if res.Users != want || res.Groups[0].Users != want || res.Groups[1].Users != 1 {
			t.Errorf("%d estimated of %d events: got %d users, in groups %v; want %d", estimate, events, res.Users, res.Groups, want)
		}
	}
	f(10_109, 10_000, 10_000)
	f(9_950, 10_000, 9_950)
	f(10_000, 10_000, 10_000)

	pool := openDatabase(t, "users")
	const names, users = 8, 1000
	from := time.Date(2024, 2, 24, 0, 0, 0, 0, time.UTC).Unix()
	var events []event
	for i := range int64(names * users) {
		events = append(events, event{from*1000 + i, fmt.Sprint("view ", i%names), "web", "", fmt.Sprint("user ", i)})
	}
	insert(t, pool, events)
	capped := 0 // half of all estimates are too large
	for name := range names {
		for _, group := range []string{"", "channel", "hour", "campaign_id"} {
			for _, inside := range []int64{0, 1} { // whole buckets, and with rows at the ends
				r := Request{EventName: fmt.Sprint("view ", name), From: from - inside, To: from + day + inside, GroupBy: group, Zone: "UTC"}
				got, err := New(pool, Options{}).Query(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				if got.Events != users || got.Users > users || got.Users < users*97/100 {
					t.Errorf("%+v: %d users of %d events", r, got.Users, got.Events)
				}
				for _, g := range got.Groups {
					if g.Users != got.Users {
						t.Errorf("%+v: %d users, in the only group %d", r, got.Users, g.Users)
					}
				}
				if got.Users == users {
					capped++
				}
			}
		}
	}
	if capped == 0 {
		t.Error("no estimate was too large")
	}
}

// Names that are long are fewer: all together are bounded, too.
func TestLongNamesAreCutOff(t *testing.T) {
	a := newAnswer(&Request{GroupBy: "campaign_id", CountsOnly: true}, time.UTC)
	const names, each = 2000, 1000
	for i := range int64(names) {
		a.groups[key{name: fmt.Sprintf("%0*d", each, i)}] = &cell{events: 1 + i}
	}
	res := a.finish()
	if want := maxNamesBytes / each; !res.Truncated || len(res.Groups) != want || res.Groups[0].Events != names {
		t.Errorf("truncated %v, %d groups, the first of %d events; want %d groups, the largest first", res.Truncated, len(res.Groups), res.Groups[0].Events, want)
	}
}
