package producer

import (
	"errors"
	"fmt"
	"hash/maphash"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// run is the numbers one identity may use in a partition.
type run struct {
	producer  int64
	partition int32
}

// watch has every test check what exactly-once rests on: under an identity,
// numbers follow one another, and those that were sent never stand for other
// bytes.
func (s *sim) watch() {
	seed := maphash.MakeSeed()
	next := map[run]int32{}
	sent := map[run]map[int32]uint64{}
	s.cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		s.cluster.KeepControl()
		for _, rt := range r.(*kmsg.ProduceRequest).Topics {
			for _, rp := range rt.Partitions {
				var b kmsg.RecordBatch
				if err := checkBatch(rp.Records); err != nil {
					s.t.Errorf("partition %d was sent a broken batch: %v", rp.Partition, err)
				}
				if err := b.ReadFrom(rp.Records); err != nil || b.ProducerID < 0 {
					s.t.Errorf("partition %d: producer %d, %v", rp.Partition, b.ProducerID, err)
				}
				k, hash := run{b.ProducerID, rp.Partition}, maphash.Bytes(seed, rp.Records)
				if sent[k] == nil {
					sent[k] = map[int32]uint64{}
					next[k] = b.FirstSequence
				}
				switch was, again := sent[k][b.FirstSequence]; {
				case again && was != hash:
					s.t.Errorf("partition %d: the batch at %d of producer %d was sent again, changed", rp.Partition, b.FirstSequence, b.ProducerID)
				case !again && b.FirstSequence != next[k]:
					s.t.Errorf("partition %d: a batch at %d of producer %d; want %d", rp.Partition, b.FirstSequence, b.ProducerID, next[k])
				case !again:
					next[k] += b.NumRecords
				}
				sent[k][b.FirstSequence] = hash
			}
		}
		return nil, nil, false
	})
}

// The broker does not know the producer any more. The batch is not in its log,
// so it is sent under a new id, once.
func TestBrokerForgetsTheProducer(t *testing.T) {
	f := func(code *kerr.Error) {
		t.Helper()
		simulate(t, nil, func(s *sim) {
			all := [][]string{s.expect(nil, ids("before", 40)...)}
			for i := range 5 {
				forgets := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Partitions: []int32{1}, Err: code, Count: 1})
				all = append(all, s.expect(nil, ids(fmt.Sprint("after-", i), 40)...))
				if forgets.Hits() != 1 {
					t.Errorf("%s: %d batches were forgotten; want 1", code.Message, forgets.Hits())
				}
			}
			always := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: code, Count: -1})
			s.expect(code, "refused")
			always.Remove()
			all = append(all, s.expect(nil, "kept"))
			s.wantLog(all...)
		})
	}
	f(kerr.OutOfOrderSequenceNumber)
	f(kerr.UnknownProducerID)
	f(kerr.InvalidProducerEpoch)
	f(kerr.InvalidProducerIDMapping)
}

// The broker appended the batch, the answer was lost, and then the broker forgot
// the producer: sent under a new id, the records would be in the log twice.
func TestForgottenWithoutAnAnswer(t *testing.T) {
	f := func(appended bool, lose func(*sim)) {
		t.Helper()
		simulate(t, nil, func(s *sim) {
			warm := s.expect(nil, "event")
			s.pass(time.Second) // no other answer is on its way
			lose(s)
			r := s.request("event")
			synctest.Wait()
			s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.OutOfOrderSequenceNumber, Count: 1})
			r.expect(ErrTimeout)
			if errors.Is(r.err, kerr.OutOfOrderSequenceNumber) {
				t.Errorf("the open outcome is given as the broker's refusal: %v", r.err)
			}
			after := s.expect(nil, "event")
			if appended {
				s.wantLog(warm, r.records, after)
			} else {
				s.wantLog(warm, after)
			}
		})
	}
	answer := func(e *kerr.Error) func(*sim) {
		return func(s *sim) { s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: e, Count: 1}) }
	}
	f(true, answer(kerr.RequestTimedOut))
	f(true, func(s *sim) { s.net.onAnswer(func(c net.Conn) { c.Close() }) })
	// Here they do not append; a broker may.
	f(false, answer(kerr.NotLeaderForPartition))
	f(false, answer(kerr.KafkaStorageError))
}

// The broker appended the batch, the answer was lost with the network, and when that is
// back the broker has forgotten the producer without saying so: it takes any number of one
// that it does not know.
func TestForgottenWithoutAWord(t *testing.T) {
	f := func(ack Ack, away time.Duration, acknowledged uint64) {
		t.Helper()
		dir := t.TempDir()
		simulateOn(t, []kfake.Opt{kfake.DataDir(dir)}, func(c *Config) { c.Ack = ack }, func(s *sim) {
			warm := s.expect(nil, ids("warm", 40)...)
			s.pass(time.Second) // no other answer is on its way
			before := s.p.ok.Load()
			s.net.onAnswer(func(net.Conn) { s.net.cut() })
			r := s.request("event")
			r.expect(map[Ack]error{AckBroker: ErrTimeout}[ack])
			s.pass(away)
			s.cluster.Close()
			if away >= 24*time.Hour {
				if err := os.Remove(filepath.Join(dir, "seq_windows.json")); err != nil {
					t.Fatal(err)
				}
			}
			cluster, err := kfake.NewCluster(kfake.NumBrokers(2), kfake.ListenFn(s.net.Listen), kfake.Ports(9092, 9093), kfake.DataDir(dir))
			if err != nil {
				t.Fatal(err)
			}
			defer cluster.Close()
			s.cluster = cluster
			s.net.mend()
			s.pass(time.Minute)
			if n := s.p.ok.Load() - before; n != acknowledged {
				t.Errorf("away for %s: %d records were acknowledged late; want %d", away, n, acknowledged)
			}
			after := s.expect(nil, "after")
			s.pass(time.Second)
			s.wantLog(warm, r.records, after)
		})
	}
	for _, ack := range []Ack{AckBroker, AckMemory} {
		f(ack, 11*time.Hour, 1)
		f(ack, 25*time.Hour, 0)
	}
}

