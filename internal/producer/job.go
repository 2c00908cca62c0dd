package producer

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"edge/internal/codec"
)

// outcome of a job, as seen by its two sides.
const (
	pending   int32 = iota
	settled         // every record had its outcome first
	abandoned       // the request gave up first
)

// job is one request on its way through the ring and the shard. It is shared by
// the request that waits and the shard that settles it; whoever is second to
// leave puts it back.
type job struct {
	p       *Producer
	started time.Time
	state   atomic.Int32
	refs    atomic.Int32
	done    chan struct{}
	timer   *time.Timer

	// The shard's, from the ring on; the request reads err after done.
	batch  *codec.Batch // nil once every record is copied
	since  time.Time    // from when on the records count as waiting
	placed int          // records copied
	left   int          // records without an outcome
	failed int
	err    error // the first
}

func newJob(p *Producer) *job {
	j := &job{p: p, done: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
	j.timer.Stop()
	return j
}

func (j *job) start(b *codec.Batch, ack Ack) {
	b.Retain()
	j.batch, j.started = b, time.Now()
	j.placed, j.left, j.failed, j.err = 0, b.Len(), 0, nil
	if ack == AckMemory {
		j.state.Store(abandoned) // nobody waits, and nobody was told otherwise
		j.refs.Store(1)
		return
	}
	j.state.Store(pending)
	j.refs.Store(2)
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
	if j.state.CompareAndSwap(pending, settled) {
		j.done <- struct{}{}
	} else if p.cfg.Ack == AckBroker {
		p.orphaned.Add(all)
	}
	j.release()
}

// wait parks the request until its last record's outcome or the timeout.
func (j *job) wait(timeout time.Duration) error {
	j.timer.Reset(timeout)
	select {
	case <-j.done:
		j.timer.Stop()
	case <-j.timer.C:
		if j.state.CompareAndSwap(pending, abandoned) {
			j.release()
			return ErrTimeout
		}
		<-j.done // the outcome was just first
	}
	err := j.err
	j.release()
	if err != nil {
		return verdict(err)
	}
	return nil
}

// verdict tells the broker's word from ours, that there is none: too late, or
// Close. The latter leaves the outcome as open as a timeout does.
func verdict(err error) error {
	if errors.Is(err, ErrTimeout) {
		return err
	}
	return fmt.Errorf("the broker refused: %w", err)
}

func (j *job) release() {
	if j.refs.Add(-1) == 0 {
		j.p.jobs.Put(j)
	}
}
