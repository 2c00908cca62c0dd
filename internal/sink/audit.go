package sink

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"edge/internal/clickhouse"
	"edge/internal/kafka"
)

// Audit proves, from what ClickHouse holds, that every offset of the log is
// accounted for once and that the rollups are the sums of the rows. It only
// reads, and may run beside sinks that write.
//
//	coverage   per log and partition the batches [first,last] follow each other
//	           without gap or overlap, each has the rows it says it has, every
//	           offset is there once, and rows + duplicates + dead = length, but
//	           for rows that the table's TTL may have taken
//	rollups    the counts and distinct users of every bucket of every width
//	           equal those of what it is made of, in the end the rows
type Audit struct {
	ClickHouse *clickhouse.Pool
	// Since limits the audit to what was received from then on; zero: all.
	Since time.Time
	// Log, when not nil, is the log that what is stored is compared with: what its
	// group is past must be stored, and what it has more is pending. Without, what is being
	// inserted beside what is in already looks like a gap, and tables that are empty look
	// like tables of which nothing is missing.
	Log *Log
	// MaxAge is how old an event may be on arrival: with the table's TTL it says which rows
	// may have expired. An audit of all needs it if there is a TTL that says no ages itself.
	MaxAge time.Duration

	expiring time.Time // what was received before may have; zero: nothing has

	// calm is how long what the group is past may take to show, in an audit of some time:
	// records may be that much older than their neighbours, and a replica behind. 0: 5m.
	calm time.Duration
}

// Log is a topic and the group that stores it.
type Log struct {
	Kafka kafka.Options
	Topic string
	Group string
	Lives Lives
}

// Report is what an audit found. Missing, Extra and Mismatched are 0 when
// everything adds up.
type Report struct {
	Partitions []Coverage `json:"partitions"`
	// Mismatched is how many rows the rollups count too many or too few, each
	// compared with the next finer table, and Users how many cells disagree on
	// their distinct users.
	Mismatched int64    `json:"mismatched_rollup_rows"`
	Users      int64    `json:"mismatched_user_cells"`
	Pending    int64    `json:"pending"`            // records in the log and not stored yet; no fault
	Problems   []string `json:"problems,omitempty"` // the first of each kind
	Took       float64  `json:"took_seconds"`
}

// Coverage is one partition of one log.
type Coverage struct {
	Source     uint32 `json:"src"`
	Partition  int32  `json:"partition"`
	First      int64  `json:"first"` // offsets covered: [First,Last]
	Last       int64  `json:"last"`
	Batches    int64  `json:"batches"`
	Rows       int64  `json:"rows"`
	Duplicates int64  `json:"duplicates"`
	Dead       int64  `json:"dead"`
	Expired    int64  `json:"expired"` // offsets without a row that are so old that the TTL may have taken it
	Missing    int64  `json:"missing"` // offsets neither row, duplicate, dead nor expired
	Extra      int64  `json:"extra"`   // rows beyond one per offset
}

// Missing is the number of records that are nowhere, over all partitions.
func (r *Report) Missing() (n int64) {
	for _, c := range r.Partitions {
		n += c.Missing
	}
	return n
}

// Extra is the number of rows stored more than once.
func (r *Report) Extra() (n int64) {
	for _, c := range r.Partitions {
		n += c.Extra
	}
	return n
}

// OK reports whether everything adds up.
func (r *Report) OK() bool {
	return r.Missing() == 0 && r.Extra() == 0 && r.Mismatched == 0 && r.Users == 0 && len(r.Problems) == 0
}

// Run performs the audit. An error means that it could not be finished, not
// that it found something.
func (a *Audit) Run(ctx context.Context) (*Report, error) {
	started := time.Now()
	r := new(Report)
	if err := a.readTTL(ctx); err != nil {
		return nil, fmt.Errorf("read the TTL of events: %w", err)
	}
	// The log is asked first: what it says is then stored, or still to come.
	log, err := a.positions(ctx)
	if err != nil {
		return nil, fmt.Errorf("audit the log: %w", err)
	}
	if err := a.coverage(ctx, r, log); err != nil {
		return nil, fmt.Errorf("audit coverage: %w", err)
	}
	if a.Since.IsZero() {
		r.compare(log)
	}
	if err := a.rollups(ctx, r); err != nil {
		return nil, fmt.Errorf("audit rollups: %w", err)
	}
	r.Took = time.Since(started).Seconds()
	return r, nil
}

// readTTL sets expiring. A TTL, of now or of earlier, has taken nothing with a ts after some
// time. A row's ts is at most so old on arrival, and so what was received later than that
// time + that age is there. Rows from before there was a TTL may have any ts, so all of those
// may have expired. An hour is added because the log is ordered by time of receipt only up
// to the minutes that a record may have waited on its way.
func (a *Audit) readTTL(ctx context.Context) error {
	if !a.Since.IsZero() {
		return nil // an hour is less than any TTL, MaxAge included
	}
	const order = time.Hour
	e, err := a.ClickHouse.ReadExpiry(ctx)
	switch {
	case err != nil || e.First.IsZero() && e.TTL == 0:
		return err
	case e.TTL == 0 && e.Ages > 0: // MAX_AGE of today is of events that no TTL has met
		a.expiring = later(e.First, e.Gone.Add(e.Ages))
	case e.TTL == 0:
		a.expiring = e.Set
	case e.Ages > 0:
		a.expiring = later(e.First, taken(e).Add(max(a.MaxAge, e.Ages)))
	case a.MaxAge > 0: // an edge that noted no ages set the TTL, and they may have been others
		a.expiring = later(e.Set, taken(e).Add(a.MaxAge))
	default:
		return errNoAges
	}
	a.expiring = a.expiring.Add(order)
	return nil
}

var errNoAges = errors.New("the table has one, and without MAX_AGE nothing says which rows may have expired: set it as the ingesting processes have it")

func (r *Report) problem(format string, args ...any) {
	const most = 20
	if len(r.Problems) < most {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// String is the report for a person.
func (r *Report) String() string {
	var b strings.Builder
	for _, c := range r.Partitions {
		fmt.Fprintf(&b, "source %d partition %d: offsets %d to %d in %d batches: %d rows + %d duplicates + %d dead", c.Source, c.Partition, c.First, c.Last, c.Batches, c.Rows, c.Duplicates, c.Dead)
		if c.Expired > 0 {
			fmt.Fprintf(&b, " + %d expired", c.Expired)
		}
		fmt.Fprintf(&b, "; missing %d, extra %d\n", c.Missing, c.Extra)
	}
	fmt.Fprintf(&b, "rollups: %d rows and %d user cells differ from events\n", r.Mismatched, r.Users)
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "problem: %s\n", p)
	}
	if r.Pending > 0 {
		fmt.Fprintf(&b, "pending: %d records are in the log and not stored yet\n", r.Pending)
	}
	verdict := "everything adds up"
	if !r.OK() {
		verdict = "NOT everything adds up"
	}
	fmt.Fprintf(&b, "%s (%.1fs)\n", verdict, r.Took)
	return b.String()
}
