package sink

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/ClickHouse/ch-go"
)

// Repairing a rollup beside other sinks. The difference between a table and the
// next finer one is what crashes left, a constant, plus whatever inserts under
// way have in one of the two and not yet in the other. So it is taken only at a
// moment without the second kind, and by one sink at a time:
//
//	lock      a query that sleeps, marked as a repair, in system.processes.
//	          It ends with its connection, so no dead sink holds it, and with
//	          its lease, so no frozen one does.
//	mark      the block numbers of all tables added up: any part that is
//	          committed raises it
//	measure   the difference goes into a temporary table
//	look      no insert is running, then: the mark is the same
//	correct   the temporary table goes into the rollup, if the lock still holds
//
// An insert that was half visible to the measuring had a part committed before
// it and one after. The later one either raised the mark before the last step
// of looking, or came after that; then the insert was still running when the
// first step looked. Inserters pay nothing for this; they only let a repair
// that they happen to see go first, because between back-to-back inserts of
// others it would never find its moment.

// repairMark is the log_comment of a lock, before the holder's own name.
const repairMark = "edge/repair/"

// repairing is the condition for locks in system.processes.
const repairing = "startsWith(Settings['log_comment'], '" + repairMark + "') AND current_database = currentDatabase()"

// inserting is the condition for inserts of any sink into this database.
const inserting = "match(Settings['log_comment'], '^edge/[0-9]+/') AND current_database = currentDatabase()"

// repair is a repair of rollups under way. Its connection owns the temporary
// tables.
type repair struct {
	*session
	flight *flight
	conn   *ch.Client
	lock   *lock
}

// step is a rollup, or some of its widths, against the finer table that it sums
// up, which for wide buckets is the same table.
type step struct {
	rollup, key string // the table and the columns that name a row
	cell        string // the same from the difference's columns
	finer, own  []cells
}

// cells are the counts of one table by cell of the rollup: what the finer table
// says of them, or the rollup itself.
type cells struct {
	bucket
	cell, count    string
	table, touched string // from where, and which of its rows
}

// bucket is what of a rollup a cell belongs to. Minutes have width 0.
type bucket struct {
	width     int64
	byChannel bool // of one channel, or of all together
}

func (b bucket) channel() string {
	if b.byChannel {
		return "channel"
	}
	return "''"
}

// is selects the rows of events_users in such buckets.
func (b bucket) is() string {
	return fmt.Sprintf("by_channel = %d AND width = %d", b.flag(), b.width)
}

func (b bucket) flag() int {
	if b.byChannel {
		return 1
	}
	return 0
}

// cellKey names a cell in what cells.sql selects.
const cellKey = "w, each, cell, event_name, ch"

func (c cells) sql(named string) string {
	return fmt.Sprintf(`SELECT toUInt32(%d) AS w, toUInt8(%d) AS each, toDateTime(%s, 'UTC') AS cell, event_name, %s AS ch, %s AS c FROM %s WHERE %s AND (%s) GROUP BY cell, event_name, ch`,
		c.width, c.flag(), c.cell, c.channel(), c.count, c.table, named, c.touched)
}

// steps are in an order in which each finer table is right when its turn comes.
// The widest buckets are compared with days because a TTL leaves days alone
// until the bucket that holds them is gone.
func (w touched) steps() []step {
	minutes := step{rollup: "events_1m", key: "m, event_name, channel", cell: "cell, event_name, ch"}
	if len(w.hours.starts) > 0 {
		minutes.finer = []cells{{bucket{0, true}, "toStartOfMinute(ts)", "toInt64(count())", "events", w.hours.within("ts")}}
		minutes.own = []cells{{bucket{0, true}, "m", "-sum(n)", "events_1m", w.hours.within("m")}}
	}
	users := func() step {
		return step{rollup: "events_users", key: "width, by_channel, at, event_name, channel", cell: cellKey}
	}
	// of adds the buckets of a width and what they sum up: which rows of a table,
	// by its time column.
	of := func(s step, width int64, in spans, table, column, which string) step {
		if len(in.starts) == 0 {
			return s
		}
		for _, byChannel := range []bool{true, false} {
			b := bucket{width, byChannel}
			s.finer = append(s.finer, cells{b, floor(column, width), "sum(n)", table, which + " AND " + in.within(column)})
			s.own = append(s.own, cells{b, "at", "-sum(n)", s.rollup, b.is() + " AND " + in.within("at")})
		}
		return s
	}
	hour, day := bucket{anHour, true}.is(), bucket{aDay, true}.is()
	all := []step{
		minutes,
		of(of(users(), fiveMinutes, w.hours, "events_1m", "m", "1"), anHour, w.hours, "events_1m", "m", "1"),
		of(users(), aDay, w.days, "events_users", "at", hour),
		of(of(users(), long, w.long, "events_users", "at", day), longer, w.longer, "events_users", "at", day),
	}
	return slices.DeleteFunc(all, func(s step) bool { return len(s.finer) == 0 })
}

// repairRollups compares each rollup with the next finer table over what w
// touches and inserts what differs, then inserts the distinct-user states of
// its rows. It reports whether a count differed. The inserts are marked as f's.
func (t *session) repairRollups(ctx context.Context, f *flight, w touched) (bool, error) {
	repaired, err := t.repairCounts(ctx, f, w)
	if err != nil {
		return repaired, err
	}
	return repaired, t.insertStates(ctx, f, w.rows)
}

