package query

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"edge/internal/clickhouse"
)

const (
	benchRows  = 1_000_000
	benchSpan  = 3 * 365 * day
	benchBlock = 100_000
)

// fillBench lays down a million events of three names over three years, half of
// them in the last week, block by block in time order as a sink would.
func fillBench(b *testing.B) (pool *clickhouse.Pool, end int64) {
	b.Helper()
	pool, end = keptDatabase(b, "bench"), dataFrom+benchSpan
	var n proto.ColUInt64
	err := pool.Do(b.Context(), ch.Query{Body: "SELECT count() AS n FROM events", Result: proto.Results{{Name: "n", Data: &n}}})
	if err != nil {
		b.Fatal(err)
	}
	if n.Row(0) == benchRows {
		return pool, end
	}
	for i := range int64(benchRows / benchBlock) {
		half := int64(benchRows / benchBlock / 2)
		from, width := dataFrom+i*benchSpan/half, benchSpan/half
		if i >= half {
			width = 7 * day / half
			from = end - 7*day + (i-half)*width
		}
		err = pool.Exec(b.Context(), fmt.Sprintf(`INSERT INTO events (ts, event_name, channel, campaign_id, user_id)
SELECT toDateTime64(%d, 3, 'UTC') + intDiv(number * %d, %d), ['view', 'click', 'buy'][1 + rand(1) %% 3],
  ['web', 'mobile', 'api', 'email', 'push', ''][1 + rand(2) %% 6], 'c' || toString(rand(3) %% 40), 'user_' || toString(rand(4) %% 100000)
FROM numbers(%[3]d)`, from, width, int64(benchBlock)))
		if err != nil {
			b.Fatal(err)
		}
	}
	// Merged, as the parts of three years would be.
	for t := range tables {
		if err := pool.Exec(b.Context(), "OPTIMIZE TABLE "+schema[t].name+" FINAL"); err != nil {
			b.Fatal(err)
		}
	}
	return pool, end
}

// BenchmarkQuery sets our answer for an unaligned range beside the two queries
// it stands between: the bare rollup, counts and states of the hours or days that
// the range touches, which is wrong at both ends; and the same question to the raw
// rows. The three take turns, so that a busy machine is busy
// for all of them, and the medians of their ratios are what to compare.
func BenchmarkQuery(b *testing.B) {
	pool, end := fillBench(b)
	e := New(pool, Options{})
	for _, group := range []string{"", "channel", "hour"} {
		for _, span := range []struct {
			name    string
			seconds int64
		}{{"minute", minute}, {"hour", hour}, {"day", day}, {"week", 7 * day}, {"month", 30 * day}, {"year", 365 * day}, {"3years", benchSpan - 100_000}} {
			if group == "hour" && span.seconds > 365*day {
				continue // more groups than an answer may have
			}
			r := Request{EventName: "view", From: end - 12_345 - span.seconds, To: end - 12_345, GroupBy: group}
			b.Run(group+"/"+span.name, func(b *testing.B) {
				race(b, func() error {
					_, err := e.Query(b.Context(), r)
					return err
				}, rival(b, pool, bareQuery(&r)), rival(b, pool, rawQuery(&r)))
			})
		}
	}
}

// bareQuery is the one query of whole hours, or of days and wider, that who knows the
// tables would ask: no more states than it takes.
func bareQuery(r *Request) string {
	finest, use := hourGrain, grainSet(1<<hourGrain)
	if r.GroupBy != "hour" {
		use |= 1<<dayGrain | 1<<longGrain | 1<<longerGrain
		if r.To-r.From >= 2*day {
			finest = dayGrain
		}
	}
	byChannel := 0
	if r.GroupBy == "channel" {
		byChannel = 1
	}
	width := finest.seconds()
	var buckets []string
	for _, p := range cut(r.From/width*width, (r.To+width-1)/width*width, use) {
		buckets = append(buckets, fmt.Sprintf("width = %d AND at >= %d AND at < %d", p.grain.seconds(), p.from, p.to))
	}
	group := map[string]string{"": "''", "channel": "CAST(channel, 'String')", "hour": "toString(at)"}[r.GroupBy]
	return fmt.Sprintf("SELECT sum(n) AS t, uniqCombined64Merge(14)(u) AS u, %s AS g FROM events_users "+
		"WHERE event_name = 'view' AND by_channel = %d AND (%s) GROUP BY g", group, byChannel, strings.Join(buckets, " OR "))
}

