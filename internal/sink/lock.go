package sink

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// lockRollups waits until no other sink repairs the rollups of this database
// and keeps others from it until unlock. lock is its mark in system.processes.
//
// A sink shows its lock first and looks for others second, so of two that come
// at once at least one sees the other. The smaller mark stays, the greater
// withdraws; a holder does not look any more and is waited for by both.
func (t *session) lockRollups(ctx context.Context) (lock string, unlock func(), err error) {
	for try := 0; ; try++ {
		lock = repairMark + rand.Text()
		unlock, err := t.show(ctx, lock)
		if err != nil {
			return "", nil, err
		}
		held, err := t.alone(ctx, lock)
		if held && err == nil {
			return lock, unlock, nil
		}
		unlock()
		if err != nil {
			return "", nil, err
		}
		if err := pause(ctx, min(try, 4)); err != nil {
			return "", nil, err
		}
	}
}

// alone waits until lock is the only one; false says that a smaller one is
// there.
func (t *session) alone(ctx context.Context, lock string) (bool, error) {
	for try := 0; ; try++ {
		locks, err := t.locks(ctx)
		if err != nil {
			return false, err
		}
		switch mine := slices.Contains(locks, lock); {
		case mine && len(locks) == 1:
			return true, nil
		case mine && slices.Min(locks) != lock:
			return false, nil
		case !mine && try > 10:
			return false, fmt.Errorf("our lock %s is not among %q", lock, locks)
		}
		if err := pause(ctx, min(try, 3)); err != nil {
			return false, err
		}
	}
}

func (t *session) locks(ctx context.Context) ([]string, error) {
	return t.cfg.ClickHouse.Strings(ctx, "SELECT Settings['log_comment'] AS s FROM system.processes WHERE "+repairing)
}

// show runs a query that does nothing under the name of lock until unlock.
func (t *session) show(ctx context.Context, lock string) (unlock func(), err error) {
	conn, err := t.cfg.ClickHouse.Dial(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var none proto.ColUInt8
		// It ends when it is cancelled, by a dead connection too. The limit is
		// for a connection whose other end vanished without a word.
		_ = conn.Do(ctx, ch.Query{
			Body:   "SELECT sleepEachRow(0.1) AS none FROM numbers(1000000) WHERE none > 0",
			Result: proto.Results{{Name: "none", Data: &none}},
			OnResult: func(context.Context, proto.Block) error {
				return nil
			},
			Settings: []ch.Setting{
				{Key: "log_comment", Value: lock, Important: true},
				{Key: "max_block_size", Value: "1", Important: true},
				{Key: "max_threads", Value: "1", Important: true},
				{Key: "max_execution_time", Value: fmt.Sprint(int(10 * t.cfg.InsertTimeout.Seconds())), Important: true},
			},
		})
	}()
	// Closing is what the server notices first; a cancelled ch-go may read on
	// for a second.
	return func() { _ = conn.Close(); cancel(); <-done }, nil
}

// lookForRepairs begins to look, once a second, whether another sink repairs rollups.
// The answer is for an insert that begins when it is there: nothing waits for it.
func (t *session) lookForRepairs() {
	if t.looking != nil || time.Since(t.looked) < time.Second {
		return
	}
	t.looked = time.Now()
	answer := make(chan bool, 1)
	t.looking = answer
	go func() {
		ctx, cancel := context.WithTimeout(t.ctx, t.cfg.InsertTimeout)
		defer cancel()
		locks, err := t.locks(ctx)
		if err != nil && t.ctx.Err() == nil {
			t.cfg.Logger.Warn("look for repairs of other sinks", "err", err)
		}
		answer <- len(locks) > 0
	}()
}

// yieldToRepair lets a repair of another sink go first if a look has seen one, and
// waits no longer than an insert may take: what the repair gains is time, what it does
// is right anyway.
func (t *session) yieldToRepair(ctx context.Context) {
	select {
	case others := <-t.looking:
		t.looking = nil
		if !others {
			return
		}
	default:
		return
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.InsertTimeout)
	defer cancel()
	for try := 0; ; try++ {
		locks, err := t.locks(ctx)
		if err != nil || len(locks) == 0 || pause(ctx, min(try, 3)) != nil {
			return // whatever is wrong, the insert meets it as well
		}
	}
}

// oneString runs a query of one String and returns it.
func oneString(ctx context.Context, conn *ch.Client, sql string) (string, error) {
	var col proto.ColStr
	var out string
	err := conn.Do(ctx, ch.Query{
		Body:   sql,
		Result: proto.Results{{Data: &col}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range col.Rows() {
				out = col.Row(i)
			}
			return nil
		},
	})
	return out, err
}
