package producer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/kafka"
)

// The broker appended the records and the answer was lost: kgo sends them
// again, and the sequence numbers keep them single.
func TestAcknowledgementIsLost(t *testing.T) {
	f := func(code *kerr.Error) {
		t.Helper()
		simulate(t, nil, func(s *sim) {
			lost := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: code, Count: 5})
			var all [][]string
			for i := range 20 {
				all = append(all, s.expect(nil, ids(fmt.Sprint("event-", i), 3)...))
			}
			if lost.Hits() != 5 {
				t.Errorf("%d acknowledgements were lost; want 5", lost.Hits())
			}
			s.wantLog(all...)
		})
	}
	f(kerr.RequestTimedOut)
	f(kerr.NotEnoughReplicasAfterAppend)
}

func TestConnectionCutBeforeTheAnswer(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		all := [][]string{s.expect(nil, "warm")}
		for i := range 20 {
			s.net.onAnswer(func(c net.Conn) { c.Close() })
			all = append(all, s.expect(nil, ids(fmt.Sprint("event-", i), 8)...))
		}
		s.wantLog(all...)
	})
}

func TestLeaderMoves(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		var all [][]string
		for i := range 20 {
			all = append(all, s.expect(nil, ids(fmt.Sprint("event-", i), 8)...))
			for p := range int32(partitions) {
				to := 1 - s.cluster.LeaderFor(topic, p)
				if err := s.cluster.MoveTopicPartition(topic, p, to); err != nil {
					t.Fatal(err)
				}
			}
		}
		s.wantLog(all...)
	})
}

// An hour without a broker: requests are answered 503 after ACK_TIMEOUT or 429
// at once, memory stays within the bounds, and afterwards everything works
// again with every record accounted for.
//
// While kgo has never heard of the topic it fails records as soon as it fails
// to connect, so nothing fills up and nothing is refused. Afterwards, what
// never left kgo is dropped after the delivery timeout. A record that was
// on the wire may be in the log, so kgo cannot drop it, nor those that queue
// behind it in its partition: they arrive, once, after the outage.
func TestHourWithoutBroker(t *testing.T) {
	f := func(name string, fail func(*sim) (mend func())) {
		t.Helper()
		simulate(t, func(c *Config) {
			c.AckTimeout, c.MaxInflight, c.RingBatches, c.Shards = 10*time.Second, 20, 4, 1
		}, func(s *sim) {
			mend := fail(s)
			defer mend()
			before := s.p.ok.Load()
			taken, refused := s.hour()
			if len(taken) == 0 || refused == 0 && before > 0 {
				t.Errorf("%s: %d requests were taken, %d refused", name, len(taken), refused)
			}
			mend()
			s.pass(time.Minute)
			after := s.expect(nil, "after")
			ok, failed := s.p.ok.Load()-before, s.p.failed.Load()
			if n := 1 + uint64(len(taken)); ok+failed != n {
				t.Errorf("%s: counted %d acknowledged and %d dropped; want %d together", name, ok, failed, n)
			}
			t.Logf("%s: %d requests taken, %d refused, %d records acknowledged late, %d dropped", name, len(taken), refused, ok-1, failed)
			left := map[string]bool{after[0]: true}
			for _, r := range taken {
				left[r] = true
			}
			log := s.log()
			for _, r := range log {
				if strings.Contains(string(r.Value), "before") {
					ok++
				} else if !left[string(r.Value)] {
					t.Errorf("%s: in the log twice, or refused: %s", name, r.Value)
				}
				delete(left, string(r.Value))
			}
			if uint64(len(log)) != ok {
				t.Errorf("%s: the log has %d records; %d were acknowledged", name, len(log), ok)
			}
		})
	}
	f("never reached", func(s *sim) func() { s.net.cut(); return s.net.mend })
	f("gone", func(s *sim) func() { s.expect(nil, "before"); s.net.cut(); return s.net.mend })
	f("silent", func(s *sim) func() { s.expect(nil, "before"); return s.block() })
}

