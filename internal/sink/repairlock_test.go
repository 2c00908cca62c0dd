package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"edge/internal/chaos"
	"edge/internal/clickhouse"
)

// TestOneRepairAtATime has two sinks want the lock over and over.
func TestOneRepairAtATime(t *testing.T) {
	l := newLab(t, 1)
	var held atomic.Int32
	var done sync.WaitGroup
	for range 3 {
		p := l.prepare()
		t.Cleanup(p.pool.Close)
		session := &session{Sink: p.sink}
		done.Go(func() {
			for range chaos.Rounds(4, 8) {
				lock, err := session.lockRollups(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				if held.Add(1) != 1 {
					t.Error("two sinks hold the lock")
				}
				if _, err := p.pool.Strings(t.Context(), "SELECT version()"); err != nil {
					t.Error(err)
				}
				held.Add(-1)
				lock.unlock()
			}
		})
	}
	done.Wait()
}

// TestALockIsRenewed holds a lock for longer than its lease: it is there whenever
// somebody looks. When the server has ended its queries it is lost, for good.
func TestALockIsRenewed(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	p := l.prepare(func(c *Config) { c.SessionTimeout = 4 * time.Second })
	t.Cleanup(p.pool.Close)
	session := &session{Sink: p.sink}
	lock, err := session.lockRollups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.unlock()
	seen := map[any]bool{}
	eventually(t, "a lease is over", func() error {
		if holders, err := session.locks(t.Context()); err != nil || !slices.Equal(holders, []string{lock.holder}) || lock.ctx.Err() != nil {
			t.Fatalf("locks of %q, %v; want one of %s", holders, err, lock.holder)
		}
		if seen[lock.mark.Load()] = true; len(seen) < 7 { // at most four begin in a lease
			return fmt.Errorf("%d queries", len(seen))
		}
		return nil
	})
	mark := lock.mark.Load().(string)
	eventually(t, "the holder hears that its queries were ended", func() error {
		l.exec("KILL QUERY WHERE " + repairing + " SYNC") // a new one may have come meanwhile
		if lock.ctx.Err() == nil {
			return fmt.Errorf("it is at %s", lock.mark.Load())
		}
		return nil
	})
	if err := context.Cause(lock.ctx); !errors.Is(err, errLockLost) {
		t.Errorf("it ended with %v; want %v", err, errLockLost)
	}
	if s, err := session.sleep(t.Context(), lock.holder+"/next", running(mark), time.Minute); err == nil {
		s.wake()
		t.Error("a lock that was lost was renewed")
	} else if clickhouse.Code(err) != int(proto.ErrFunctionThrowIfValueIsNonZero) {
		t.Errorf("a lock that was lost was not renewed because of %v", err)
	}
}

// TestACorrectionNeedsTheLock inserts a difference under a lock, and not when it is gone.
func TestACorrectionNeedsTheLock(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	p := l.prepare()
	t.Cleanup(p.pool.Close)
	s := &session{Sink: p.sink, source: source{}}
	lock, err := s.lockRollups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := p.pool.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = conn.Do(t.Context(), ch.Query{Body: "CREATE TEMPORARY TABLE difference ENGINE = Memory AS SELECT toDateTime('2024-01-01 00:00:00', 'UTC') AS cell, 'view' AS event_name, 'web' AS ch, toInt64(7) AS n"})
	if err != nil {
		t.Fatal(err)
	}
	r := &repair{s, newFlight(newBlock()), conn, lock}
	minutes := step{rollup: "events_1m", key: "m, event_name, channel", cell: "cell, event_name, ch"}
	count := func(want string) {
		t.Helper()
		if got := l.value("SELECT toString(sum(n)) FROM events_1m"); got != want {
			t.Errorf("the rollup has %s; want %s", got, want)
		}
	}
	if err := r.correct(t.Context(), minutes); err != nil {
		t.Fatal(err)
	}
	count("7")
	lock.unlock()
	eventually(t, "the server has noticed", func() error {
		if holders, err := s.locks(t.Context()); err != nil || len(holders) > 0 {
			return fmt.Errorf("locks of %q, %w", holders, err)
		}
		return nil
	})
	if err := r.correct(t.Context(), minutes); err == nil {
		t.Error("a correction was inserted without a lock")
	}
	count("7")
}

// TestInsertsYieldToARepair holds the lock of a repair while records come: soon inserts
// stop, and only look until it is gone.
func TestInsertsYieldToARepair(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	lock := l.lockRollups()
	s := l.prepare()
	var looks atomic.Int32 // since the last insert
	s.click.watch = func(_ *wireConn, p []byte, sent bool) {
		switch {
		case sent && bytes.Contains(p, []byte("INSERT INTO")):
			looks.Store(0)
		case sent && bytes.Contains(p, []byte(repairMark)):
			looks.Add(1)
		}
	}
	s.run()
	eventually(t, "inserts wait for the repair", func() error {
		l.produce(1)
		if n := looks.Load(); n < 3 {
			return fmt.Errorf("%d looks since the last insert", n)
		}
		return nil
	})
	if n := s.sink.stats.retried.Load(); n != 0 {
		t.Errorf("%d inserts failed; want none, only waiting ones", n)
	}
	lock.unlock()
	l.settled()
	l.exact()
}
