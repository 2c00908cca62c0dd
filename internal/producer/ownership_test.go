package producer

import (
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A request that was answered 503 lets go of its batch while its records are not
// all copied; requests after it decode into the memory of the pool. If the
// producer did not keep a reference of its own, the broker would get their
// bytes, or the 0xDB of released memory under the race detector. The same goes
// for batches, which are freed and filled again while others are still sent.
func TestTimedOutBatchKeepsItsBytes(t *testing.T) {
	simulate(t, func(c *Config) { c.MaxInflight = 12 }, func(s *sim) {
		first := s.expect(nil, "first") // the topic is known
		release := s.stall()
		defer release()
		var all [][]string
		var late []*request
		for i := range 8 {
			late = append(late, s.request(ids(fmt.Sprint("late-", i), 5)...))
		}
		s.pass(2 * time.Second)
		for _, r := range late {
			r.expect(ErrTimeout)
			all = append(all, r.records)
		}
		// Every batch that the pool has is overwritten now.
		for i := range 20 {
			defer s.batch(ids(fmt.Sprint("scribble-over-it-", i), 20)...).Release()
		}
		release()
		s.pass(5 * time.Second)
		if n := s.p.orphaned.Load(); n != 40 {
			t.Errorf("%d orphans counted; want 40", n)
		}
		after := s.expect(nil, ids("after", 5)...)
		s.wantLog(append(all, first, after)...)
	})
}

// The request gives up at the very moment the promise fires, many times over:
// whoever is second must find the job whole, and nobody may find it twice.
func TestTimeoutMeetsAcknowledgement(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		s.expect(nil, "warm")
		timeouts := 0
		for i := range 50 {
			// The answer is due at the instant of the request's timer.
			s.net.onAnswer(func(net.Conn) { <-time.After(s.p.cfg.AckTimeout) })
			r := s.request(fmt.Sprint("event-", i))
			if <-r.done; r.err != nil {
				r.expect(ErrTimeout)
				timeouts++
			}
			synctest.Wait()
		}
		if n := s.p.orphaned.Load(); n != uint64(timeouts) {
			t.Errorf("%d orphans counted; want %d", n, timeouts)
		}
		if n := len(s.log()); n != 51 {
			t.Errorf("the log has %d records; want 51", n)
		}
		t.Logf("%d of 50 requests gave up first", timeouts)
	})
}