// With AckMemory an hour without a broker costs nothing that was taken: what there is room
// for waits, and more is refused.
func TestHourWithoutBrokerInMemory(t *testing.T) {
	f := func(name string, warm bool, fail func(*sim) (mend func())) {
		t.Helper()
		simulate(t, func(c *Config) { c.Ack = AckMemory }, func(s *sim) {
			var kept [][]string
			if warm {
				kept = append(kept, s.expect(nil, "before"))
				s.pass(time.Second)
			}
			mend := fail(s)
			defer mend()
			refused := 0
			for i := range 360 {
				switch records, err := s.publish(ids(fmt.Sprint("event-", i), 10)...); err {
				case nil:
					kept = append(kept, records)
				case ErrFull:
					refused++
				default:
					t.Fatalf("%s: %v", name, err)
				}
				s.pass(outage / 360)
				s.checkBounds()
			}
			mend()
			s.pass(time.Minute)
			kept = append(kept, s.expect(nil, "after"))
			s.pass(time.Second)
			if len(kept) < 20 || refused == 0 {
				t.Errorf("%s: %d requests were taken, %d refused", name, len(kept), refused)
			}
			s.wantLog(kept...)
		})
	}
	f("never reached", false, func(s *sim) func() { s.net.cut(); return s.net.mend })
	f("gone", true, func(s *sim) func() { s.net.cut(); return s.net.mend })
	f("silent", true, (*sim).block)
	f("cannot", true, (*sim).stall)
}

// What waited for half a day, and is not in the log, can be sent again like anything else.
func TestLongOutageInMemory(t *testing.T) {
	simulate(t, func(c *Config) { c.Ack = AckMemory }, func(s *sim) {
		s.p.metadata.refresh()
		s.pass(time.Second) // no connection for batches yet: none can be on the wire
		s.net.cut()
		kept := s.expect(nil, ids("event", 40)...)
		s.pass(remembered + time.Hour)
		back := time.Now()
		release := s.stall()
		s.net.mend()
		s.pass(10 * time.Second)
		release()
		s.pass(10 * time.Second)
		s.wantLog(kept)
		for _, r := range s.log() {
			if r.Timestamp.Before(back.Add(-time.Hour)) {
				t.Errorf("%s has %s in the log", r.Value, r.Timestamp)
			}
		}
	})
}

// One event a second, and each in a batch of its own would take the memory of hundreds.
func TestTrickleWithoutBrokerInMemory(t *testing.T) {
	simulate(t, func(c *Config) {
		c.Ack, c.Shards, c.MaxInflight, c.MaxInflightBytes = AckMemory, 1, 10_000, 1<<20
	}, func(s *sim) {
		kept := [][]string{s.expect(nil, "before")}
		s.pass(time.Second)
		s.net.cut()
		for i := range 600 {
			kept = append(kept, s.expect(nil, fmt.Sprint("event-", i)))
			s.pass(time.Second + time.Millisecond)
		}
		batches := 0
		parts := s.p.shards[0].parts // the shard sleeps
		for i := range parts {
			batches += len(parts[i].queue)
		}
		if batches == 0 || batches > 2*partitions { // one that may be under way, and one that is filled
			t.Errorf("%d batches have %d bytes", batches, s.p.buffered.Load())
		}
		s.net.mend()
		s.pass(time.Minute)
		s.wantLog(kept...)
	})
}

// hour sends requests during an outage and checks the answers and the
// bounds. It returns the records that were taken and how many were refused.
func (s *sim) hour() (taken []string, refused int) {
	s.t.Helper()
	c := &s.p.cfg
	for tick := range outage / c.AckTimeout {
		var now []*request
		for i := range 6 {
			now = append(now, s.request(fmt.Sprint("request-", tick, "-", i)))
		}
		s.pass(c.AckTimeout)
		for _, r := range now {
			switch {
			case r.answered() && errors.Is(r.err, ErrFull):
				refused++
			case r.answered() && errors.Is(r.err, ErrTimeout):
				taken = append(taken, r.records...)
			default:
				s.t.Fatalf("after ACK_TIMEOUT: answered %t, %v", r.answered(), r.err)
			}
		}
		s.checkBounds()
	}
	return taken, refused
}

