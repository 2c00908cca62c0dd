package producer

import (
	"errors"
	"fmt"
	"time"

	"edge/internal/codec"
)

// job is one request on its way through the ring and the shard, which puts it
// back when the last of its records has an outcome.
type job struct {
	p       *Producer
	started time.Time
	waiter  Waiter // nil: nobody waits, and nobody was told otherwise

	// The shard's, from the ring on.
	batch  *codec.Batch // nil once every record is copied
	since  time.Time    // from when on the records count as waiting
	placed int          // records copied
	left   int          // records without an outcome
	failed int
	err    error // the first
}

func (j *job) start(b *codec.Batch, w Waiter) {
	b.Retain()
	j.batch, j.waiter, j.started = b, w, time.Now()
	j.placed, j.left, j.failed, j.err = 0, b.Len(), 0, nil
}

// letGo drops the request's records: each is copied or has its outcome.
func (j *job) letGo() {
	j.p.held.Add(-int64(j.batch.Size()))
	j.batch.Release()
	j.batch = nil
}

// cancel undoes start for a job that no ring took.
func (j *job) cancel() {
	j.letGo()
	j.free()
}

func (j *job) free() {
	j.waiter = nil
	j.p.jobs.Put(j)
}

// settle notes the outcome of n records, with the last of which the request is
// answered.
func (j *job) settle(n int, err error, now time.Time) {
	if err != nil {
		j.failed += n
		if j.err == nil {
			j.err = err
		}
	}
	if j.left -= n; j.left > 0 {
		return
	}
	p, all := j.p, uint64(j.placed)
	p.seconds.Observe(now.Sub(j.started))
	p.failed.Add(uint64(j.failed))
	p.ok.Add(all - uint64(j.failed))
	if j.waiter != nil && !j.waiter.Settled(verdict(j.err)) {
		p.orphaned.Add(all)
	}
	j.free()
}

// verdict tells the broker's word from ours, that there is none: too late, or
// Close. The latter leaves the outcome as open as a timeout does.
func verdict(err error) error {
	if err == nil || errors.Is(err, ErrTimeout) {
		return err
	}
	return fmt.Errorf("the broker refused: %w", err)
}
