// Package query answers GET /metrics: parameters → plan → SQL → JSON.
//
// # Exact, and cheap at any length
//
// The obvious query, count() and uniq() over the raw rows, is exact and grows
// with the number of events. The obvious remedy, sums over hourly rollups, is
// fast and wrong for every range that does not start and end on the hour. Here
// a range is cut into pieces (plan.go): whole days from the day rollup, whole
// hours around them from the hour rollup, and what is left at the ragged ends
// from raw rows. The pieces are disjoint and cover the range, so total_events
// is exact for any from and to, and a year costs what 365 days and at most two
// hours of raw rows cost.
//
// unique_users cannot be summed: a user seen on two days is one user. Days and
// hours therefore carry a uniqCombined64 state per channel, raw rows make
// theirs on the way, and all of them are merged once over the whole range. A
// merged state is the state that all rows would have made, so the answer is
// the same number whichever way the range was cut. Measured (precision 17, the
// default; query_timing_test.go): exact up to 4,096 users, beyond that the
// error is 0.2 % on average and was never above 1.1 % in 560 trials of up to a
// million users. The theory says 0.29 % standard error.
//
// Merging is what a query costs: one state per day and channel, so a year of
// one event costs the same at a thousand events a day and at a billion, but
// twelve times a month. unique_users=false leaves the states out, and counts
// alone come back from any range in the time of a round trip.
//
// One request is one SELECT with one row of arrays as its answer (sql.go): one
// round trip, total and groups of the same moment.
//
// # What a caller may rely on
//
//   - total_events is exact; group totals add up to it unless truncated.
//   - First and last time group hold only their part inside the range; empty
//     buckets are absent. Days and hours are those of the request's zone, a day
//     of 23 or 25 hours included; the hour that comes twice when the clocks go
//     back is two groups, told apart by their offsets.
//   - Without group_by, grouped_by is "" and data is [].
//   - Events without a channel or campaign are the group "".
//   - Names are ordered by total, then by name; times ascend.
package query

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"edge/internal/clickhouse"
	"edge/internal/stat"
)

// ErrTooExpensive is the cause when the server gave up on a query that needs
// more time or memory than Options allow one query.
var ErrTooExpensive = errors.New("the query needs more time or memory than one query may use; ask for a shorter range or fewer groups")

// Options bound what one query may cost. The zero value has good defaults.
type Options struct {
	Timeout   time.Duration // of one query, enforced by the server; 0: 10s
	MaxMemory int64         // bytes the server may use for one query; 0: 1 GiB
	// ReadOnly sends readonly=1 with each query, a second lock behind the
	// parameters. Not for a user whose profile is read-only already, which may
	// not set it, nor for the embedded engine, whose sessions keep it.
	ReadOnly bool
}

// Engine runs queries. All methods may be called from any goroutine.
type Engine struct {
	pool     *clickhouse.Pool
	timeout  time.Duration
	settings []ch.Setting

	seconds *stat.Histogram
	sources [tables]stat.Counter
}

// New returns an engine that asks pool.
func New(pool *clickhouse.Pool, o Options) *Engine {
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.MaxMemory <= 0 {
		o.MaxMemory = 1 << 30
	}
	seconds := int64((o.Timeout + time.Second - 1) / time.Second)
	e := &Engine{
		pool: pool,
		// The server's own limit ends a slow query with an exception on a
		// connection that stays usable; ours is for a server that hangs.
		timeout: o.Timeout + 2*time.Second,
		settings: []ch.Setting{
			{Key: "max_execution_time", Value: strconv.FormatInt(seconds, 10), Important: true},
			{Key: "max_memory_usage", Value: strconv.FormatInt(o.MaxMemory, 10), Important: true},
		},
		seconds: stat.NewHistogram(stat.Seconds),
	}
	if o.ReadOnly {
		e.settings = append(e.settings, ch.Setting{Key: "readonly", Value: "1", Important: true})
	}
	return e
}

// Query answers r, which must come from Parse. The error wraps ErrTooExpensive
// when asking again as is will not help; every other error is the database's
// or ctx's.
func (e *Engine) Query(ctx context.Context, r Request) (*Result, error) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()

	zone, err := loadZone(r.Zone)
	if err != nil {
		return nil, err
	}
	offsets := zoneOffsets(zone, r.From, r.To)
	pieces := plan(r.From, r.To, usable(&r, offsets))
	s := build(&r, offsets, pieces)
	a := newAnswer(&r, zone)
	start := time.Now()
	err = e.pool.Do(ctx, ch.Query{
		Body:       s.text,
		Parameters: s.params,
		Settings:   e.settings,
		Result:     a.columns(),
		OnResult:   a.read,
	})
	e.seconds.Observe(time.Since(start))
	e.count(pieces)
	if err != nil {
		switch proto.Error(clickhouse.Code(err)) {
		case proto.ErrTimeoutExceeded, proto.ErrTooSlow, proto.ErrMemoryLimitExceeded:
			err = fmt.Errorf("%w (%w)", ErrTooExpensive, err)
		}
		return nil, fmt.Errorf("query metrics of %q: %w", r.EventName, err)
	}
	return &a.result, nil
}

// count adds one to every table the query read.
func (e *Engine) count(pieces []piece) {
	var seen [tables]bool
	for _, p := range pieces {
		if !seen[p.table] {
			seen[p.table] = true
			e.sources[p.table].Inc()
		}
	}
}

// Describe adds the engine's metrics to set.
func (e *Engine) Describe(set *stat.Set) {
	set.Histogram("edge_query_seconds", "Time of one metrics query in ClickHouse, connection included.", e.seconds)
	set.CounterVec("edge_query_source_total", "Metrics queries that read this table; one query may read several.",
		[]string{"source"}, func(emit stat.Emit) {
			for t := range tables {
				emit(float64(e.sources[t].Load()), t.String())
			}
		})
}
