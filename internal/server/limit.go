package server

import (
	"sync/atomic"
	"time"
)

// bucket limits the events of one key. It is a token bucket kept as one
// instant, as GCRA does: the time at which every event taken so far would have
// been due at the allowed pace. Up to a second ahead of now is the burst.
//
// A request is let in while the key is not past its burst and then charged for
// what it held, which is known only after decoding. So a batch larger than the
// burst passes once and the key waits it out, where a strict bucket would
// refuse it for ever.
type bucket struct {
	interval time.Duration // between two events at the allowed pace
	due      atomic.Int64  // Unix ns
}

const burst = time.Second

// newBuckets returns one bucket per key, or nil when rate is 0.
func newBuckets(n, rate int) []bucket {
	if rate == 0 {
		return nil
	}
	bs := make([]bucket, n)
	for i := range bs {
		bs[i].interval = time.Second / time.Duration(rate)
	}
	return bs
}

// wait returns how long the key has to wait, 0 when it may send now.
func (b *bucket) wait(now time.Time) time.Duration {
	return max(0, time.Duration(b.due.Load()-now.UnixNano())-burst)
}

// charge takes n events.
func (b *bucket) charge(n int, now time.Time) {
	cost := int64(n) * int64(b.interval)
	for {
		due := b.due.Load()
		if b.due.CompareAndSwap(due, max(due, now.UnixNano())+cost) {
			return
		}
	}
}
