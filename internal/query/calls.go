package query

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// calls let requests that ask for the same share an answer, as singleflight does; but
// while one query of a request is on its way, all who ask for the same wait for the next
// one: so nobody gets an answer that was begun before the question, and screens that show
// the same cost one short query after the other however many they are.
//
// The next one waits for its turn no longer than callTurn. Sharing pays for short
// queries; a long one, or one that hangs, keeps nobody, and four a second may begin.
//
// With keep, a request gets the answer of an equal query that began at most keep ago. If
// that query is still running it must have begun at most callTurn ago, so that a query
// that hangs holds nobody up.
type calls struct {
	keep time.Duration // 0: no answer is older than the question

	mu   sync.Mutex
	last map[Request]*call // the newest of each request that has not ended or is kept
	kept int               // bytes of the answers that are kept
}

const callTurn = 250 * time.Millisecond

const (
	maxKept   = 16 << 20 // bytes of kept answers: ten thousand of a few groups
	callBytes = 1 << 10  // of a kept call beside its answer: contexts, timer, channel, its place in the map
)

// call is one query and those who wait for it.
type call struct {
	begun   time.Time // 0: not yet; guarded by calls.mu, as are
	closed  bool      // nobody may join any more
	kept    bool      // its answer is there
	waiting int

	ctx    context.Context // ends when nobody waits any more
	cancel context.CancelFunc
	ended  chan struct{}
	result *Result
	err    error
	bug    any // what the query panicked with
}

// do returns the answer of a call to ask that began after do did, or at most keep
// before. The context of that call ends when nobody waits for it any more; ctx ends
// this waiting.
func (cs *calls) do(ctx context.Context, r Request, ask func(context.Context) (*Result, error)) (*Result, error) {
	cs.mu.Lock()
	c := cs.last[r]
	if !cs.joinable(c) {
		before := c
		c = &call{ended: make(chan struct{})}
		c.ctx, c.cancel = context.WithCancel(context.Background())
		if cs.last == nil {
			cs.last = make(map[Request]*call)
		}
		cs.last[r] = c
		go cs.run(r, c, before, ask)
	}
	c.waiting++
	cs.mu.Unlock()
	select {
	case <-c.ended:
		if c.bug != nil {
			panic(c.bug) // as if each had asked for itself
		}
		return c.result, c.err
	case <-ctx.Done():
		cs.mu.Lock()
		defer cs.mu.Unlock()
		if c.waiting--; c.waiting == 0 {
			c.closed = true
			c.cancel()
		}
		return nil, context.Cause(ctx)
	}
}

// joinable tells whether c's answer will do for who asks now. Callers hold mu.
func (cs *calls) joinable(c *call) bool {
	switch {
	case c == nil || c.closed:
		return false
	case c.begun.IsZero():
		return true
	case c.kept:
		return time.Since(c.begun) < cs.keep
	}
	return time.Since(c.begun) < min(cs.keep, callTurn)
}

// run is c's life: its turn, its query, its end.
func (cs *calls) run(r Request, c, before *call, ask func(context.Context) (*Result, error)) {
	if before != nil {
		turn := time.NewTimer(callTurn)
		select {
		case <-before.ended:
		case <-turn.C:
		case <-c.ctx.Done():
		}
		turn.Stop()
	}
	cs.mu.Lock()
	c.begun = time.Now()
	cs.mu.Unlock()
	if c.err = c.ctx.Err(); c.err == nil {
		c.ask(ask)
	}
	cs.mu.Lock()
	cs.end(r, c)
	cs.mu.Unlock()
	c.cancel()
	close(c.ended)
}

// end keeps c's answer for as long as it will do for somebody. Callers hold mu.
func (cs *calls) end(r Request, c *call) {
	forget := func() {
		c.closed = true
		if cs.last[r] == c {
			delete(cs.last, r)
		}
	}
	left := cs.keep - time.Since(c.begun)
	if c.closed || cs.last[r] != c || c.result == nil || c.err != nil || left <= 0 {
		forget()
		return
	}
	size := callBytes + c.result.bytes()
	if cs.kept+size > maxKept {
		forget()
		return
	}
	c.kept = true
	cs.kept += size
	time.AfterFunc(left, func() {
		cs.mu.Lock()
		defer cs.mu.Unlock()
		cs.kept -= size
		forget()
	})
}

func (c *call) ask(ask func(context.Context) (*Result, error)) {
	defer func() {
		if p := recover(); p != nil {
			c.bug = fmt.Sprintf("%v\n%s", p, debug.Stack())
		}
	}()
	c.result, c.err = ask(c.ctx)
}
