package sink

import (
	"testing"
	"testing/synctest"
)

// TestRoomWaitsForPlans has records that may not be taken before the plans of their
// partition are recovered: nothing goes on until the flight that recovers one has landed.
func TestRoomWaitsForPlans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &partition{asked: true, open: plans{{1, 10, 19}}}
		s := &session{
			Sink: New(Config{FlushRows: 10, FlushBytes: 1 << 20, Inserts: 2}), ctx: t.Context(),
			partitions: map[int32]*partition{p.id: p}, filling: newFlight(newBlock()), polled: []polled{{of: p}},
		}
		f := newFlight(newBlock())
		f.recover = true
		if !s.runway.admit(f, s.cfg.Inserts) {
			t.Fatal("not admitted")
		}
		done := make(chan struct{})
		go func() {
			s.room(t.Context())
			close(done)
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Error("it goes on while the plan is recovered")
		default:
		}
		s.runway.leave(f)
		close(f.landed)
		<-done
	})
}
