// Package query answers GET /metrics: parameters → plan → SQL → JSON.
//
// # Exact, and as cheap for years as for a day
//
// The obvious query, count() and uniq() over the raw rows, is exact and grows
// with the number of events. The obvious remedy, sums over hourly rollups, is
// fast and wrong for every range that does not start and end on the hour. Here
// a range is cut into pieces (plan.go): the widest buckets that fit into it,
// 256 days, then 16 days, days, hours, five minutes, and what is left at the
// ragged ends from raw rows. The pieces are disjoint and cover the range, so
// total_events is exact for any from and to.
//
// unique_users cannot be summed: a user seen on two days is one user. Buckets
// therefore carry a uniqCombined64 state, the server makes one of the raw rows, and
// they are merged here (sketch.go), but for what would be much to send (sql.go). A merged state is the state that all rows
// would have made, so the answer is the same number whichever way the range was cut
// (but for exactly 512 users: see sketch).
//
// Every width divides the next, so a range of any length is at most 11 buckets of five
// minutes, 23 hours, 15 days and 15 times 16 days at either end, and one more
// for every eight months between them. Without group_by there is one state for
// all channels: an answer costs the same for a day and for three years. By
// channel there is one for each: an answer merges as many times more as there are
// channels, and does not grow with the range either. By the hour or by the day an
// answer grows with its groups, since each needs a state of its own.
//
// The precision of the states is 14, where ClickHouse's default is 17: a state
// is 12 kB instead of 98 and merges in a seventh of the time. Measured
// (TestUniqueUsersError): exact up to 511 users, beyond that 0.4 to 0.9 % off on
// average and 2.1 % at worst in 310 trials of a thousand to a million users.
// The theory says 0.81 % standard error. unique_users=false leaves the states
// out.
//
// One request is a SELECT of each table that has a piece, two as a rule, asked at the
// same time over connections of their own (sql.go) and added up as they answer
// (answer.go). Rows and buckets are of different seconds, so nothing is counted by both.
// Buckets are kept for the next question: it asks which parts have rows of them, and reads
// those with their users that are not what they were (states.go).
// Requests for the same, from and to included, that come while one is under way share
// the next, or get its answer if it may be that old (calls.go).
//
// # What a caller may rely on
//
//   - total_events is exact; group totals add up to it unless truncated. With a TTL
//     that is of events it has not taken: kept_from says so where the range begins before.
//   - First and last time group hold only their part inside the range; empty
//     buckets are absent. Days and hours are those of the request's zone, a day
//     of 23 or 25 hours included; the hour that comes twice when the clocks go
//     back is two groups, told apart by their offsets, and the rest of an hour
//     that a change of half an hour cuts is a group that begins with the change.
//   - Without group_by, grouped_by is "" and data is [].
//   - Events without a channel or campaign are the group "".
//   - Names are ordered by total, then by name; times ascend.
package query

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"golang.org/x/sync/errgroup"

	"edge/internal/clickhouse"
	"edge/internal/stat"
)

// ErrTooExpensive is the cause when the server gave up on a query that needs
// more time or memory than Options allow one query.
var ErrTooExpensive = errors.New("the query needs more time or memory than one query may use; ask for a shorter range or fewer groups")

// Options bound what one query may cost. The zero value has good defaults.
type Options struct {
	Timeout   time.Duration // of one query, enforced by the server; 0: 10s
	MaxMemory int64         // bytes the server may use for one table's part of it; 0: 1 GiB
	// Keep is how old an answer may be, for who asks the same again; 0: none is
	// older than the question.
	Keep time.Duration
	// TTL is how long the tables keep events by their timestamp; 0: for ever.
	TTL time.Duration
	// States is how many bytes of buckets and their users are kept for the next question;
	// 0: none. No answer is older for it, but for maxStateAge of tables that were made anew
	// by hand, and of rows that a mutation or a TTL has taken from events alone.
	States int
}

// Engine runs queries. All methods may be called from any goroutine.
type Engine struct {
	pool     *clickhouse.Pool
	timeout  time.Duration
	ttl      time.Duration
	settings []ch.Setting

	calls   calls
	states  stateCache
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
		ttl:     o.TTL,
		settings: []ch.Setting{
			{Key: "max_execution_time", Value: strconv.FormatInt(seconds, 10), Important: true},
			{Key: "max_memory_usage", Value: strconv.FormatInt(o.MaxMemory, 10), Important: true},
			// Merges by newer servers add statistics of every column to a part, and a
			// SELECT reads those of all parts to order its conditions: 36 of 39 ms
			// for a minute of rows. A server that does not know it ignores it.
			{Key: "use_statistics", Value: "0"},
			// grouping() is 1 in the row of all groups together.
			{Key: "force_grouping_standard_compatibility", Value: "1"},
			// No table has a projection. Looking for the one that every table has, of
			// what its parts know without being read, is a tenth of a short query.
			{Key: "optimize_use_projections", Value: "0"},
			{Key: "optimize_use_implicit_projections", Value: "0"},
		},
		calls:   calls{keep: o.Keep},
		states:  stateCache{limit: o.States},
		seconds: stat.NewHistogram(stat.Seconds),
	}
	return e
}