func rawQuery(r *Request) string {
	group := map[string]string{"": "''", "channel": "CAST(channel, 'String')", "hour": "toString(toStartOfHour(ts))"}[r.GroupBy]
	return fmt.Sprintf("SELECT toInt64(count()) AS t, uniqCombined64(14)(user_id) AS u, %s AS g FROM events WHERE event_name = 'view' "+
		"AND ts >= toDateTime64(%d, 3, 'UTC') AND ts < toDateTime64(%d, 3, 'UTC') GROUP BY g", group, r.From, r.To)
}

// rival runs sql, whose columns are t, u and g, and checks that it counted.
func rival(b *testing.B, pool *clickhouse.Pool, sql string) func() error {
	return func() error {
		var total proto.ColInt64
		var sum int64
		err := pool.Do(b.Context(), ch.Query{
			Body:     sql,
			Settings: []ch.Setting{{Key: "use_statistics", Value: "0"}, {Key: "optimize_use_projections", Value: "0"}, {Key: "optimize_use_implicit_projections", Value: "0"}}, // as ours
			Result:   proto.Results{{Name: "t", Data: &total}, {Name: "u", Data: new(proto.ColUInt64)}, {Name: "g", Data: new(proto.ColStr)}},
			OnResult: func(context.Context, proto.Block) error {
				for _, n := range total {
					sum += n
				}
				return nil
			},
		})
		if err == nil && sum == 0 {
			err = fmt.Errorf("%s: no events", sql)
		}
		return err
	}
}

func race(b *testing.B, ours, bare, raw func() error) {
	timed := func(f func() error) float64 {
		start := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		return float64(time.Since(start))
	}
	var ms, toBare, toRaw []float64
	for b.Loop() {
		x, y, z := timed(bare), timed(ours), timed(raw)
		ms, toBare, toRaw = append(ms, y/1e6), append(toBare, y/x), append(toRaw, y/z)
	}
	b.ReportMetric(0, "ns/op") // of three queries: says nothing
	b.ReportMetric(median(ms), "ms")
	b.ReportMetric(ms[len(ms)*99/100], "p99-ms")
	b.ReportMetric(median(toBare), "x-bare")
	b.ReportMetric(median(toRaw), "x-raw")
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

// TestUniqueUsersError measures the error bound that the package comment
// states: disjoint sets of users, a hundred of each size (ten of a
// million).
func TestUniqueUsersError(t *testing.T) {
	pool := openDatabase(t, "error")
	f := func(size, sets int, meanPercent, maxPercent float64) {
		t.Helper()
		var users proto.ColUInt64
		var sum, worst float64
		n := strconv.Itoa(size)
		err := pool.Do(t.Context(), ch.Query{
			Body: "SELECT uniqCombined64(14)('user_' || toString(number * 7919)) AS users FROM numbers(" + strconv.Itoa(size*sets) +
				") GROUP BY intDiv(number, " + n + ")",
			Result: proto.Results{{Name: "users", Data: &users}},
			OnResult: func(context.Context, proto.Block) error {
				for _, u := range users {
					e := math.Abs(float64(u)/float64(size)-1) * 100
					sum, worst = sum+e, max(worst, e)
				}
				return nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		mean := sum / float64(sets)
		t.Logf("%d users, %d sets: mean error %.3f %%, worst %.3f %%", size, sets, mean, worst)
		if mean > meanPercent || worst > maxPercent {
			t.Errorf("%d users: mean error %.3f %%, worst %.3f %%; want at most %.3f, %.3f", size, mean, worst, meanPercent, maxPercent)
		}
	}
	f(exactUsers, 100, 0, 0)
	f(1000, 100, 0.6, 2.2)
	f(10_000, 100, 0.6, 2.2)
	f(100_000, 100, 0.6, 2.2)
	f(1_000_000, 10, 1, 2.2)
}
