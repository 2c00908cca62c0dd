package sink

import (
	"context"
	"fmt"

	"github.com/ClickHouse/ch-go"
)

// Repairing a rollup beside other sinks. The difference between a table and the
// next finer one is what crashes left, a constant, plus whatever inserts under
// way have in one of the two and not yet in the other. So it is taken only at a
// moment without the second kind, and by one sink at a time:
//
//	lock      a query that sleeps, marked as a repair, in system.processes.
//	          It ends with its connection, so no dead sink holds it.
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
	lock   string // the log_comment of our lock
}

// step is one rollup against the next finer table.
type step struct {
	rollup, key, cell        string // the table, its time column, and that column from the finer table
	from, count              string // the finer table and how it counts
	fromWithin, rollupWithin string
}

// repairRollups compares each rollup with the next finer table over what w
// touches and inserts what differs, then inserts the distinct-user states of
// its rows. It reports whether a count differed. The inserts are marked as f's.
func (t *session) repairRollups(ctx context.Context, f *flight, w touched) (bool, error) {
	lock, unlock, err := t.lockRollups(ctx)
	if err != nil {
		return false, fmt.Errorf("wait for the repairs of other sinks: %w", err)
	}
	defer unlock()
	conn, err := t.cfg.ClickHouse.Dial(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	r := &repair{t, f, conn, lock}
	repaired := false
	for _, s := range []step{
		{"events_1m", "m", "toStartOfMinute(ts)", "events", "toInt64(count())", w.hours.within("ts"), w.hours.within("m")},
		{"events_1h", "h", "toStartOfHour(m)", "events_1m", "sum(n)", w.hours.within("m"), w.hours.within("h")},
		{"events_1d", "d", "toDate(h)", "events_1h", "sum(n)", w.days.within("h"), w.days.withinDates("d")},
	} {
		differed, err := r.equal(ctx, s, w.named)
		repaired = repaired || differed
		if err != nil {
			return repaired, fmt.Errorf("compare %s with %s: %w", s.rollup, s.from, err)
		}
	}
	return repaired, t.insertStates(ctx, f, w)
}

// equal makes a rollup equal to the finer table and reports whether it was not.
// It ends with a measuring that found no difference.
func (r *repair) equal(ctx context.Context, s step, named string) (differed bool, err error) {
	diff := fmt.Sprintf(`SELECT cell, event_name, channel, sum(c) AS n FROM (
		SELECT %s AS cell, event_name, channel, %s AS c FROM %s WHERE %s AND %s GROUP BY cell, event_name, channel
		UNION ALL
		SELECT %s AS cell, event_name, channel, -sum(n) AS c FROM %s WHERE %s AND %s GROUP BY cell, event_name, channel
	) GROUP BY cell, event_name, channel HAVING n != 0`,
		s.cell, s.count, s.from, named, s.fromWithin,
		s.key, s.rollup, named, s.rollupWithin)
	for try := 0; ; try++ {
		n, still, err := r.measure(ctx, diff)
		switch {
		case err != nil:
			return differed, err
		case still && n == "0":
			return differed, nil
		case still:
			differed = true
			if err := r.correct(ctx, s); err != nil {
				return differed, fmt.Errorf("insert the difference: %w", err)
			}
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

// correct adds the measured difference to the rollup, unless our lock is gone:
// then another sink may have measured the same.
func (r *repair) correct(ctx context.Context, s step) error {
	return r.conn.Do(ctx, ch.Query{
		Body: fmt.Sprintf(`INSERT INTO %s (%s, event_name, channel, n) SELECT cell, event_name, channel, n FROM difference
			WHERE (SELECT count() FROM system.processes WHERE Settings['log_comment'] = '%s') > 0`, s.rollup, s.key, r.lock),
		Settings: r.insertSettings(r.flight),
	})
}

// mark is a number that any committed part raises.
func (r *repair) mark(ctx context.Context) (string, error) {
	return r.one(ctx, `SELECT toString(sum(m)) FROM (SELECT max(max_block_number) AS m FROM system.parts
		WHERE database = currentDatabase() AND table IN ('events', 'events_1m', 'events_1h', 'events_1d') GROUP BY table, partition_id)`)
}

func (r *repair) one(ctx context.Context, sql string) (string, error) {
	return oneString(ctx, r.conn, sql)
}

// insertStates inserts the distinct users of w's rows into the rollups again.
func (t *session) insertStates(ctx context.Context, f *flight, w touched) error {
	for _, s := range [][3]string{{"events_1h", "h", "toStartOfHour(ts)"}, {"events_1d", "d", "toDate(ts)"}} {
		err := t.exec(ctx, f, fmt.Sprintf(`INSERT INTO %s (%s, event_name, channel, n, u)
			SELECT %s AS cell, event_name, channel, 0, uniqCombined64State(user_id) FROM events
			WHERE %s GROUP BY cell, event_name, channel`, s[0], s[1], s[2], w.rows))
		if err != nil {
			return fmt.Errorf("insert user states into %s: %w", s[0], err)
		}
	}
	return nil
}

// exec runs an INSERT SELECT under the settings and the mark of f's inserts.
func (t *session) exec(ctx context.Context, f *flight, sql string) error {
	return t.cfg.ClickHouse.Do(ctx, ch.Query{Body: sql, Settings: t.insertSettings(f)})
}