func (s *sim) checkBounds() {
	s.t.Helper()
	c := &s.p.cfg
	if n := s.p.inflight.Load(); n > int64(c.MaxInflight) {
		s.t.Fatalf("%d records are in batches; the bound is %d", n, c.MaxInflight)
	}
	if n := s.p.buffered.Load(); n > int64(c.MaxInflightBytes) {
		s.t.Fatalf("%d bytes are in batches; the bound is %d", n, c.MaxInflightBytes)
	}
	for _, shard := range s.p.shards {
		if r := shard.ring; r.Len() > c.RingBatches || r.Bytes() > c.RingBytes {
			s.t.Fatalf("a ring holds %d requests and %d bytes", r.Len(), r.Bytes())
		}
	}
	// Full rings, and as much again that their readers popped and cannot place.
	if n, bound := s.p.held.Load(), 2*int64(c.Shards)*c.RingBytes; n > bound {
		s.t.Fatalf("%d bytes of requests are held; the bound is %d", n, bound)
	}
}

// One partition has no leader for long. Requests that are acknowledged but for
// one record keep all of their bytes, of which kgo counts only that record's.
func TestOneStuckPartitionHoldsBoundedMemory(t *testing.T) {
	small := func(c *Config) {
		c.MaxInflight, c.MaxInflightBytes, c.RingBytes, c.RingBatches = 10_000, 32<<10, 8<<10, 64
	}
	simulate(t, small, func(s *sim) {
		warm := s.expect(nil, "warm")
		stuck := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Partitions: []int32{0}, Err: kerr.NotLeaderForPartition, Count: -1})
		all := [][]string{warm}
		full := 0
		for i := range 120 {
			r := s.request(ids(fmt.Sprint("event-", i), 10)...)
			synctest.Wait()
			if r.answered() && errors.Is(r.err, ErrFull) {
				full++
			} else {
				all = append(all, r.records)
			}
			s.checkBounds()
		}
		if full == 0 {
			t.Error("no request was refused")
		}
		stuck.Remove()
		s.pass(10 * time.Second)
		all = append(all, s.expect(nil, "after"))
		s.wantLog(all...)
		if n := s.p.held.Load(); n != 0 {
			t.Errorf("%d bytes of requests are held when all are settled", n)
		}
	})
}

// Small requests gather in one shard, but those of a partition that is stuck must not use
// it up for the others.
func TestStuckPartitionLeavesOthersAlone(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		s.p.small = smallRequest
		s.expect(nil, "warm")
		stuck := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Partitions: []int32{0}, Err: kerr.NotLeaderForPartition, Count: -1})
		var waiting []*request
		for i := range 240 {
			id := fmt.Sprint("event-", i)
			b := s.batch(id)
			at := kafka.PartitionOf(b.Hash(0), partitions)
			b.Release()
			r := s.request(id)
			synctest.Wait()
			switch {
			case at == 0:
				waiting = append(waiting, r)
			case !r.answered() || r.err != nil:
				t.Fatalf("request %d waits with %d of a stuck partition", i, len(waiting))
			}
		}
		if room := s.p.maxRecords; len(waiting) <= room {
			t.Fatalf("%d requests of the stuck partition, a shard has room for %d", len(waiting), room)
		}
		stuck.Remove()
		for _, r := range waiting {
			r.expect(nil)
		}
	})
}

func TestCloseWithDeadBroker(t *testing.T) {
	f := func(name string, kill func(*sim) (revive func())) {
		t.Helper()
		simulate(t, nil, func(s *sim) {
			defer kill(s)()
			requests := s.requests(100) // beyond every bound: shards are blocked in kgo
			full := 0
			for _, r := range requests {
				if r.answered() {
					r.expect(ErrFull)
					full++
				}
			}
			if full == len(requests) {
				t.Errorf("%s: no request was taken", name)
			}
			ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
			defer cancel()
			started := time.Now()
			if err := s.p.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: close: got %v; want the deadline", name, err)
			}
			if took := time.Since(started); took != time.Second {
				t.Errorf("%s: Close took %s; want its second", name, took)
			}
			s.settled()
			for _, r := range requests {
				if <-r.done; r.err != ErrFull {
					r.expect(ErrTimeout)
				}
			}
		})
	}
	f("never reached", func(s *sim) func() { s.net.cut(); return s.net.mend })
	f("gone", func(s *sim) func() { s.expect(nil, "before"); s.net.cut(); return s.net.mend })
	f("silent", func(s *sim) func() { s.expect(nil, "before"); return s.block() })
}
