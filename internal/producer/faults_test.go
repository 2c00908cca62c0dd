package producer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Whatever happens in whatever order: what was acknowledged is in the log, what
// the broker refused is not, and nothing is in it twice.
func TestFaultsInAnyOrder(t *testing.T) {
	acked, refused, open := 0, 0, 0
	for seed := range uint64(40) {
		simulate(t, func(c *Config) { c.MaxInflight = 40 }, func(s *sim) {
			random := rand.New(rand.NewPCG(seed, 1))
			requests := s.ordeal(random)
			s.pass(time.Minute)
			s.expect(nil, "after")
			times := map[string]int{}
			for _, r := range s.log() {
				if times[string(r.Value)]++; times[string(r.Value)] > 1 {
					t.Errorf("seed %d: twice in the log: %s", seed, r.Value)
				}
			}
			for _, r := range requests {
				<-r.done
				var code *kerr.Error
				switch {
				case r.err == nil:
					acked++
				case errors.Is(r.err, ErrTimeout), errors.Is(r.err, ErrFull):
					open++
					continue
				case errors.As(r.err, &code):
					refused++
				default:
					t.Errorf("seed %d: %v", seed, r.err)
				}
				in := 0
				for _, v := range r.records {
					in += times[v]
				}
				if r.err == nil && in != len(r.records) {
					t.Errorf("seed %d: acknowledged, and %d of %d records are in the log", seed, in, len(r.records))
				}
				if r.err != nil && in == len(r.records) {
					t.Errorf("seed %d: refused with %v, and all %d records are in the log", seed, r.err, in)
				}
			}
		})
	}
	if acked == 0 || refused == 0 || open == 0 {
		t.Errorf("%d requests were acknowledged, %d refused, %d open: this proves nothing", acked, refused, open)
	}
	t.Logf("%d requests were acknowledged, %d refused, %d open", acked, refused, open)
}

// ordeal sends requests while things go wrong, and mends everything at the end.
func (s *sim) ordeal(random *rand.Rand) (requests []*request) {
	codes := []*kerr.Error{
		kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend, // appended all the same
		kerr.NotLeaderForPartition, kerr.LeaderNotAvailable, kerr.KafkaStorageError, kerr.UnknownTopicOrPartition,
		kerr.OutOfOrderSequenceNumber, kerr.UnknownProducerID, kerr.InvalidProducerEpoch,
		kerr.UnknownServerError, kerr.InvalidRecord,
	}
	var faults []*kfake.FaultHandle
	defer func() {
		for _, f := range faults {
			f.Remove()
		}
		s.net.mend()
	}()
	for step := range 60 {
		switch random.IntN(10) {
		case 0, 1:
			faults = append(faults, s.cluster.Fault(kfake.Fault{
				Keys: []kmsg.Key{kmsg.Produce}, Partitions: []int32{random.Int32N(partitions)},
				Err: codes[random.IntN(len(codes))], Count: 1 + random.IntN(3),
			}))
		case 2:
			s.net.onAnswer(func(c net.Conn) { c.Close() })
		case 3:
			s.net.cut()
			time.AfterFunc(time.Duration(random.IntN(3000))*time.Millisecond, s.net.mend)
		case 4:
			p := random.Int32N(partitions)
			if err := s.cluster.MoveTopicPartition(topic, p, 1-s.cluster.LeaderFor(topic, p)); err != nil {
				s.t.Error(err)
			}
		case 5:
			faults = append(faults, s.cluster.Fault(kfake.Fault{
				Keys: []kmsg.Key{kmsg.InitProducerID, kmsg.Metadata}, Err: kerr.BrokerNotAvailable, Count: 1,
			}))
		default:
			requests = append(requests, s.request(ids(fmt.Sprint("step-", step), 1+random.IntN(12))...))
		}
		s.pass(time.Duration(random.IntN(400)) * time.Millisecond)
	}
	return requests
}