// Query answers r, which must come from Parse; the result may be others', too,
// and must not be changed. The error wraps ErrTooExpensive when asking again as is
// will not help; every other error is the database's or ctx's.
func (e *Engine) Query(ctx context.Context, r Request) (*Result, error) {
	return e.calls.do(ctx, r, func(ctx context.Context) (*Result, error) { return e.askKept(ctx, r) })
}

// keptFrom is the first second that a question asked now is answered for; 0: any. What a
// TTL is about to take is no longer answered for, since the server may take it meanwhile,
// and by a clock of its own. Rounded up to a whole bucket, it needs no rows of its own.
func (e *Engine) keptFrom(now time.Time) int64 {
	const margin, width = 60, 300
	if e.ttl <= 0 {
		return 0
	}
	return max(0, (now.Add(-e.ttl).Unix()+margin+width-1)/width*width)
}

// askKept asks for what a TTL leaves of r's range. It takes rows, and buckets of each width,
// when it comes by and days after all else, so beyond it each grouping has another rest.
func (e *Engine) askKept(ctx context.Context, r Request) (*Result, error) {
	kept := e.keptFrom(time.Now())
	if kept <= r.From {
		return e.ask(ctx, r)
	}
	res, asked := new(Result), r
	if r.From = kept; r.From < r.To {
		var err error
		if res, err = e.ask(ctx, r); err != nil {
			return nil, err
		}
	}
	res.Request, res.KeptFrom = asked, kept
	return res, nil
}

// ask runs r's query.
func (e *Engine) ask(ctx context.Context, r Request) (*Result, error) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()

	zone, err := loadZone(r.Zone)
	if err != nil {
		return nil, err
	}
	offsets := zoneOffsets(zone, r.From, r.To)
	pieces := plan(&r, offsets)
	a := newAnswer(&r, zone)
	start := time.Now()
	all, ctx := errgroup.WithContext(ctx)
	tables := builders(&r, offsets, pieces)
	stored := tables[len(tables)-1].stored()
	var ends []piece
	for _, b := range tables {
		if stored && b.source.table == rawTable {
			ends = b.source.pieces
			continue
		}
		e.sources[b.source.table].Inc()
		if stored {
			all.Go(func() error { return e.buckets(ctx, a, b, ends) })
			continue
		}
		s := b.statement()
		a.served = s.columns.whole
		all.Go(func() error { return e.pool.Do(ctx, s.query(e.settings, a.read)) })
	}
	err = all.Wait()
	e.seconds.Observe(time.Since(start))
	if err != nil {
		if tooExpensive(err) {
			err = fmt.Errorf("%w (%w)", ErrTooExpensive, err)
		}
		return nil, fmt.Errorf("query metrics: %w", err) // no name: it is a client's text, and this is logged
	}
	return a.finish(), nil
}

// tooExpensive tells whether the server gave up on the query for what the query itself
// needs. Memory may also be what the whole server or the user has no more of, for which
// the server has the same code: others used it, and later the same query is answered.
func tooExpensive(err error) bool {
	switch proto.Error(clickhouse.Code(err)) {
	case proto.ErrTimeoutExceeded, proto.ErrTooSlow:
		return true
	case proto.ErrMemoryLimitExceeded:
		for _, limit := range [...]string{"(total)", "(for user)", "User memory limit"} {
			if strings.Contains(err.Error(), limit) {
				return false
			}
		}
		return true
	}
	return false
}

// Describe adds the engine's metrics to set.
func (e *Engine) Describe(set *stat.Set) {
	set.Histogram("edge_query_seconds", "Time of one metrics query in ClickHouse, connection included.", e.seconds)
	set.CounterVec("edge_query_source_total", "Metrics queries that read this table; one query may read several.",
		[]string{"source"}, func(emit stat.Emit) {
			for i := range schema {
				emit(float64(e.sources[i].Load()), schema[i].label)
			}
		})
	e.states.describe(set)
}