// The broker appended the batch, the answer was lost, and the next is final for its
// attempt only.
func TestRefusedWithoutAnAnswer(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicasAfterAppend, Count: 1})
		r := s.request("event")
		synctest.Wait()
		s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.InvalidRecord, Count: 1})
		r.expect(ErrTimeout)
		s.wantLog(r.records, s.expect(nil, "event"))
	})
}

// A batch so old that the broker no longer has its offset was appended.
func TestDuplicateIsAcknowledged(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.DuplicateSequenceNumber, Count: 1})
		s.expect(nil, "event")
		s.wantLog(s.expect(nil, "event"))
	})
}

// An answer that says nothing about a batch is none.
func TestSilentAnswer(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		all := [][]string{s.expect(nil, "warm")}
		s.cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
			return r.ResponseKind(), nil, true
		})
		all = append(all, s.expect(nil, ids("event", 8)...))
		s.wantLog(all...)
	})
}

func TestNoIdentityForAWhile(t *testing.T) {
	f := func(code *kerr.Error) {
		t.Helper()
		simulate(t, nil, func(s *sim) {
			denied := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: code, Count: -1})
			early := s.request("early")
			s.pass(s.p.cfg.AckTimeout)
			early.expect(ErrTimeout)
			denied.Remove()
			s.pass(3 * time.Second)
			s.wantLog(early.records, s.expect(nil, "event"))
		})
	}
	f(kerr.ClusterAuthorizationFailed)
	f(kerr.CoordinatorLoadInProgress)
}

// Long before the numbers wrap, where brokers differ, they start again.
func TestNumbersStartAgain(t *testing.T) {
	simulate(t, func(c *Config) { c.Shards = 1 }, func(s *sim) {
		all := [][]string{s.expect(nil, ids("warm", 40)...)}
		synctest.Wait()
		// A broker takes any first number of a producer it has not met.
		for i := range s.p.shards[0].parts {
			pt := &s.p.shards[0].parts[i]
			pt.who, pt.sequence = identity{id: 99}, lastSequence-1
		}
		for i := range 3 {
			all = append(all, s.expect(nil, ids(fmt.Sprint("event-", i), 40)...))
		}
		s.wantLog(all...)
		for i := range s.p.shards[0].parts {
			if pt := &s.p.shards[0].parts[i]; pt.who.id == 99 || pt.sequence > 100 {
				t.Errorf("partition %d is still producer %d, at %d", i, pt.who.id, pt.sequence)
			}
		}
	})
}

// What never left is dropped when nobody can be waiting for it any more, what
// may be in the log is not.
func TestLateRecordsAreDropped(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		warm := s.expect(nil, "event")
		release := s.block()
		onTheWire := s.request("event")
		s.pass(time.Second)
		behind := s.request("event")
		s.pass(s.p.patience)
		onTheWire.expect(ErrTimeout)
		behind.expect(ErrTimeout)
		if n := s.p.failed.Load(); n != 1 {
			t.Errorf("%d records were dropped; want the one behind", n)
		}
		release()
		s.pass(time.Minute)
		s.wantLog(warm, onTheWire.records)
		if n := s.p.ok.Load(); n != 2 {
			t.Errorf("%d records were acknowledged; want 2", n)
		}
	})
}

func TestPartitionsAdded(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		all := [][]string{s.expect(nil, ids("before", 80)...)}
		if _, err := kadm.NewClient(s.p.client).CreatePartitions(s.t.Context(), 4, topic); err != nil {
			t.Fatal(err)
		}
		s.pass(maxViewAge + time.Second)
		all = append(all, s.expect(nil, ids("after", 80)...))
		s.wantLog(all...)
		added := 0
		for _, r := range s.log() {
			if r.Partition >= partitions {
				added++
			}
		}
		if added < 20 {
			t.Errorf("%d of 80 records are in the four partitions added to four", added)
		}
	})
}

func TestLinger(t *testing.T) {
	simulate(t, func(c *Config) { c.Linger = 100 * time.Millisecond }, func(s *sim) {
		warm := s.expect(nil, "event")
		started := time.Now()
		first := s.request("event")
		s.pass(60 * time.Millisecond)
		second := s.request("event")
		first.expect(nil)
		second.expect(nil)
		if waited := time.Since(started); waited != s.p.cfg.Linger {
			t.Errorf("answered after %s; want %s", waited, s.p.cfg.Linger)
		}
		s.wantLog(warm, first.records, second.records)
	})
}

// A batch that the broker disowns waits for a new identity, packed as it was sent. What
// comes meanwhile must not get into it: it would stand behind the packed records, and
// no consumer could read past that.
func TestNothingIsAddedToADisownedBatch(t *testing.T) {
	simulateOn(t, []kfake.Opt{kfake.SeedTopics(1, topic)}, func(c *Config) { c.Shards = 1 }, func(s *sim) {
		warm := s.expect(nil, ids("warm", 3)...)
		s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.UnknownProducerID, Count: 1})
		s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.CoordinatorNotAvailable, Count: 1})
		disowned := s.request(ids("disowned", 40)...)
		synctest.Wait()
		later := s.request(ids("later", 1)...)
		disowned.expect(nil)
		later.expect(nil)
		s.wantLog(warm, disowned.records, later.records)
	})
}
