package producer

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/kafka"
)

func ids(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(prefix, "-", i)
	}
	return out
}

func TestAcknowledgedRecordsAreInTheLog(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		one := s.expect(nil, "a")
		many := s.expect(nil, ids("bulk", 250)...) // more than MaxInflight
		s.wantLog(one, many)
		if ok := s.p.ok.Load(); ok != 251 {
			t.Errorf("%d records counted as acknowledged; want 251", ok)
		}
	})
}

func TestEmptyBatchIsPublishedAtOnce(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		b := s.pool.Get()
		if err := s.p.Publish(b); err != nil {
			t.Error(err)
		}
	})
}

func TestSameEventIDSamePartition(t *testing.T) {
	simulate(t, func(c *Config) { c.MaxInflight = 1000 }, func(s *sim) {
		const events, copies = 400, 3
		for range copies {
			s.expect(nil, ids("event", events)...)
		}
		perPartition := [partitions]int{}
		home := map[string]int32{}
		for _, r := range s.log() {
			perPartition[r.Partition]++
			if p, ok := home[string(r.Value)]; ok && p != r.Partition {
				t.Errorf("%s is in partitions %d and %d", r.Value, p, r.Partition)
			}
			home[string(r.Value)] = r.Partition
		}
		if len(home) != events {
			t.Errorf("%d distinct records; want %d", len(home), events)
		}
		// The ids are fixed and so is the hash: no chance in here.
		for p, n := range perPartition {
			if n < copies*events/partitions*3/4 || n > copies*events/partitions*5/4 {
				t.Errorf("partition %d has %d of %d records", p, n, copies*events)
			}
		}
	})
}

// The topic is not known to the client yet when the first records arrive:
// they are partitioned later, on another path of kgo.
func TestPartitionOfTheFirstRecords(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		first := s.expect(nil, ids("event", 40)...)
		second := s.expect(nil, ids("event", 40)...)
		home := map[string]int32{}
		for _, r := range s.log() {
			if p, ok := home[string(r.Value)]; ok && p != r.Partition {
				t.Errorf("%s is in partitions %d and %d", r.Value, p, r.Partition)
			}
			home[string(r.Value)] = r.Partition
		}
		s.wantLog(first, second)
	})
}

func TestOnlyAssignedIDsCarryTheHeader(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		given := s.expect(nil, "mine")
		made := s.expect(nil, "")
		for _, r := range s.log() {
			switch string(r.Value) {
			case given[0]:
				if len(r.Headers) != 0 {
					t.Errorf("a client's event_id came with headers %v", r.Headers)
				}
			case made[0]:
				if !kafka.HasAssignedID(r) {
					t.Errorf("an assigned event_id came with headers %v", r.Headers)
				}
			}
		}
		s.wantLog(given, made)
	})
}

func TestBrokerErrors(t *testing.T) {
	f := func(code *kerr.Error) {
		t.Helper()
		simulate(t, nil, func(s *sim) {
			refusing := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: code, Count: -1})
			s.expect(code, "refused")
			refusing.Remove()
			kept := s.expect(nil, "kept")
			s.wantLog(kept)
			if ok, failed := s.p.ok.Load(), s.p.failed.Load(); ok != 1 || failed != 1 {
				t.Errorf("%s: counted %d acknowledged and %d refused; want 1 and 1", code.Message, ok, failed)
			}
		})
	}
	f(kerr.MessageTooLarge)
	f(kerr.TopicAuthorizationFailed)
	f(kerr.InvalidRecord)
	f(kerr.UnknownServerError)
}

func TestPartOfABulkIsRefused(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		refusing := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Partitions: []int32{1}, Err: kerr.InvalidRecord, Count: -1})
		records := s.expect(kerr.InvalidRecord, ids("event", 80)...)
		var kept []string
		for _, r := range s.log() {
			if r.Partition == 1 {
				t.Errorf("refused, but in the log: %s", r.Value)
			}
			kept = append(kept, string(r.Value))
		}
		ok, failed := s.p.ok.Load(), s.p.failed.Load()
		if failed == 0 || ok != uint64(len(kept)) || ok+failed != uint64(len(records)) {
			t.Errorf("counted %d acknowledged and %d refused of %d; the log has %d", ok, failed, len(records), len(kept))
		}
		refusing.Remove()
		s.expect(nil, ids("event", 80)...) // the client's retry
	})
}

// A request that no bound could ever hold would be refused for ever.
func TestRequestLargerThanEveryBound(t *testing.T) {
	simulate(t, func(c *Config) { c.Shards, c.RingBytes, c.MaxInflightBytes = 1, 1000, 1000 }, func(s *sim) {
		s.wantLog(s.expect(nil, ids("event", 90)...))
	})
}

