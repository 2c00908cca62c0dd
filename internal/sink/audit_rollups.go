package sink

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// rollups compares month by month. A sink that writes meanwhile makes rows and
// rollups differ for the moment between two parts of one insert, so only what
// differs in the same way again and again counts.
func (a *Audit) rollups(ctx context.Context, r *Report) error {
	months, err := a.months(ctx)
	if err != nil {
		return err
	}
	expiry, err := a.ClickHouse.ReadExpiry(ctx)
	if err != nil {
		return fmt.Errorf("read the TTL of events: %w", err)
	}
	oldest := oldest(expiry)
	slices.SortFunc(months, func(x, y span) int { return x.from.Compare(y.from) })
	compared := make(map[int64]time.Time) // by width, up to where
	for _, month := range months {
		var all []comparison
		if kept := (span{later(month.from, oldest), month.to}); kept.from.Before(kept.to) {
			all = comparisons(kept)
		}
		for _, width := range []int64{long, longer} {
			after := compared[width]
			if !oldest.IsZero() { // days stay longer than the bucket that holds them
				after = later(after, oldestDay(oldest))
			}
			if wide := month.widen(width, after); wide.from.Before(wide.to) {
				all = append(all, wider(width, aDay, wide))
				compared[width] = wide.to
			}
		}
		for _, c := range all {
			if err := a.compare(ctx, r, c); err != nil {
				return err
			}
		}
	}
	return nil
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

// months returns the spans to compare: whole months of data, or the days that
// recently received events touch.
func (a *Audit) months(ctx context.Context) ([]span, error) {
	if a.Since.IsZero() {
		starts, err := a.ClickHouse.Strings(ctx, `SELECT toString(toUnixTimestamp(toDateTime(month, 'UTC'))) AS s FROM (
			SELECT DISTINCT toStartOfMonth(m) AS month FROM events_1m
			UNION DISTINCT SELECT DISTINCT toStartOfMonth(at) FROM events_users WHERE width <= 86400
			UNION DISTINCT SELECT toDate(concat(substring(partition, 1, 4), '-', substring(partition, 5, 2), '-01')) FROM system.parts
				WHERE database = currentDatabase() AND table = 'events' AND active
		) ORDER BY month`)
		return parseSpans(starts, func(t time.Time) time.Time { return t.AddDate(0, 1, 0) }), err
	}
	const mostDays = 62
	starts, err := a.ClickHouse.Strings(ctx, fmt.Sprintf(`SELECT DISTINCT toString(toUnixTimestamp(toStartOfDay(ts))) AS s FROM events
		WHERE received_at >= toDateTime64(%d, 3, 'UTC') ORDER BY s DESC LIMIT %d`, a.Since.Unix(), mostDays))
	return parseSpans(starts, func(t time.Time) time.Time { return t.AddDate(0, 0, 1) }), err
}

func parseSpans(starts []string, end func(time.Time) time.Time) []span {
	var out []span
	for _, s := range starts {
		var unix int64
		if _, err := fmt.Sscan(s, &unix); err == nil {
			from := time.Unix(unix, 0).UTC()
			out = append(out, span{from, end(from)})
		}
	}
	return out
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
