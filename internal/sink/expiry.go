package sink

import (
	"time"

	"edge/internal/clickhouse"
)

// taken is the time before which rows may have expired; zero: none has. Rows and their
// rollups expire one after the other, days and wider buckets much later.
func taken(e clickhouse.Expiry) time.Time { return later(takes(e), e.Gone) }

// takes is the same for the TTL of now.
func takes(e clickhouse.Expiry) time.Time {
	if e.TTL == 0 {
		return time.Time{}
	}
	return e.Now.Add(-e.TTL)
}

// oldest is the first day of which no row can have expired.
func oldest(e clickhouse.Expiry) time.Time { return dayAfter(taken(e)) }

// dayAfter is the day that begins after t, which may be zero and stays so.
func dayAfter(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.Truncate(aDay*time.Second).AddDate(0, 0, 1)
}

// oldestDay is the same for days and wider buckets.
func oldestDay(oldest time.Time) time.Time { return oldest.AddDate(0, 0, 1-longer/aDay) }

func later(x, y time.Time) time.Time {
	if x.After(y) {
		return x
	}
	return y
}

// expired tells whether a TTL takes row i, or one of earlier may have: not one that was
// received since it was changed.
func (b *block) expired(i int, e clickhouse.Expiry) bool {
	ts, received := time.UnixMilli(int64(b.ts.Data[i])), time.UnixMilli(int64(b.receivedAt.Data[i]))
	return ts.Before(dayAfter(takes(e))) || received.Before(e.Set) && ts.Before(dayAfter(e.Gone))
}
