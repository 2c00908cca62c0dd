package clickhouse

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// The migration lock is a table, because CREATE TABLE succeeds for exactly one
// of many. Its holder renews the table's comment, and a lock not renewed for
// lockTTL was left behind by a process that died.
//
// A stale lock is not dropped and created again:
//
//	A: sees it stale                  A: drops it, creates its own
//	B: sees it stale                                               B: drops A's, creates its own
//
// It is outbid: locks are numbered, a taker creates the next number, which one
// of many can, and only the holder drops what is older. Numbers free up again,
// so a taker that was slow may create one below the holder's; therefore whoever
// has created a lock looks once more, and holds it only if no other is fresh. Of
// two that create and then look, the second to look sees the first.
//
// A holder that stops for longer than lockTTL and wakes up may still run a
// statement beside its successor, until it notices at the next renewal. That,
// and a cluster, where each server has locks of its own, is harmless: every
// statement of a migration is safe to run twice.
const (
	lockPrefix = "schema_migrations_lock_"
	lockTTL    = 30 * time.Second
	lockPoll   = 200 * time.Millisecond

	errUnknownTable = 60
	errTableExists  = 57
)

var errLockLost = errors.New("the migration lock was taken over: this process did not renew it in time")

type lock struct {
	number int
	owner  string
	fresh  bool
}

func (l lock) table() string { return lockPrefix + strconv.Itoa(l.number) }

// lock waits for the lock and takes it. The context it returns ends when the
// lock is lost; unlock is to be called whatever happens.
func (r runner) lock(ctx context.Context) (held context.Context, unlock func(), err error) {
	for {
		l, err := r.tryLock(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("take migration lock: %w", err)
		}
		if l.number > 0 {
			held, stop := r.renew(ctx, l)
			return held, func() { stop(); r.drop(ctx, l) }, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("wait for migration lock: %w", ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// tryLock returns a zero lock when somebody else has it.
func (r runner) tryLock(ctx context.Context) (lock, error) {
	locks, err := r.locks(ctx)
	if err != nil {
		return lock{}, err
	}
	host, _ := os.Hostname()
	mine := lock{number: 1, owner: fmt.Sprintf("%s pid %d", host, os.Getpid())}
	for _, l := range locks {
		if l.fresh {
			return lock{}, nil
		}
		mine.number = max(mine.number, l.number+1)
	}
	err = r.Exec(ctx, "CREATE TABLE "+mine.table()+" (x UInt8) ENGINE = Memory COMMENT "+Quote(mine.owner))
	if Code(err) == errTableExists {
		return lock{}, nil
	}
	if err != nil {
		return lock{}, err
	}
	if locks, err = r.locks(ctx); err != nil {
		r.drop(ctx, mine)
		return lock{}, err
	}
	for _, l := range locks {
		if l.fresh && l.number != mine.number {
			r.drop(ctx, mine)
			return lock{}, nil
		}
	}
	for _, l := range locks {
		if l.number != mine.number {
			r.Logger.Warn("migration lock left behind, taking over", "owner", l.owner)
			r.drop(ctx, l)
		}
	}
	return mine, nil
}

// locks lists the locks there are.
func (r runner) locks(ctx context.Context) ([]lock, error) {
	rows, err := r.Strings(ctx, fmt.Sprintf(`SELECT concat(substring(name, %d), ' ', toString(metadata_modification_time >= now() - %d), ' ', comment)
		FROM system.tables WHERE database = currentDatabase() AND startsWith(name, %s)`, len(lockPrefix)+1, int(r.ttl().Seconds()), Quote(lockPrefix)))
	if err != nil {
		return nil, err
	}
	var out []lock
	for _, row := range rows {
		number, rest, _ := strings.Cut(row, " ")
		fresh, owner, _ := strings.Cut(rest, " ")
		n, err := strconv.Atoi(number)
		if err != nil {
			return nil, fmt.Errorf("table %s%s is no migration lock", lockPrefix, number)
		}
		out = append(out, lock{n, owner, fresh == "1"})
	}
	return out, nil
}

// renew keeps l fresh until stop is called.
func (r runner) renew(ctx context.Context, l lock) (held context.Context, stop func()) {
	held, lose := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(r.ttl() / 3)
		defer tick.Stop()
		for {
			select {
			case <-held.Done():
				return
			case <-tick.C:
			}
			err := r.Exec(held, "ALTER TABLE "+l.table()+" MODIFY COMMENT "+Quote(l.owner))
			if Code(err) == errUnknownTable {
				lose(errLockLost)
			} else if err != nil && held.Err() == nil {
				r.Logger.Warn("migration lock not renewed", "err", err)
			}
		}
	}()
	return held, func() { lose(nil); <-ended }
}

func (r runner) drop(ctx context.Context, l lock) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := r.Exec(ctx, "DROP TABLE IF EXISTS "+l.table()); err != nil {
		r.Logger.Warn("migration lock not dropped", "err", err)
	}
}

func (r runner) ttl() time.Duration { return cmp.Or(r.lockTTL, lockTTL) }
