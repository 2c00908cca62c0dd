package sink

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// runway has the flights under way, in the order of their offsets. ClickHouse does most
// of an insert on one core, so blocks that are full leave side by side, Config.Inserts
// of them. Only their inserts are: plans are committed one after the other, each with
// those of the flights that are not stored yet, and flights land in their order. So the
// group's offset passes nothing that is not stored, and whoever takes a partition over
// finds every range that may have rows.
//
// A flight that failed recovers alone: after those before it have landed, and those
// behind it have ended their try. Recovery ends the inserts of its partitions, and
// compares tables that nothing else of ours may be writing to. None leaves meanwhile.
type runway struct {
	mu      sync.Mutex
	flights []*flight

	commits sync.Mutex // held from what a commit says to its answer
}

// admit lets f leave unless n are under way or one of them recovers.
func (r *runway) admit(f *flight, n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.flights) >= n || r.recoversLocked() {
		return false
	}
	if last := len(r.flights) - 1; last >= 0 {
		f.ahead = r.flights[last]
	}
	r.flights = append(r.flights, f)
	return true
}

// leave takes f out, which has landed.
func (r *runway) leave(f *flight) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flights = slices.DeleteFunc(r.flights, func(g *flight) bool { return g == f })
}

// first is the oldest flight under way, or nil.
func (r *runway) first() *flight {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.flights) == 0 {
		return nil
	}
	return r.flights[0]
}

// recovers tells whether one of the flights does, or will.
func (r *runway) recovers() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.recoversLocked()
}

func (r *runway) recoversLocked() bool {
	return slices.ContainsFunc(r.flights, func(f *flight) bool { return f.recover })
}

// all are the flights under way.
func (r *runway) all() []*flight {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.flights)
}

// after are those that left after f.
func (r *runway) after(f *flight) []*flight {
	all := r.all()
	return all[slices.Index(all, f)+1:]
}

// turn returns when those before f have landed.
func (r *runway) turn(ctx context.Context, f *flight) error {
	ahead := f.ahead
	f.ahead = nil // or each would keep the one before it
	if ahead == nil {
		return nil
	}
	select {
	case <-ahead.landed:
		return ahead.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fail notes that f has to recover.
func (r *runway) fail(f *flight) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f.recover = true
}

// clear returns when those behind f, which recovers, have ended their try.
func (r *runway) clear(ctx context.Context, f *flight) error {
	for _, g := range r.after(f) {
		select {
		case <-g.tried:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// declare notes that f's plan is committed next, and returns what the commit says.
func (r *runway) declare(f *flight, src uint32) map[int32]commitOffset {
	r.mu.Lock()
	defer r.mu.Unlock()
	f.declared = true
	return r.offsetsLocked(f, src)
}

// pass notes that the group's offsets pass f next, the first that they have not passed,
// and returns what the commit says.
func (r *runway) pass(f *flight, src uint32) map[int32]commitOffset {
	r.mu.Lock()
	defer r.mu.Unlock()
	f.passed = true
	return r.offsetsLocked(f, src)
}

// offsetsLocked are where f's partitions stand: at the first batch that is not passed,
// with the plans from there to the last that is declared. One between is in it whether it
// is declared or not, since no offset may be passed that is not stored; its flight sends
// no row before it has declared it itself.
func (r *runway) offsetsLocked(f *flight, src uint32) map[int32]commitOffset {
	offsets := make(map[int32]commitOffset, len(f.batches))
	for id, own := range f.batches {
		var open plans
		declared := 0
		for _, g := range r.flights {
			b := g.batches[id]
			if b == nil || g.passed {
				continue
			}
			open = append(open, plan{src, b.first, b.last})
			if g.declared {
				declared = len(open)
			}
		}
		if open = append(open[:declared], f.later[id]...); len(open) > 0 {
			offsets[id] = commitOffset{open[0].first, open.String()}
		} else {
			offsets[id] = commitOffset{at: own.last + 1}
		}
	}
	return offsets
}

// launch sends the filling flight off when it is due and there is room on the runway:
// beside others if it is full. Callers hold mu.
func (t *session) launch(now bool) {
	f := t.filling
	if f.empty() || t.ctx.Err() != nil {
		return
	}
	if !f.full(&t.cfg) && (t.runway.first() != nil || !now && t.due() > 0) {
		return
	}
	if t.fly(f) {
		t.filling = newFlight(t.spare())
	}
}

// spare is a block for the next flight. Callers hold mu.
func (t *session) spare() *block {
	n := len(t.spares) - 1
	if n < 0 {
		return newBlock()
	}
	b := t.spares[n]
	t.spares = t.spares[:n]
	return b
}

// fly stores f in a goroutine of its own, if it may leave. Callers hold mu.
func (t *session) fly(f *flight) bool {
	if !t.runway.admit(f, t.cfg.Inserts) {
		return false
	}
	t.launched = time.Now()
	t.resting.flown(f.few() && !f.full(&t.cfg))
	go func() {
		err := t.store(t.ctx, f)
		t.mu.Lock()
		f.err = err
		if err == nil {
			t.state.stored(f, append(t.runway.after(f), t.filling))
		} else {
			t.lost(err)
		}
		t.runway.leave(f)
		if f.block.reset(); len(t.spares) < t.cfg.Inserts {
			t.spares = append(t.spares, f.block)
		}
		t.mu.Unlock()
		close(f.landed)
		t.rouse()
	}()
	return true
}

// rouse ends what run waits for.
func (t *session) rouse() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// flyAlone is fly for recoveries. Callers hold mu and have landed all others.
func (t *session) flyAlone(f *flight) {
	if !t.fly(f) {
		t.lost(fmt.Errorf("BUG: no room on the runway for %s", f.ranges()))
	}
}

// land waits for the flights under way. Callers hold mu, which is free while
// waiting.
func (t *session) land(ctx context.Context) error {
	for f := t.runway.first(); f != nil; f = t.runway.first() {
		if err := t.landed(ctx, f); err != nil {
			return err
		}
	}
	return context.Cause(t.ctx)
}

// landed is land for one flight.
func (t *session) landed(ctx context.Context, f *flight) error {
	t.mu.Unlock()
	defer t.mu.Lock()
	select {
	case <-f.landed:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// drain stores everything taken so far. Callers hold mu.
func (t *session) drain(ctx context.Context) error {
	if err := t.land(ctx); err != nil {
		return err
	}
	t.launch(true)
	return t.land(ctx)
}
