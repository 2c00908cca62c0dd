package producer

import (
	"sync/atomic"
	"time"
)

// Waiter is whoever wants to know what became of a batch.
type Waiter interface {
	// Settled is called once, by a shard, which it must not hold up: with nil
	// when the broker has acknowledged every record, else with what Publish would
	// have returned. It reports whether anybody was still waiting.
	Settled(err error) bool
}

// wait is the Waiter of a goroutine that sleeps. The goroutine and the shard
// share it; whoever is second to leave puts it back.
type wait struct {
	p     *Producer
	over  atomic.Bool // set by who is first: the outcome, or the timeout
	refs  atomic.Int32
	done  chan struct{}
	timer *time.Timer
	err   error // read after done
}

func (p *Producer) newWait() *wait {
	w, _ := p.waits.Get().(*wait)
	if w == nil {
		w = &wait{p: p, done: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
		w.timer.Stop()
	}
	w.err = nil
	w.over.Store(false)
	w.refs.Store(2)
	return w
}

// Settled implements Waiter.
func (w *wait) Settled(err error) bool {
	w.err = err
	waiting := w.over.CompareAndSwap(false, true)
	if waiting {
		w.done <- struct{}{}
	}
	w.release()
	return waiting
}

// outcome sleeps until the last record's outcome or the timeout.
func (w *wait) outcome(timeout time.Duration) error {
	defer w.release()
	w.timer.Reset(timeout)
	select {
	case <-w.done:
		w.timer.Stop()
	case <-w.timer.C:
		if w.over.CompareAndSwap(false, true) {
			return ErrTimeout
		}
		<-w.done // the outcome was just first
	}
	return w.err
}

func (w *wait) release() {
	if w.refs.Add(-1) == 0 {
		w.p.waits.Put(w)
	}
}