func TestFullRingKeepsNothing(t *testing.T) {
	simulate(t, func(c *Config) { c.Shards, c.RingBatches, c.MaxInflight = 1, 4, 10 }, func(s *sim) {
		warm := s.expect(nil, "warm")
		release := s.stall()
		defer release()
		kept := [][]string{warm}
		full := 0
		requests := s.requests(100)
		synctest.Wait()
		for _, r := range requests {
			if r.answered() {
				r.expect(ErrFull)
				full++
			} else {
				kept = append(kept, r.records)
			}
		}
		// kgo has ten, the shard's goroutine one that kgo has no room for, the
		// ring four.
		if got, want := len(requests)-full, 10+1+4; got != want {
			t.Errorf("%d requests were taken; want %d", got, want)
		}
		if n := s.p.shards[0].full.Load(); n != uint64(full) {
			t.Errorf("%d refusals counted; want %d", n, full)
		}
		s.pass(2 * time.Second)
		for _, r := range requests {
			if r.err == nil {
				t.Error("acknowledged by a blocked broker")
			}
		}
		release()
		s.pass(5 * time.Second)
		if n := s.p.orphaned.Load(); n != uint64(len(requests)-full) {
			t.Errorf("%d orphans counted; want %d", n, len(requests)-full)
		}
		s.wantLog(kept...)
	})
}

func TestAckMemoryAnswersAtOnce(t *testing.T) {
	simulate(t, func(c *Config) { c.Ack = AckMemory }, func(s *sim) {
		release := s.block()
		started := time.Now()
		kept := s.expect(nil, ids("event", 5)...)
		if waited := time.Since(started); waited != 0 {
			t.Errorf("waited %s for the broker", waited)
		}
		time.AfterFunc(5*time.Second, release)
		s.close() // drains
		s.wantLog(kept)
		if n := s.p.orphaned.Load(); n != 0 {
			t.Errorf("%d orphans counted although nobody waited", n)
		}
	})
}

// TestAckMemoryRests: with nobody waiting, an event that comes alone leaves at once,
// a stream of them in few requests, and much of it without a rest.
func TestAckMemoryRests(t *testing.T) {
	const leaders = 2
	f := func(title string, ack Ack, least, most int64, load func(*sim)) {
		t.Helper()
		change := func(c *Config) {
			c.Ack, c.Shards, c.RingBatches, c.MaxInflight, c.MaxInflightBytes = ack, 1, 1024, 10_000, 8<<20
		}
		simulate(t, change, func(s *sim) {
			s.expect(nil, "warm")
			s.pass(time.Second)
			var requests atomic.Int64
			s.cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
				s.cluster.KeepControl()
				requests.Add(1)
				return nil, nil, false
			})
			load(s)
			synctest.Wait()
			if n := requests.Load(); n < least || n > most {
				t.Errorf("%s: %d requests; want %d to %d", title, n, least, most)
			}
		})
	}
	stream := func(s *sim) {
		for i := range 100 {
			s.request(fmt.Sprint("event-", i))
			s.pass(time.Millisecond)
		}
		s.pass(rest)
	}
	rests := int64(100*time.Millisecond/rest) + 1
	f("100 events in 100 ms", AckMemory, rests-1, rests*leaders, stream)
	f("the same, waited for", AckBroker, 100, 100, stream)
	f("one alone", AckMemory, 1, 1, func(s *sim) { s.request("alone") })
	f("much at once", AckMemory, 2, 100, func(s *sim) {
		s.request("first")
		synctest.Wait()
		for i := range 3 * restRequests {
			s.request(ids(fmt.Sprint("much-", i), 10)...)
		}
	})
}

// TestFullBatchesDoNotRest: a shard that cannot take more sends what it has, as often
// as its batches are full; events that were answered 202 would be dropped otherwise.
func TestFullBatchesDoNotRest(t *testing.T) {
	simulate(t, func(c *Config) { c.Ack, c.Shards, c.MaxInflight = AckMemory, 1, 100 }, func(s *sim) {
		warm := s.expect(nil, "warm")
		s.pass(time.Second)
		many := s.expect(nil, ids("many", 450)...)
		synctest.Wait()
		if n := s.p.inflight.Load() + s.p.held.Load(); n > 100 {
			t.Errorf("%d records and bytes left at once; want the last batch at most", n)
		}
		s.pass(rest)
		s.settled()
		s.wantLog(warm, many)
	})
}

// TestGiantAmongSmall: a request heavier than the ring is taken, also by a shard that
// rests while small ones gather.
func TestGiantAmongSmall(t *testing.T) {
	const ringBytes = 64 << 10
	change := func(c *Config) {
		c.Ack, c.Shards, c.MaxInflight, c.RingBatches, c.RingBytes = AckMemory, 1, 10_000, 1024, ringBytes
	}
	simulate(t, change, func(s *sim) {
		s.expect(nil, "warm")
		s.pass(time.Second)
		giant := ids(strings.Repeat("x", 800), 110)
		for i := range 100 {
			s.expect(nil, fmt.Sprint("small-", i))
			s.pass(time.Millisecond)
			if i%7 == 0 { // at every phase of the rest
				s.expect(nil, giant...)
			}
		}
	})
}

func TestPublishAfterClose(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		kept := s.expect(nil, "a")
		s.close()
		s.expect(ErrClosed, "b")
		s.wantLog(kept)
	})
}
