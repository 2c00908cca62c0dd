package sink

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"edge/internal/clickhouse"
)

// rollups compares each with what it sums up. A sink that writes meanwhile makes rows and
// rollups differ for the moment between two parts of one insert, so only what differs in
// the same way again and again counts.
func (a *Audit) rollups(ctx context.Context, r *Report) error {
	expiry, err := a.ClickHouse.ReadExpiry(ctx)
	if err != nil {
		return fmt.Errorf("read the TTL of events: %w", err)
	}
	of := a.all
	if !a.Since.IsZero() {
		of = a.recent
	}
	all, err := of(ctx, oldest(expiry))
	if err != nil {
		return err
	}
	for _, c := range all {
		if err := a.compare(ctx, r, c); err != nil {
			return err
		}
	}
	return nil
}

// all compares everything, month by month.
func (a *Audit) all(ctx context.Context, oldest time.Time) ([]comparison, error) {
	months, err := a.months(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(months, func(x, y span) int { return x.from.Compare(y.from) })
	compared := make(map[int64]time.Time) // by width, up to where
	var all []comparison
	for _, month := range months {
		if kept := (span{later(month.from, oldest), month.to}); kept.from.Before(kept.to) {
			all = append(all, comparisons(kept.of)...)
			all = append(all, wider(aDay, anHour, kept.of))
		}
		for _, width := range []int64{long, longer} {
			after := compared[width]
			if !oldest.IsZero() { // days stay longer than the bucket that holds them
				after = later(after, oldestDay(oldest))
			}
			if wide := month.widen(width, after); wide.from.Before(wide.to) {
				all = append(all, wider(width, aDay, wide.of))
				compared[width] = wide.to
			}
		}
	}
	return all, nil
}

// recent compares the buckets that recently received events touch.
func (a *Audit) recent(ctx context.Context, oldest time.Time) ([]comparison, error) {
	hours, err := a.recentHours(ctx)
	if err != nil {
		return nil, err
	}
	w := touching(hours).since(oldest)
	var all []comparison
	if len(w.hours.starts) > 0 {
		all = comparisons(w.hours.within)
	}
	for _, s := range []struct {
		spans
		narrow int64
	}{{w.days, anHour}, {w.long, aDay}, {w.longer, aDay}} {
		if len(s.starts) > 0 {
			all = append(all, wider(s.width, s.narrow, s.within))
		}
	}
	return all, nil
}

func (a *Audit) compare(ctx context.Context, r *Report, c comparison) error {
	diff, err := a.lasting(ctx, c.counts, "diff != 0")
	if err != nil {
		return fmt.Errorf("compare %s with %s: %w", c.rollup, c.from, err)
	}
	for _, d := range diff {
		r.Mismatched += d.n
		r.problem("%s differs from %s by %d rows at %s", c.rollup, c.from, d.n, d.cell)
	}
	if c.users == nil {
		return nil
	}
	if diff, err = a.lasting(ctx, c.users, otherUsers); err != nil {
		return fmt.Errorf("compare the users of %s with %s: %w", c.rollup, c.from, err)
	}
	for _, d := range diff {
		r.Users++
		r.problem("%s has other distinct users than %s, by %d at %s", c.rollup, c.from, d.n, d.cell)
	}
	return nil
}

// span is a range of time, of whole seconds.
type span struct{ from, to time.Time }

// of is the condition that a time column lies in s. The bounds of ts have milliseconds, as
// it has: where the server decides which parts to read, it takes ts < toDateTime(t) for
// ts <= t - 1, and passes over parts that have nothing but rows of the second between.
func (s span) of(column string) string {
	bound := "toDateTime(%d, 'UTC')"
	if column == "ts" {
		bound = "toDateTime64(%d, 3, 'UTC')"
	}
	return fmt.Sprintf("%s >= "+bound+" AND %s < "+bound, column, s.from.Unix(), column, s.to.Unix())
}

// widen returns the buckets of a width that s touches and that start at a time
// or later.
func (s span) widen(width int64, after time.Time) span {
	up := func(t time.Time) int64 { return (t.Unix() + width - 1) / width * width }
	return span{time.Unix(max(s.from.Unix()/width*width, up(after)), 0).UTC(), time.Unix(up(s.to), 0).UTC()}
}

// months returns the months that any table has something of.
func (a *Audit) months(ctx context.Context) ([]span, error) {
	starts, err := unixSeconds(ctx, a.ClickHouse, `SELECT toString(toUnixTimestamp(toDateTime(month, 'UTC'))) AS s FROM (
		SELECT DISTINCT toStartOfMonth(m) AS month FROM events_1m
		UNION DISTINCT SELECT DISTINCT toStartOfMonth(at) FROM events_users WHERE width <= 86400
		UNION DISTINCT SELECT toDate(concat(substring(partition, 1, 4), '-', substring(partition, 5, 2), '-01')) FROM system.parts
			WHERE database = currentDatabase() AND table = 'events' AND active
	)`)
	var out []span
	for _, s := range starts {
		from := time.Unix(s, 0).UTC()
		out = append(out, span{from, from.AddDate(0, 1, 0)})
	}
	return out, err
}

// mostRows is how many rows an audit of recent events reads about: five seconds of one
// core, and an hour at four times the design load. Late events may touch more hours than
// that, the newest come first, and an audit of all has the rest.
const mostRows = 32_000_000

// recentHours are the hours that recently received events are of, as Unix seconds.
func (a *Audit) recentHours(ctx context.Context) ([]int64, error) {
	hours, err := unixSeconds(ctx, a.ClickHouse, fmt.Sprintf(`SELECT DISTINCT toString(toUnixTimestamp(toStartOfHour(ts))) AS s FROM events
		WHERE %s ORDER BY toUInt32(s) DESC LIMIT %d`, a.lately(), maxListed))
	if err != nil || len(hours) == 0 {
		return nil, err
	}
	// What they count is in the rollups; an hour that is not in them is still compared.
	rest, err := unixSeconds(ctx, a.ClickHouse, fmt.Sprintf(`SELECT toString(toUnixTimestamp(at)) AS s FROM (
			SELECT at, sum(c) OVER (ORDER BY at DESC) - c AS newer FROM (
				SELECT at, sum(n) AS c FROM events_users WHERE by_channel = 0 AND width = %d AND at IN (%s) GROUP BY at)
		) WHERE newer >= %d`, anHour, list(hours), mostRows))
	return slices.DeleteFunc(hours, func(h int64) bool { return slices.Contains(rest, h) }), err
}

// unixSeconds answers a query of such, as texts.
func unixSeconds(ctx context.Context, pool *clickhouse.Pool, sql string) ([]int64, error) {
	texts, err := pool.Strings(ctx, sql)
	if err != nil {
		return nil, err
	}
	out := make([]int64, len(texts))
	for i, s := range texts {
		if out[i], err = strconv.ParseInt(s, 10, 64); err != nil {
			return nil, fmt.Errorf("BUG: a time is %q: %w", s, err)
		}
	}
	return out, nil
}

// difference is one cell that does not add up.
type difference struct {
	cell string
	n    int64
}

// lasting asks for the differences until one round finds nothing, and returns those that three rounds in a row agree on.
func (a *Audit) lasting(ctx context.Context, sides []cells, having string) ([]difference, error) {
	var selects []string
	for _, c := range sides {
		selects = append(selects, c.sql("1"))
	}
	sql := "SELECT toString((" + cellKey + ")) AS cell_text, sum(c) AS diff FROM (" + strings.Join(selects, " UNION ALL ") +
		") GROUP BY " + cellKey + " HAVING " + having + " ORDER BY cell_text LIMIT 1000"
	const rounds = 3
	var agreed map[string]int64
	for round := range rounds {
		var cell proto.ColStr
		var n proto.ColInt64
		found := make(map[string]int64)
		err := a.ClickHouse.Do(ctx, ch.Query{
			Body:   sql,
			Result: proto.Results{{Name: "cell_text", Data: &cell}, {Name: "diff", Data: &n}},
			OnResult: func(context.Context, proto.Block) error {
				for i := range n {
					if was, ok := agreed[cell.Row(i)]; round == 0 || ok && was == n[i] {
						found[cell.Row(i)] = n[i]
					}
				}
				return nil
			},
		})
		if err != nil {
			return nil, err
		}
		if agreed = found; len(agreed) == 0 {
			return nil, nil
		}
		if round < rounds-1 {
			if err := pause(ctx, 2); err != nil {
				return nil, err
			}
		}
	}
	var out []difference
	for _, cell := range slices.Sorted(maps.Keys(agreed)) {
		out = append(out, difference{cell, max(agreed[cell], -agreed[cell])})
	}
	return out, nil
}
