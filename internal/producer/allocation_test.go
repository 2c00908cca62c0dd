package producer

import (
	"testing"

	"edge/internal/codec"
	"edge/internal/stat"
)

// A request on its way through the producer allocates nothing of its own. The
// test plays kgo: what the real one allocates is not ours to bound.
func TestPublishAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget")
	}
	p := &Producer{seconds: stat.NewHistogram(stat.Seconds)}
	p.cfg.Ack = AckBroker
	p.jobs.New = func() any { return newJob(p) }
	f := func(events int) {
		t.Helper()
		b := batchOf(t, codec.NewPool(codec.Rules{}), ids("event", events)...)
		defer b.Release()
		got := testing.AllocsPerRun(1000, func() {
			j := p.jobs.Get().(*job)
			j.start(b, AckBroker)
			for i := range events {
				j.fill(i)
			}
			for i := range events {
				j.promise(&j.records[i], nil)
			}
			if err := j.wait(1 << 40); err != nil {
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
