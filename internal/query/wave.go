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
//
// With keep, a request gets the answer of an equal query that began at most keep ago. If
// that query is still running it must have begun at most waveTurn ago, so that a query
// that hangs holds nobody up.
type waves struct {
	keep time.Duration // 0: no answer is older than the question

	mu   sync.Mutex
	last map[Request]*wave // the newest of each request that has not ended or is kept
	kept int               // bytes of the answers that are kept
}

const waveTurn = 250 * time.Millisecond

const (
	maxKept   = 16 << 20 // bytes of kept answers: ten thousand of a few groups
	waveBytes = 1 << 10  // of a kept wave beside its answer: contexts, timer, channel, its place in the map
)

// wave is one query and those who wait for it.
type wave struct {
	begun   time.Time // 0: not yet; guarded by waves.mu, as are
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
func (w *waves) do(ctx context.Context, r Request, ask func(context.Context) (*Result, error)) (*Result, error) {
	w.mu.Lock()
	v := w.last[r]
	if !w.joinable(v) {
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
			v.closed = true
			v.cancel()
		}
		return nil, context.Cause(ctx)
	}
}

// joinable tells whether v's answer will do for who asks now. Callers hold mu.
func (w *waves) joinable(v *wave) bool {
	switch {
	case v == nil || v.closed:
		return false
	case v.begun.IsZero():
		return true
	case v.kept:
		return time.Since(v.begun) < w.keep
	}
	return time.Since(v.begun) < min(w.keep, waveTurn)
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
	v.begun = time.Now()
	w.mu.Unlock()
	if v.err = v.ctx.Err(); v.err == nil {
		v.ask(ask)
	}
	w.mu.Lock()
	w.end(r, v)
	w.mu.Unlock()
	v.cancel()
	close(v.ended)
}

// end keeps v's answer for as long as it will do for somebody. Callers hold mu.
func (w *waves) end(r Request, v *wave) {
	forget := func() {
		v.closed = true
		if w.last[r] == v {
			delete(w.last, r)
		}
	}
	left := w.keep - time.Since(v.begun)
	if v.closed || w.last[r] != v || v.result == nil || v.err != nil || left <= 0 {
		forget()
		return
	}
	size := waveBytes + v.result.bytes()
	if w.kept+size > maxKept {
		forget()
		return
	}
	v.kept = true
	w.kept += size
	time.AfterFunc(left, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.kept -= size
		forget()
	})
}

func (v *wave) ask(ask func(context.Context) (*Result, error)) {
	defer func() {
		if p := recover(); p != nil {
			v.bug = fmt.Sprintf("%v\n%s", p, debug.Stack())
		}
	}()
	v.result, v.err = ask(v.ctx)
}
