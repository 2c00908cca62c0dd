package query

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
)

// waves let requests that ask for the same share an answer. While one query of a
// request is on its way, all who ask for the same wait for the next one, which
// starts when that has ended: so nobody gets an answer that was begun before the
// question, and a dashboard on a thousand screens costs one query at a time.
type waves struct {
	mu   sync.Mutex
	last map[Request]*wave // the newest of each request that has not ended
}

// wave is one query and those who wait for it.
type wave struct {
	begun  bool // too late to join; guarded by waves.mu
	ended  chan struct{}
	result *Result
	err    error
}

// do returns the answer of a call to ask that began after do did. ask may be
// called on behalf of others, so it must not depend on ctx, which ends only the
// waiting.
func (w *waves) do(ctx context.Context, r Request, ask func() (*Result, error)) (*Result, error) {
	w.mu.Lock()
	before := w.last[r]
	if before != nil && !before.begun {
		w.mu.Unlock()
		return before.wait(ctx)
	}
	mine := &wave{ended: make(chan struct{}), begun: before == nil}
	if w.last == nil {
		w.last = make(map[Request]*wave)
	}
	w.last[r] = mine
	w.mu.Unlock()
	go func() {
		if before != nil {
			<-before.ended
			w.mu.Lock()
			mine.begun = true
			w.mu.Unlock()
		}
		mine.run(ask)
		w.mu.Lock()
		if w.last[r] == mine {
			delete(w.last, r)
		}
		w.mu.Unlock()
		close(mine.ended)
	}()
	return mine.wait(ctx)
}

// run asks. A bug ends this query and not the process, as in a handler.
func (v *wave) run(ask func() (*Result, error)) {
	defer func() {
		if p := recover(); p != nil {
			v.err = fmt.Errorf("BUG: %v\n%s", p, debug.Stack())
		}
	}()
	v.result, v.err = ask()
}

func (v *wave) wait(ctx context.Context) (*Result, error) {
	select {
	case <-v.ended:
		return v.result, v.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
