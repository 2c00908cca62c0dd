package clickhouse

import (
	"context"
	"fmt"
	"time"
)

// Expiry is what TTLs have taken from events and its rollups, or may have.
type Expiry struct {
	TTL   time.Duration // of events; 0: rows stay
	First time.Time     // since when there is one, or was; zero: there never was one
	Set   time.Time     // when edge last changed it
	Gone  time.Time     // rows from before may have been taken by a TTL of then; zero: none were
	Ages  time.Duration // how old an event may have been on arrival since First; 0: not known
	Now   time.Time     // the server's
}

// expirySet is the comment of events. An earlier edge wrote no more than the first time.
const expirySet = "TTL set at %d, first at %d, rows before %d may be gone, ages up to %d"

// ReadExpiry reads what applyTTL has noted. A table that is not there has none.
func (p *Pool) ReadExpiry(ctx context.Context) (Expiry, error) {
	answer, err := p.Strings(ctx, `SELECT concat(toString(toUnixTimestamp(now())), ' ', toString(toInt64OrZero(extract(engine_full, 'TTL .* toIntervalSecond\\((\\d+)\\)'))), ' ',
			toString(toInt64OrZero(extract(comment, '^TTL set at (\\d+)'))), ' ', toString(toInt64OrZero(extract(comment, ', first at (\\d+)'))), ' ', toString(toInt64OrZero(extract(comment, ', rows before (\\d+) may be gone'))), ' ', toString(toInt64OrZero(extract(comment, ', ages up to (\\d+)')))) AS s
		FROM system.tables WHERE database = currentDatabase() AND name = 'events'`)
	if err != nil || len(answer) == 0 {
		return Expiry{}, err
	}
	var now, ttl, set, first, gone, ages int64
	if _, err := fmt.Sscan(answer[0], &now, &ttl, &set, &first, &gone, &ages); err != nil {
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
	return Expiry{time.Duration(ttl) * time.Second, at(first), at(set), at(gone), time.Duration(ages) * time.Second, at(now)}, nil
}

// noteExpiry notes that the TTL of events changes now, and how old events that meet it may
// be on arrival. The one before has taken, or takes with the next merges, what was older
// than it; a longer one brings nothing back. One that was set by hand is no word of ours,
// and rows it took can be filled in from the log.
func (r runner) noteExpiry(ctx context.Context) error {
	e, err := r.ReadExpiry(ctx)
	if err != nil || e.Set.IsZero() && r.TTL == 0 {
		return err
	}
	if !e.Set.IsZero() && e.TTL > 0 && e.Now.Add(-e.TTL).After(e.Gone) {
		e.Gone = e.Now.Add(-e.TTL)
	}
	if r.TTL > 0 && (e.TTL == 0 || e.Ages == 0) { // what came before may be of any age
		e.First, e.Ages = e.Now, 0
	}
	if r.TTL == 0 {
		r.MaxAge = 0 // nothing of that age meets the TTL that goes
	}
	e.Set = e.Now
	return r.comment(ctx, e)
}

// noteAges notes that events that meet the TTL may be older on arrival than they were.
func (r runner) noteAges(ctx context.Context) error {
	e, err := r.ReadExpiry(ctx)
	if err != nil || r.TTL == 0 || e.Ages == 0 || r.MaxAge <= e.Ages {
		return err
	}
	return r.comment(ctx, e)
}

func (r runner) comment(ctx context.Context, e Expiry) error {
	seconds := func(t time.Time) int64 { return max(t.Unix(), 0) } // of none: 0
	text := fmt.Sprintf(expirySet, seconds(e.Set), seconds(e.First), seconds(e.Gone), int64(max(e.Ages, r.MaxAge).Seconds()))
	return r.Exec(ctx, "ALTER TABLE events"+onCluster(r.Cluster)+" MODIFY COMMENT "+Quote(text))
}
