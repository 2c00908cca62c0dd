package producer

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/codec"
)

// A request on its way through ring, batches and settlement allocates nothing.
// The test plays the broker: what a round trip allocates is not per record, nor
// ours to bound.
func TestPublishAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget")
	}
	p := newProducer(Config{Shards: 1, RingBatches: 16, RingBytes: 1 << 20, MaxInflight: 1000, MaxInflightBytes: 1 << 20}, nil)
	defer p.cancel()
	s := p.shards[0]
	p.metadata.view.Store(&view{leaders: make([]int32, partitions)})
	s.look()
	f := func(events int) {
		t.Helper()
		b := batchOf(t, codec.NewPool(codec.Rules{}), ids("event", events)...)
		defer b.Release()
		got := testing.AllocsPerRun(1000, func() {
			j := p.jobs.Get().(*job)
			w := p.newWait()
			j.start(b, w)
			p.held.Add(int64(b.Size()))
			if err := s.ring.Push(j, b.Size()); err != nil {
				t.Error(err)
			}
			s.now = j.started
			s.adopt(identity{id: 7})
			s.take()
			r := s.request(0)
			for i := range s.parts {
				if pt := &s.parts[i]; len(pt.queue) > 0 {
					r.add(pt.index, pt.ready(s.now, &s.scratch))
					pt.flight = r
				}
			}
			for _, sent := range r.partitions() {
				s.conclude(&s.parts[sent.Partition], &kmsg.ProduceResponseTopicPartition{})
			}
			s.spare = append(s.spare, r)
			if err := w.outcome(1 << 40); err != nil {
				t.Error(err)
			}
		})
		if got != 0 {
			t.Errorf("%d events: %v allocations; want 0", events, got)
		}
	}
	f(1)
	f(100)
}
