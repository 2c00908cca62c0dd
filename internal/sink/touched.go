package sink

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"edge/internal/clickhouse"
)

// touched is what of the tables a set of rows concerns.
type touched struct {
	hours, days, long, longer spans
	named                     string // condition on event_name
	rows                      string // condition that selects the rows in events
}

// touching are the buckets that hold the given Unix seconds.
func touching(seconds []int64) touched {
	return touched{
		hours: spansOf(seconds, anHour), days: spansOf(seconds, aDay),
		long: spansOf(seconds, long), longer: spansOf(seconds, longer),
	}
}

// since returns w without the buckets of which a TTL may have taken what they sum up.
func (w touched) since(oldest time.Time) touched {
	if oldest.IsZero() {
		return w
	}
	w.hours, w.days = w.hours.since(oldest), w.days.since(oldest)
	w.long, w.longer = w.long.since(oldestDay(oldest)), w.longer.since(oldestDay(oldest))
	return w
}

// touches returns what f's rows concern.
func (t *session) touches(f *flight) touched {
	var batches []string
	for _, id := range slices.Sorted(maps.Keys(f.batches)) {
		b := f.batches[id]
		batches = append(batches, fmt.Sprintf("(%s AND _offset BETWEEN %d AND %d)", t.source.rows(id, ofEvents), b.first, b.last))
	}
	seconds := make([]int64, len(f.block.ts.Data))
	for i, ms := range f.block.ts.Data {
		seconds[i] = int64(ms) / 1000
	}
	w := touching(seconds)
	w.named = f.block.named()
	w.rows = fmt.Sprintf("(%s) AND toYYYYMM(ts) IN (%s)", strings.Join(batches, " OR "), f.block.months())
	return w
}

// months lists the partitions of the table that b touches: "202401,202402".
func (b *block) months() string {
	seen := make(map[int]struct{})
	for i := range b.ts.Data {
		seen[b.month(i)] = struct{}{}
	}
	return list(slices.Sorted(maps.Keys(seen)))
}

// month is that of row i: 202401.
func (b *block) month(i int) int {
	y, m, _ := time.UnixMilli(int64(b.ts.Data[i])).UTC().Date()
	return y*100 + int(m)
}

// maxListed and maxNamed bound what a condition names one by one: values, and bytes of
// names as they are written. A query must stay below ClickHouse's max_query_size, 256 KiB,
// and one that compares two widths of buckets says both conditions eight times. Beyond the
// bounds the range alone, which contains more, says which rows to compare.
const (
	maxListed = 1000
	maxNamed  = 12 << 10
)

// The widths in seconds of the buckets in events_users.
const (
	fiveMinutes = 300
	anHour      = 3600
	aDay        = 86400
	long        = 16 * aDay
	longer      = 256 * aDay
)

var widths = []int64{fiveMinutes, anHour, aDay, long, longer}

// floor is the start, in Unix seconds, of the bucket that holds a time.
func floor(column string, width int64) string {
	return fmt.Sprintf("intDiv(toUnixTimestamp(toDateTime(%s, 'UTC')), %[2]d) * %[2]d", column, width)
}

// spans are the buckets of one width that rows fall into, by their starts in
// Unix seconds, ascending.
type spans struct {
	starts []int64
	width  int64
}

// spansOf returns the buckets that hold the given Unix seconds.
func spansOf(seconds []int64, width int64) spans {
	seen := make(map[int64]struct{})
	for _, s := range seconds {
		seen[s/width*width] = struct{}{}
	}
	return spans{slices.Sorted(maps.Keys(seen)), width}
}

// since returns those of s that begin at a time or later.
func (s spans) since(t time.Time) spans {
	first, _ := slices.BinarySearch(s.starts, t.Unix())
	return spans{s.starts[first:], s.width}
}

// within is the condition that a time column lies in one of s, which are one or more. The
// range around them comes first: it is what the primary key can use.
func (s spans) within(column string) string {
	cond := span{time.Unix(s.starts[0], 0), time.Unix(s.starts[len(s.starts)-1]+s.width, 0)}.of(column)
	if len(s.starts) <= maxListed {
		cond += fmt.Sprintf(" AND %s IN (%s)", floor(column, s.width), list(s.starts))
	}
	return cond
}

// named is the condition that event_name is one of b's.
func (b *block) named() string {
	if len(b.eventName.values.Buf) > maxNamed {
		return "1"
	}
	names := make([]string, b.eventName.values.Rows())
	for i := range names {
		names[i] = clickhouse.Quote(b.eventName.values.Row(i))
	}
	if list := strings.Join(names, ","); len(list) <= maxNamed {
		return "event_name IN (" + list + ")"
	}
	return "1"
}

func list[T int | int64](values []T) string {
	var b strings.Builder
	for i, v := range values {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprint(&b, v)
	}
	return b.String()
}
