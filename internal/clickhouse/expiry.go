package clickhouse

import (
	"context"
	"fmt"
	"time"
)

// Expiry is what TTLs have taken from events and its rollups, or may have.
type Expiry struct {
	TTL   time.Duration // of events; 0: rows stay
	First time.Time     // when edge first set one; zero: it never had one
	Set   time.Time     // when edge last changed it
	Gone  time.Time     // rows from before may have been taken by a TTL of then; zero: none were
	Now   time.Time     // the server's
}

// expirySet is the comment of events. At first it was no more than the first three words
// and the time.
const expirySet = "TTL set at %d, first at %d, rows before %d may be gone"

// ReadExpiry reads what applyTTL has noted. A table that is not there has none.
func (p *Pool) ReadExpiry(ctx context.Context) (Expiry, error) {
	answer, err := p.Strings(ctx, `SELECT concat(toString(toUnixTimestamp(now())), ' ', toString(toInt64OrZero(extract(engine_full, 'TTL .* toIntervalSecond\\((\\d+)\\)'))), ' ',
			toString(toInt64OrZero(extract(comment, '^TTL set at (\\d+)'))), ' ', toString(toInt64OrZero(extract(comment, ', first at (\\d+)'))), ' ', toString(toInt64OrZero(extract(comment, ', rows before (\\d+) may be gone$')))) AS s
		FROM system.tables WHERE database = currentDatabase() AND name = 'events'`)
	if err != nil || len(answer) == 0 {
		return Expiry{}, err
	}
	var now, ttl, set, first, gone int64
	if _, err := fmt.Sscan(answer[0], &now, &ttl, &set, &first, &gone); err != nil {
		return Expiry{}, fmt.Errorf("%q: %w", answer[0], err)
	}
	at := func(seconds int64) time.Time {
		if seconds == 0 {
			return time.Time{}
		}
		return time.Unix(seconds, 0).UTC()
	}
	if first == 0 {
		first = set
	}
	return Expiry{time.Duration(ttl) * time.Second, at(first), at(set), at(gone), at(now)}, nil
}

// noteExpiry notes that the TTL of events changes now, to ttl. The one before has taken, or
// takes with the next merges, what was older than it; a longer one brings nothing back. One
// that was set by hand is no word of ours, and rows it took can be filled in from the log.
func (r runner) noteExpiry(ctx context.Context, ttl time.Duration) error {
	e, err := r.ReadExpiry(ctx)
	if err != nil || e.Set.IsZero() && ttl == 0 {
		return err
	}
	seconds := func(t time.Time) int64 { return max(t.Unix(), 0) } // of none: 0
	gone, first := seconds(e.Gone), seconds(e.First)
	if !e.Set.IsZero() && e.TTL > 0 {
		gone = max(gone, seconds(e.Now.Add(-e.TTL)))
	}
	if first == 0 {
		first = seconds(e.Now)
	}
	return r.Exec(ctx, "ALTER TABLE events"+onCluster(r.Cluster)+" MODIFY COMMENT "+Quote(fmt.Sprintf(expirySet, seconds(e.Now), first, gone)))
}
