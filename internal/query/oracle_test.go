package query

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"edge/internal/clickhouse"
)

// event is one row as far as queries can see it.
type event struct {
	ts                            int64 // Unix milliseconds
	name, channel, campaign, user string
}

// insert writes events the way the sink does, as one block, so that the views
// fill the rollups.
func insert(t testing.TB, pool *clickhouse.Pool, events []event) {
	t.Helper()
	var (
		ts             = new(proto.ColDateTime64).WithPrecision(proto.PrecisionMilli).WithLocation(time.UTC)
		name           = new(proto.ColStr).LowCardinality()
		channel        proto.ColStr
		campaign       proto.ColStr
		user           proto.ColStr
		rows           = proto.Input{{Name: "ts", Data: ts}, {Name: "event_name", Data: name}, {Name: "channel", Data: &channel}}
		restOfTheTable = proto.Input{{Name: "campaign_id", Data: &campaign}, {Name: "user_id", Data: &user}}
	)
	rows = append(rows, restOfTheTable...)
	for _, e := range events {
		ts.Append(time.UnixMilli(e.ts))
		name.Append(e.name)
		channel.Append(e.channel)
		campaign.Append(e.campaign)
		user.Append(e.user)
	}
	if err := pool.Do(context.Background(), ch.Query{Body: rows.Into("events"), Input: rows}); err != nil {
		t.Fatalf("insert %d events: %v", len(events), err)
	}
}

// Events cover four months, in which Berlin, New York, Lord Howe and
// Casablanca change their clocks.
var (
	dataFrom = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	dataTo   = time.Date(2024, 5, 1, 0, 0, 0, 0, time.UTC).Unix()
)

// randomSecond clusters at the edges of minutes, hours and days.
func randomSecond(rng *rand.Rand) int64 {
	s := dataFrom + rng.Int64N(dataTo-dataFrom)
	grain := []int64{1, 1, minute, hour, day}[rng.IntN(5)]
	if s = s / grain * grain; grain > 1 {
		s += rng.Int64N(5) - 2
	}
	return min(max(s, dataFrom), dataTo-1)
}

func randomEvents(rng *rand.Rand, n int) []event {
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	events := make([]event, n)
	for i := range events {
		events[i] = event{
			ts:       randomSecond(rng)*1000 + []int64{0, 1, 999, rng.Int64N(1000)}[rng.IntN(4)],
			name:     pick("view", "view", "view", "click"),
			channel:  pick("web", "web", "mobile", "api", "email", "push", ""),
			campaign: pick("spring", "summer", "autumn", "winter", ""),
			// Enough distinct users over the whole range to leave the part
			// of the sketch that is exact, few enough to come again.
			user: fmt.Sprint("user_", rng.IntN(12_000)),
		}
	}
	return events
}

// randomRange draws every kind of range the planner treats differently.
func randomRange(rng *rand.Rand) (from, to int64) {
	switch rng.IntN(7) {
	case 0: // everything
		return dataFrom - day, dataTo + day
	case 1: // inside a minute
		from = randomSecond(rng) / minute * minute
		from += rng.Int64N(30)
		return from, from + 1 + rng.Int64N(30)
	case 2: // around the length below which raw rows answer alone
		from = randomSecond(rng)
		return from, from + rawSpan - 2 + rng.Int64N(5)
	case 3: // whole buckets
		grain := []int64{minute, hour, day}[rng.IntN(3)]
		from = randomSecond(rng) / grain * grain
		return from, from + grain*(1+rng.Int64N(30))
	case 4: // a few hours
		from = randomSecond(rng)
		return from, from + 1 + rng.Int64N(8*hour)
	}
	from, to = randomSecond(rng), randomSecond(rng)
	return min(from, to), max(from, to) + 1
}

// oracle answers r from the events themselves: counts and distinct users per
// group in maps, labels from package time; events are in time order. Users are exact, which the sketch
// is too up to a few thousand.
func oracle(events []event, r Request, zone *time.Location) Result {
	type cell struct {
		events int64
		users  map[string]bool
	}
	res := Result{Request: r}
	all, groups := map[string]bool{}, map[string]*cell{}
	byTime := func(e event, ms int64) int { return cmp.Compare(e.ts, ms) }
	first, _ := slices.BinarySearchFunc(events, r.From*1000, byTime)
	end, _ := slices.BinarySearchFunc(events, r.To*1000, byTime)
	for _, e := range events[first:end] {
		if e.name != r.EventName || r.Channel != "" && e.channel != r.Channel || r.CampaignID != "" && e.campaign != r.CampaignID {
			continue
		}
		res.Events++
		all[e.user] = true
		if r.GroupBy == "" {
			continue
		}
		label := oracleLabel(e, r.GroupBy, zone)
		if groups[label] == nil {
			groups[label] = &cell{users: map[string]bool{}}
		}
		groups[label].events++
		groups[label].users[e.user] = true
	}
	if !r.CountsOnly {
		res.Users = uint64(len(all))
	}
	for label, c := range groups {
		g := Group{Label: label, Events: c.events}
		if !r.CountsOnly {
			g.Users = uint64(len(c.users))
		}
		res.Groups = append(res.Groups, g)
	}
	slices.SortFunc(res.Groups, func(a, b Group) int {
		if bucketSeconds(r.GroupBy) == 0 {
			return cmp.Or(cmp.Compare(b.Events, a.Events), cmp.Compare(a.Label, b.Label))
		}
		return oracleInstant(a.Label).Compare(oracleInstant(b.Label))
	})
	return res
}

func oracleLabel(e event, groupBy string, zone *time.Location) string {
	switch groupBy {
	case "channel":
		return e.channel
	case "campaign_id":
		return e.campaign
	}
	at := time.UnixMilli(e.ts).In(zone)
	change, _ := at.ZoneBounds()
	switch groupBy {
	case "day":
		return at.Format(time.DateOnly)
	case "hour":
		at = at.Add(-time.Duration(at.Minute()) * time.Minute)
		fallthrough
	default:
		at = at.Add(-time.Duration(at.Second())*time.Second - time.Duration(at.Nanosecond()))
		if at.Before(change) { // by other clocks
			at = change
		}
		return at.Format(time.RFC3339)
	}
}

func oracleInstant(label string) time.Time {
	if at, err := time.Parse(time.RFC3339, label); err == nil {
		return at
	}
	at, _ := time.Parse(time.DateOnly, label)
	return at
}
