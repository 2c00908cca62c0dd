package sink

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// A lock keeps the repairs of other sinks away. It is a query that sleeps, marked in
// system.processes, and it ends with its connection: no dead sink holds it. One that is
// frozen has its connections still, so the query lives for a lease, and its holder
// replaces it by another under a new mark while it is awake. A lock does not survive a
// gap: the server runs the next query only if it runs the one before, and no mark is
// used twice, so one that it runs stands for all since the lock was taken.
type lock struct {
	holder string          // repairMark and a name of its own
	ctx    context.Context // ends when the lock does
	cancel context.CancelCauseFunc
	ended  chan struct{} // no query of it runs any more
	mark   atomic.Value  // the string under which the query runs that is known to
}

var errLockLost = errors.New("the lock of the repair is gone")

// lockRollups waits until no other sink repairs the rollups of this database
// and keeps others from it until unlock.
//
// A sink shows its lock first and looks for others second, so of two that come
// at once at least one sees the other. The smaller name stays, the greater
// withdraws; a holder does not look any more and is waited for by both.
func (t *session) lockRollups(ctx context.Context) (*lock, error) {
	for try := 0; ; try++ {
		l, err := t.show(ctx)
		if err != nil {
			return nil, err
		}
		held, err := t.alone(l.ctx, l.holder)
		if held && err == nil {
			return l, nil
		}
		l.unlock()
		if err != nil {
			return nil, err
		}
		if err := pause(ctx, min(try, 4)); err != nil {
			return nil, err
		}
	}
}

// unlock ends the lock.
func (l *lock) unlock() {
	l.cancel(nil)
	<-l.ended
}

// alone waits until the lock of holder is the only one; false says that a smaller one
// is there.
func (t *session) alone(ctx context.Context, holder string) (bool, error) {
	for try := 0; ; try++ {
		holders, err := t.locks(ctx)
		if err != nil {
			return false, err
		}
		switch mine := slices.Contains(holders, holder); {
		case mine && len(holders) == 1:
			return true, nil
		case mine && holders[0] != holder:
			return false, nil
		case !mine:
			return false, fmt.Errorf("our lock %s is not among %q", holder, holders)
		}
		if err := pause(ctx, min(try, 3)); err != nil {
			return false, err
		}
	}
}

// locks are the holders of locks, in order.
func (t *session) locks(ctx context.Context) ([]string, error) {
	marks, err := t.cfg.ClickHouse.Strings(ctx, "SELECT Settings['log_comment'] AS s FROM system.processes WHERE "+repairing)
	for i, mark := range marks {
		name, _, _ := strings.Cut(strings.TrimPrefix(mark, repairMark), "/")
		marks[i] = repairMark + name
	}
	slices.Sort(marks)
	return slices.Compact(marks), err
}

// show begins a lock, and keeps it up until it is unlocked or cannot be.
func (t *session) show(ctx context.Context) (*lock, error) {
	l := &lock{holder: repairMark + rand.Text(), ended: make(chan struct{})}
	first, err := t.sleep(ctx, l.holder+"/0", "1", t.cfg.InsertTimeout)
	if err != nil {
		return nil, err
	}
	l.mark.Store(first.mark)
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	go t.renew(l, first)
	return l, nil
}

// renew replaces the query of l, which is now, before its lease is over. The one before
// stays until the next time, for a correction that was told its mark.
func (t *session) renew(l *lock, now *sleeper) {
	defer close(l.ended)
	var before *sleeper
	defer func() { before.wake(); now.wake() }()
	for n := 1; ; n++ {
		left := time.Until(now.since.Add(lease(t.cfg.SessionTimeout)))
		select {
		case <-l.ctx.Done():
			return
		case <-now.over:
			l.cancel(errLockLost)
			return
		case <-time.After(left): // should the server not have said so
			l.cancel(errLockLost)
			return
		case <-now.due:
		}
		next, err := t.sleep(l.ctx, l.holder+"/"+strconv.Itoa(n), running(now.mark), left/2)
		if err != nil {
			now.due = time.After(lease(t.cfg.SessionTimeout) / 50)
			continue
		}
		l.mark.Store(next.mark)
		before.wake()
		before, now = now, next
	}
}

