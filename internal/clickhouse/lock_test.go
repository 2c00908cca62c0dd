package clickhouse

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

func newRunner(t *testing.T, o Options, ttl time.Duration) runner {
	m := options()
	m.lockTTL = ttl
	return runner{open(t, o), m}
}

func TestLockExcludes(t *testing.T) {
	t.Parallel()
	r := newRunner(t, database(t), 0)
	_, unlock, err := r.lock(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockPoll)
	defer cancel()
	if _, _, err := r.lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second holder: %v", err)
	}
	unlock()
	_, unlock, err = r.lock(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if locks, err := r.locks(testContext(t)); err != nil || len(locks) != 0 {
		t.Errorf("left behind: %v, %v", locks, err)
	}
}

// Its owner died: many want it, one gets it.
func TestStaleLockIsTakenOverOnce(t *testing.T) {
	t.Parallel()
	r := newRunner(t, database(t), time.Second)
	exec(t, r.Pool, "CREATE TABLE schema_migrations_lock_3 (x UInt8) ENGINE = Memory COMMENT 'dead'")
	eventually(t, func() bool {
		locks, err := r.locks(testContext(t))
		return err == nil && len(locks) == 1 && !locks[0].fresh
	})
	var (
		wg      sync.WaitGroup
		holding sync.Mutex
		taken   int
	)
	for range 5 {
		wg.Go(func() {
			_, unlock, err := r.lock(testContext(t))
			if err != nil {
				t.Error(err)
				return
			}
			if !holding.TryLock() {
				t.Error("two holders at once")
			} else {
				taken++
				_, _ = r.Strings(testContext(t), "SELECT toString(sleep(0.1))") // hold it for a while
				holding.Unlock()
			}
			unlock()
		})
	}
	wg.Wait()
	if taken != 5 {
		t.Errorf("%d of 5 had the lock", taken)
	}
	if locks, err := r.locks(testContext(t)); err != nil || len(locks) != 0 {
		t.Errorf("left behind: %v, %v", locks, err)
	}
}

// A migration may take longer than a lock lives.
func TestLockIsRenewed(t *testing.T) {
	t.Parallel()
	r := newRunner(t, database(t), time.Second)
	held, unlock, err := r.lock(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	for range 6 {
		_, _ = r.Strings(testContext(t), "SELECT toString(sleep(0.5))")
		locks, err := r.locks(testContext(t))
		if err != nil || len(locks) != 1 || !locks[0].fresh {
			t.Fatalf("got %v, %v", locks, err)
		}
	}
	// Somebody took it over after all: the holder is told.
	exec(t, r.Pool, "DROP TABLE schema_migrations_lock_1")
	select {
	case <-held.Done():
		if !errors.Is(context.Cause(held), errLockLost) {
			t.Errorf("got %v", context.Cause(held))
		}
	case <-testContext(t).Done():
		t.Error("the holder never noticed")
	}
}

// A slow taker creates a number below the holder's.
func TestLockBelowTheHoldersIsGivenUp(t *testing.T) {
	t.Parallel()
	r := newRunner(t, database(t), 0)
	exec(t, r.Pool, "CREATE TABLE schema_migrations_lock_2 (x UInt8) ENGINE = Memory COMMENT 'holder'")
	if l, err := r.tryLock(testContext(t)); err != nil || l.number != 0 {
		t.Errorf("got %v, %v", l, err)
	}
	if locks, err := r.locks(testContext(t)); err != nil || len(locks) != 1 || locks[0].number != 2 {
		t.Errorf("got %v, %v", locks, err)
	}
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	ctx := testContext(t)
	for !f() {
		select {
		case <-ctx.Done():
			t.Fatal("not so after 30 s")
		case <-tick.C:
		}
	}
}