// repairCounts is the part that one sink does at a time.
func (t *session) repairCounts(ctx context.Context, f *flight, w touched) (repaired bool, err error) {
	lock, err := t.lockRollups(ctx)
	if err != nil {
		return false, fmt.Errorf("wait for the repairs of other sinks: %w", err)
	}
	defer lock.unlock()
	conn, err := t.cfg.ClickHouse.Dial(lock.ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	r := &repair{t, f, conn, lock}
	for _, s := range w.steps() {
		differed, err := r.equal(lock.ctx, s, w.named)
		repaired = repaired || differed
		if err != nil {
			return repaired, fmt.Errorf("compare %s with %s: %w", s.rollup, s.finer[0].table, cmp.Or(context.Cause(lock.ctx), err))
		}
	}
	return repaired, nil
}

// equal makes a rollup equal to the finer table and reports whether it was not.
// It ends with a measuring that found no difference.
func (r *repair) equal(ctx context.Context, s step, named string) (differed bool, err error) {
	var sides []string
	for _, c := range slices.Concat(s.finer, s.own) {
		sides = append(sides, c.sql(named))
	}
	diff := "SELECT " + cellKey + ", sum(c) AS n FROM (" + strings.Join(sides, " UNION ALL ") + ") GROUP BY " + cellKey + " HAVING n != 0"
	for try := 0; ; try++ {
		n, still, err := r.measure(ctx, diff)
		switch {
		case err != nil:
			return differed, err
		case still && n == "0":
			return differed, nil
		case still:
			if err := r.correct(ctx, s); err != nil {
				return differed, fmt.Errorf("insert the difference: %w", err)
			}
			differed = true
		default:
			if err := pause(ctx, min(try, 4)); err != nil {
				return differed, err
			}
		}
	}
}

// measure stores what diff answers in a temporary table and returns its row
// count; still says that no insert was half visible to it.
func (r *repair) measure(ctx context.Context, diff string) (rows string, still bool, err error) {
	before, err := r.mark(ctx)
	if err != nil {
		return "", false, err
	}
	if err := r.conn.Do(ctx, ch.Query{Body: "DROP TEMPORARY TABLE IF EXISTS difference"}); err != nil {
		return "", false, err
	}
	if err := r.conn.Do(ctx, ch.Query{Body: "CREATE TEMPORARY TABLE difference ENGINE = Memory AS " + diff}); err != nil {
		return "", false, err
	}
	running, err := r.one(ctx, "SELECT toString(count()) FROM system.processes WHERE "+inserting)
	if err != nil || running != "0" {
		return "", false, err
	}
	now, err := r.mark(ctx)
	if err != nil || now != before {
		return "", false, err
	}
	rows, err = oneString(ctx, r.conn, "SELECT toString(count()) FROM difference")
	return rows, true, err
}

// correct adds the measured difference to the rollup, or fails if our lock is gone:
// then another sink may have measured the same.
func (r *repair) correct(ctx context.Context, s step) error {
	return r.conn.Do(ctx, ch.Query{
		Body: fmt.Sprintf("INSERT INTO %s (%s, n) SELECT %s, n FROM difference WHERE throwIf(NOT (%s)) = 0",
			s.rollup, s.key, s.cell, running(r.lock.mark.Load().(string))),
		Settings: r.insertSettings(r.flight),
	})
}

// mark is a number that any committed part raises.
func (r *repair) mark(ctx context.Context) (string, error) {
	return r.one(ctx, `SELECT toString(sum(m)) FROM (SELECT max(max_block_number) AS m FROM system.parts
		WHERE database = currentDatabase() 
		AND table IN ('events', 'events_1m', 'events_users') GROUP BY table, partition_id)`)
}

func (r *repair) one(ctx context.Context, sql string) (string, error) {
	return oneString(ctx, r.conn, sql)
}

// insertStates inserts the distinct users of rows, a condition on events, into their buckets
// again.
func (t *session) insertStates(ctx context.Context, f *flight, rows string) error {
	err := t.exec(ctx, f, fmt.Sprintf(`INSERT INTO events_users (event_name, by_channel, width, at, channel, n, u)
		SELECT event_name, by_channel, width, toDateTime(intDiv(toUnixTimestamp(t), width) * width, 'UTC') AS at, if(by_channel = 1, c, '') AS channel, 0, u
		FROM (SELECT event_name, channel AS c, toStartOfFiveMinutes(ts) AS t, uniqCombined64State(14)(user_id) AS u FROM events WHERE %[1]s GROUP BY event_name, c, t)
		ARRAY JOIN [0,0,0,0,0,1,1,1,1,1] AS by_channel, [%[2]s,%[2]s] AS width`, rows, list(widths)))
	if err != nil {
		return fmt.Errorf("insert user states: %w", err)
	}
	return nil
}

// exec runs an INSERT SELECT under the settings and the mark of f's inserts.
func (t *session) exec(ctx context.Context, f *flight, sql string) error {
	return t.cfg.ClickHouse.Do(ctx, ch.Query{Body: sql, Settings: t.insertSettings(f)})
}
