package sink

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// A flight leaves an interval after the one before, but waits to be full when it soon is.
func TestFlightsWaitToBeFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := func(what string, rows, bytes int, behind int64, since, want time.Duration) {
			t.Helper()
			cfg := Config{FlushInterval: 100 * time.Millisecond, FlushRows: 1000, FlushBytes: 4000}
			s := &session{Sink: New(cfg), filling: newFlight(newBlock()), launched: time.Now().Add(-since),
				partitions: map[int32]*partition{0: {next: 7, high: 7 + behind}}}
			s.filling.block.offset = make(proto.ColUInt64, rows)
			s.filling.block.bytes = bytes
			if got := s.due(); got != want {
				t.Errorf("%s: due in %s; want %s", what, got, want)
			}
		}
		f("few rows, at once", 1, 0, 0, 0, 100*time.Millisecond)
		f("few rows, late", 249, 0, 750, 100*time.Millisecond, 0)
		f("full at this rate in four intervals", 250, 0, 0, 100*time.Millisecond, 300*time.Millisecond)
		f("the same in bytes", 100, 1000, 0, 100*time.Millisecond, 300*time.Millisecond)
		f("the insert before took long", 250, 0, 0, 300*time.Millisecond, 0)
		f("it took long, and this fills as fast", 750, 0, 0, 300*time.Millisecond, 100*time.Millisecond)
		f("the rate has fallen", 500, 0, 0, 400*time.Millisecond, 0)
		f("the log has enough", 249, 0, 751, 400*time.Millisecond, 600*time.Millisecond)
		f("the log has enough and does not give it", 249, 0, 751, time.Second, 0)
	})
}

// A flight that would have been full at the rate so far leaves when the burst has ended, and
// not when its patience has.
func TestBurstThatEndedIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{FlushInterval: 100 * time.Millisecond, FlushRows: 1000, FlushBytes: 4000}
		s := &session{Sink: New(cfg), filling: newFlight(newBlock()), launched: time.Now()}
		if got, want := s.nextLook(), 5*time.Second; got != want {
			t.Errorf("nothing is taken: next look in %s; want %s", got, want)
		}
		s.filling.batches[0] = &batch{last: 299}
		s.filling.block.offset = make(proto.ColUInt64, 300)
		for s.due() > 0 {
			<-time.After(s.nextLook())
		}
		if got, want := time.Since(s.launched), 200*time.Millisecond; got != want {
			t.Errorf("it leaves after %s; want %s", got, want)
		}
	})
}
