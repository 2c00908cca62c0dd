package query

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"edge/internal/clickhouse"
)

const benchRows = 2_000_000

// fillBench lays down two million events of three names over thirty days.
func fillBench(b *testing.B) *clickhouse.Pool {
	b.Helper()
	pool := openDatabase(b, "bench")
	var n proto.ColUInt64
	err := pool.Do(b.Context(), ch.Query{Body: "SELECT count() AS n FROM events", Result: proto.Results{{Name: "n", Data: &n}}})
	if err != nil {
		b.Fatal(err)
	}
	if n.Row(0) == benchRows {
		return pool
	}
	err = pool.Exec(b.Context(), `INSERT INTO events (ts, event_name, channel, campaign_id, user_id)
SELECT toDateTime64(`+strconv.FormatInt(dataFrom, 10)+` + number % (30 * 86400), 3, 'UTC'), ['view', 'click', 'buy'][1 + rand(1) % 3],
  ['web', 'mobile', 'api', 'email', 'push', ''][1 + rand(2) % 6], 'c' || toString(rand(3) % 40), 'user_' || toString(rand(4) % 100000)
FROM numbers(`+strconv.Itoa(benchRows)+`)`)
	if err != nil {
		b.Fatal(err)
	}
	// Merged, as thirty days of parts would be.
	for _, table := range []string{"events", "events_1m", "events_1h", "events_1d"} {
		if err := pool.Exec(b.Context(), "OPTIMIZE TABLE "+table+" FINAL"); err != nil {
			b.Fatal(err)
		}
	}
	return pool
}

// BenchmarkQuery sets our answer for an unaligned range beside the two queries
// it stands between: the bare rollup, which is wrong at both ends and has no
// total of distinct users, and the same question to the raw rows. The three
// take turns, so that a busy machine is busy for all of them, and the medians
// of their ratios are what to compare.
func BenchmarkQuery(b *testing.B) {
	pool := fillBench(b)
	e := New(pool, Options{})
	from, to := dataFrom+day-1500, dataFrom+29*day+1500
	ours := func(r Request) func() error {
		r.EventName, r.From, r.To = "view", from, to
		return func() error {
			res, err := e.Query(b.Context(), r)
			if err == nil && res.Events < benchRows/4 {
				err = fmt.Errorf("%d events", res.Events)
			}
			return err
		}
	}
	span := " >= " + strconv.FormatInt(from, 10) + " AND ts < " + strconv.FormatInt(to, 10)
	compare := func(r Request, bare, raw string) func(*testing.B) {
		return func(b *testing.B) { race(b, ours(r), rival(b, pool, bare), rival(b, pool, raw)) }
	}
	b.Run("total", compare(Request{},
		"SELECT sum(n) AS t, uniqCombined64Merge(u) AS u, '' AS g FROM events_1d WHERE event_name = 'view' AND d >= '2024-01-02' AND d < '2024-01-30'",
		"SELECT toInt64(count()) AS t, uniqCombined64(user_id) AS u, '' AS g FROM events WHERE event_name = 'view' AND ts"+span))
	b.Run("channel", compare(Request{GroupBy: "channel"},
		"SELECT sum(n) AS t, uniqCombined64Merge(u) AS u, CAST(channel, 'String') AS g FROM events_1d WHERE event_name = 'view' AND d >= '2024-01-02' AND d < '2024-01-30' GROUP BY g",
		"SELECT toInt64(count()) AS t, uniqCombined64(user_id) AS u, CAST(channel, 'String') AS g FROM events WHERE event_name = 'view' AND ts"+span+" GROUP BY g"))
	b.Run("hour", compare(Request{GroupBy: "hour"},
		"SELECT sum(n) AS t, uniqCombined64Merge(u) AS u, toString(h) AS g FROM events_1h WHERE event_name = 'view' AND h >= '2024-01-02 00:00:00' AND h < '2024-01-30 00:00:00' GROUP BY g",
		"SELECT toInt64(count()) AS t, uniqCombined64(user_id) AS u, toString(toStartOfHour(ts)) AS g FROM events WHERE event_name = 'view' AND ts"+span+" GROUP BY g"))
	b.Run("counts", compare(Request{GroupBy: "channel", CountsOnly: true},
		"SELECT sum(n) AS t, toUInt64(0) AS u, CAST(channel, 'String') AS g FROM events_1d WHERE event_name = 'view' AND d >= '2024-01-02' AND d < '2024-01-30' GROUP BY g",
		"SELECT toInt64(count()) AS t, toUInt64(0) AS u, CAST(channel, 'String') AS g FROM events WHERE event_name = 'view' AND ts"+span+" GROUP BY g"))
}

// rival runs sql, whose columns are t, u and g, and checks that it counted.
func rival(b *testing.B, pool *clickhouse.Pool, sql string) func() error {
	return func() error {
		var total proto.ColInt64
		var sum int64
		err := pool.Do(b.Context(), ch.Query{
			Body:   sql,
			Result: proto.Results{{Name: "t", Data: &total}, {Name: "u", Data: new(proto.ColUInt64)}, {Name: "g", Data: new(proto.ColStr)}},
			OnResult: func(context.Context, proto.Block) error {
				for _, n := range total {
					sum += n
				}
				return nil
			},
		})
		if err == nil && sum < benchRows/4 {
			err = fmt.Errorf("%d events", sum)
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
	b.ReportMetric(median(toBare), "x-bare")
	b.ReportMetric(median(toRaw), "x-raw")
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

// TestUniqueUsersError measures the error bound that the package comment
// states: disjoint sets of users, a hundred of each size (ten of a million).
func TestUniqueUsersError(t *testing.T) {
	pool := openDatabase(t, "error")
	f := func(size, sets int, meanPercent, maxPercent float64) {
		t.Helper()
		var users proto.ColUInt64
		var sum, worst float64
		n := strconv.Itoa(size)
		err := pool.Do(t.Context(), ch.Query{
			Body: "SELECT uniqCombined64('user_' || toString(number * 7919)) AS users FROM numbers(" + strconv.Itoa(size*sets) +
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
	f(1000, 100, 0, 0)
	f(exactUsers, 100, 0, 0)
	f(10_000, 100, 0.3, 1.2)
	f(100_000, 100, 0.3, 1.2)
	f(1_000_000, 10, 0.3, 1.2)
}
