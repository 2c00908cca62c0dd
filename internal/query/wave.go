package query

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// waves let requests that ask for the same share an answer. While one query of a
// request is on its way, all who ask for the same wait for the next one: so nobody
// gets an answer that was begun before the question, and screens that show the same
// cost one short query after the other however many they are.
//
// The next one waits for its turn no longer than waveTurn. Sharing pays for short
// queries; a long one, or one that hangs, keeps nobody, and four a second may begin.
type waves struct {
	mu   sync.Mutex
	last map[Request]*wave // the newest of each request that has not ended
}

const waveTurn = 250 * time.Millisecond

// wave is one query and those who wait for it.
type wave struct {
	begun   bool // too late to join; guarded by waves.mu, as is
	waiting int

	ctx    context.Context // ends when nobody waits any more
	cancel context.CancelFunc
	ended  chan struct{}
	result *Result
	err    error
	bug    any // what the query panicked with
}

// do returns the answer of a call to ask that began after do did. The context of
// that call ends when nobody waits for it any more; ctx ends this waiting.
func (w *waves) do(ctx context.Context, r Request, ask func(context.Context) (*Result, error)) (*Result, error) {
	w.mu.Lock()
	v := w.last[r]
	if v == nil || v.begun {
		before := v
		v = &wave{ended: make(chan struct{})}
		v.ctx, v.cancel = context.WithCancel(context.Background())
		if w.last == nil {
			w.last = make(map[Request]*wave)
		}
		w.last[r] = v
		go w.run(r, v, before, ask)
	}
	v.waiting++
	w.mu.Unlock()
	select {
	case <-v.ended:
		if v.bug != nil {
			panic(v.bug) // as if each had asked for itself
		}
		return v.result, v.err
	case <-ctx.Done():
		w.mu.Lock()
		defer w.mu.Unlock()
		if v.waiting--; v.waiting == 0 {
			v.begun = true
			v.cancel()
		}
		return nil, context.Cause(ctx)
	}
}

// run is v's life: its turn, its query, its end.
func (w *waves) run(r Request, v, before *wave, ask func(context.Context) (*Result, error)) {
	if before != nil {
		turn := time.NewTimer(waveTurn)
		select {
		case <-before.ended:
		case <-turn.C:
		case <-v.ctx.Done():
		}
		turn.Stop()
	}
	w.mu.Lock()
	v.begun = true
	w.mu.Unlock()
	if v.err = v.ctx.Err(); v.err == nil {
		v.ask(ask)
	}
	w.mu.Lock()
	if w.last[r] == v {
		delete(w.last, r)
	}
	w.mu.Unlock()
	v.cancel()
	close(v.ended)
}

func (v *wave) ask(ask func(context.Context) (*Result, error)) {
	defer func() {
		if p := recover(); p != nil {
			v.bug = fmt.Sprintf("%v\n%s", p, debug.Stack())
		}
	}()
	v.result, v.err = ask(v.ctx)
}
