package server

import (
	"sync/atomic"
	"time"
)

// bucket limits the events (or the queries) of one key. It is a token bucket kept as one
// instant, as GCRA does: the time at which every event taken so far would have
// been due at the allowed pace. Up to a second ahead of now is the burst.
//
// A request is let in while the key is not past its burst and charged for what
// it holds, which is known only after decoding. So a batch larger than the
// burst passes once and the key waits it out, where a strict bucket would
// refuse it for ever. It is looked at twice: wait, when the header is in, spares
// a body that would be refused; take, when it is decoded, decides. In between
// any number of requests of the key may have had their header in.
type bucket struct {
	interval time.Duration // between two events at the allowed pace
	epoch    time.Time     // due counts from here on the monotonic clock: the wall clock may jump
	due      atomic.Int64  // ns since epoch
}

const burst = time.Second

// newBucket returns a bucket for rate events a second, or nil when rate is 0.
func newBucket(rate int) *bucket {
	if rate == 0 {
		return nil
	}
	return &bucket{interval: time.Second / time.Duration(rate), epoch: time.Now()}
}

// wait returns how long the key has to wait, 0 when it may send now.
func (b *bucket) wait(now time.Time) time.Duration {
	return max(0, time.Duration(b.due.Load())-now.Sub(b.epoch)-burst)
}

// take charges n events, or returns how long the key has to wait before it may
// send them.
func (b *bucket) take(n int, now time.Time) time.Duration {
	cost, at := int64(n)*int64(b.interval), int64(now.Sub(b.epoch))
	for {
		due := b.due.Load()
		if wait := time.Duration(due-at) - burst; wait > 0 {
			return wait
		}
		if b.due.CompareAndSwap(due, max(due, at)+cost) {
			return 0
		}
	}
}

// giveBack undoes a take of n events.
func (b *bucket) giveBack(n int) { b.due.Add(-int64(n) * int64(b.interval)) }