// running is the condition that the server runs the query of mark.
func running(mark string) string {
	return "(SELECT count() FROM system.processes WHERE Settings['log_comment'] = '" + mark + "') > 0"
}

// sleeper is a query that does nothing but be seen.
type sleeper struct {
	mark   string
	since  time.Time        // before the server had it
	due    <-chan time.Time // when to replace it
	conn   *ch.Client
	cancel context.CancelFunc
	over   chan struct{} // it has ended
	err    error         // of which, then
}

// wake ends it. Closing is what the server notices first; a cancelled ch-go may read on
// for a second.
func (s *sleeper) wake() {
	if s == nil {
		return
	}
	_ = s.conn.Close()
	s.cancel()
	<-s.over
}

// sleep returns a query that the server runs under mark, for a lease, unless that takes
// longer than limit. If condition does not hold, the query is seen for a moment and fails.
func (t *session) sleep(ctx context.Context, mark, condition string, limit time.Duration) (*sleeper, error) {
	life := lease(t.cfg.SessionTimeout)
	beginning, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := t.cfg.ClickHouse.Dial(beginning)
	if err != nil {
		return nil, err
	}
	s := &sleeper{mark: mark, since: time.Now(), due: time.After(life / 4), conn: conn, over: make(chan struct{})}
	asleep, cancel := context.WithCancel(ctx)
	s.cancel = cancel
	began := make(chan struct{})
	begin := sync.OnceFunc(func() { close(began) })
	go func() {
		defer close(s.over)
		var row proto.ColUInt8
		// A dead connection ends it, too.
		s.err = conn.Do(asleep, ch.Query{
			Body:   "SELECT sleepEachRow(0.1) AS row FROM numbers(1000000) WHERE throwIf(NOT (" + condition + ")) = 0",
			Result: proto.Results{{Name: "row", Data: &row}},
			OnResult: func(_ context.Context, b proto.Block) error {
				if b.Rows > 0 {
					begin()
				}
				return nil
			},
			Settings: []ch.Setting{
				{Key: "log_comment", Value: mark, Important: true},
				{Key: "max_block_size", Value: "1", Important: true},
				{Key: "max_threads", Value: "1", Important: true},
				{Key: "max_execution_time", Value: strconv.Itoa(int(life.Seconds())), Important: true},
			},
		})
	}()
	select {
	case <-began:
		return s, nil
	case <-s.over:
		err = cmp.Or(s.err, errLockLost)
	case <-beginning.Done():
		err = beginning.Err()
	}
	s.wake()
	return nil, err
}

// lease is how long a lock outlives its holder, in whole seconds: as long as the group
// waits for a silent sink, but no longer than half a minute.
func lease(session time.Duration) time.Duration {
	return min(max(session.Truncate(time.Second), time.Second), 30*time.Second)
}

// lookout is the look for repairs of other sinks.
type lookout struct {
	mu     sync.Mutex
	looked time.Time
	answer <-chan bool // brings whether there are any; nil when nobody looks
}

// lookForRepairs begins to look, once a second, whether another sink repairs rollups.
// The answer is for an insert that begins when it is there: nothing waits for it.
func (t *session) lookForRepairs() {
	t.lookout.mu.Lock()
	defer t.lookout.mu.Unlock()
	if t.lookout.answer != nil || time.Since(t.lookout.looked) < time.Second {
		return
	}
	t.lookout.looked = time.Now()
	answer := make(chan bool, 1)
	t.lookout.answer = answer
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

// seen tells whether a look that has ended saw a repair.
func (l *lookout) seen() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case others := <-l.answer:
		l.answer = nil
		return others
	default:
		return false
	}
}

// close waits for the look under way.
func (l *lookout) close() {
	if l.answer != nil {
		<-l.answer
	}
}

// yieldToRepair lets a repair of another sink go first if a look has seen one, and
// waits no longer than an insert may take: what the repair gains is time, what it does
// is right anyway.
func (t *session) yieldToRepair(ctx context.Context) {
	if !t.lookout.seen() {
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
