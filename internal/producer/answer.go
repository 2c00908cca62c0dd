package producer

import (
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/kafka"
)

// How answers reach a shard, and what it makes of them.

// maxAnsweredPause is the longest pause after an answer, of which several fit in
// the time that a request waits.
const maxAnsweredPause = 400 * time.Millisecond

// answered hands r back to the loop.
func (s *shard) answered(r *produce) {
	s.mu.Lock()
	s.replies = append(s.replies, r)
	s.mu.Unlock()
	s.nudge()
}

func (s *shard) identified(who identity) {
	s.mu.Lock()
	s.who = who
	s.mu.Unlock()
	s.nudge()
}

// collect settles what has been answered.
func (s *shard) collect() {
	s.mu.Lock()
	s.answers, s.replies = s.replies, s.answers[:0]
	who := s.who
	s.mu.Unlock()
	if who != nobody {
		s.adopt(who)
	}
	for i, r := range s.answers {
		s.answers[i] = nil
		s.flights--
		delete(s.busy, r.leader)
		s.read(r)
	}
}

// adopt gives the identity to every partition that has none. Partitions may
// share one: numbers are counted by partition.
func (s *shard) adopt(who identity) {
	used := false
	for i := range s.parts {
		if pt := &s.parts[i]; pt.who == nobody && pt.flight == nil {
			pt.who, pt.sequence, used = who, 0, true
		}
	}
	if !used {
		return // the next that needs one
	}
	s.mu.Lock()
	s.who = nobody
	s.mu.Unlock()
	s.fetching = false
}

// read goes through r's answer, partition by partition.
func (s *shard) read(r *produce) {
	sent := r.partitions()
	if r.resp != nil && r.err == nil {
		for i := range r.resp.Topics {
			for k := range r.resp.Topics[i].Partitions {
				answer := &r.resp.Topics[i].Partitions[k]
				if n := int(answer.Partition); n >= 0 && n < len(s.parts) && s.parts[n].flight == r {
					s.conclude(&s.parts[n], answer)
				}
			}
		}
	}
	for i := range sent { // those the answer is silent about, or all
		if pt := &s.parts[sent[i].Partition]; pt.flight == r {
			pt.flight = nil
			b := pt.queue[0]
			b.unsure = b.unsure || r.written.Load()
			s.retry(pt, r)
		}
	}
	if !s.giveUp.Load() { // see settle
		s.spare = append(s.spare, r)
	}
}

// conclude acts on the broker's answer to pt's first batch.
func (s *shard) conclude(pt *partition, answer *kmsg.ProduceResponseTopicPartition) {
	r, b := pt.flight, pt.queue[0]
	pt.flight = nil
	fate, err := pt.judge(b, answer)
	if fate != lost { // which is counted with its batch
		s.p.cfg.Kafka.Errors.Count("produce", err)
	}
	switch fate {
	case done:
		pt.sequence += int32(b.records)
		pt.tries = 0
		s.settle(pt.take(0), nil)
		if pt.sequence >= lastSequence {
			pt.forget()
		}
	case again:
		// A leader that has moved is found at the second try. After that the requests of the
		// batch time out, and nothing else says why.
		if pt.tries > 0 {
			s.p.cfg.Kafka.Logger.Warn("the broker does not take a batch, which is sent again", "topic", s.p.cfg.Topic, "partition", pt.index, "err", err)
		}
		s.retry(pt, r)
	case anew:
		if pt.sequence > 0 && answer.LogStartOffset <= pt.acked { // else retention took all we wrote
			s.p.cfg.Kafka.Logger.Error("broker has forgotten this producer, records that it acknowledged may be lost; sending goes on under a new producer id", "topic", s.p.cfg.Topic, "partition", pt.index, "err", err)
			s.p.cfg.Kafka.Errors.Count("produce", errors.New("data loss"))
		}
		pt.forget()
		b.stamp = nobody
		b.renewed++
	case lost:
		s.drop(pt, 0, err)
	}
}

// retry has the first batch of pt sent again in a while, or at once when its
// partition has another leader by then.
func (s *shard) retry(pt *partition, r *produce) {
	if r.topics != s.view.topics {
		s.drop(pt, 0, kerr.UnknownTopicID)
		return
	}
	pt.tries++
	pt.tried = r.leader
	pause := kafka.Backoff(pt.tries)
	if r.err == nil { // the broker is there, it only cannot yet
		pause = min(pause, maxAnsweredPause)
	}
	pt.retryAt = s.now.Add(pause)
	s.p.metadata.refresh()
}

// settle gives b and the requests of its records their outcome.
func (s *shard) settle(b *batch, err error) {
	if err != nil {
		s.failed(b.records, err)
		err = said(err, b.unsure)
	}
	s.records -= b.records
	s.bytes -= b.size
	s.p.inflight.Add(-int64(b.records))
	s.p.buffered.Add(-int64(b.size))
	for _, sh := range b.shares {
		sh.job.settle(sh.n, err, s.now)
	}
	if !s.giveUp.Load() { // else kgo may have returned early, and still read it
		b.free()
	}
}

// failed notes that n records failed. With AckMemory nobody hears of the outcome, and the
// clients go by their 202. The log holds equal lines back with what they say of n, so each
// has the total, too, and the one that says that it is over.
func (s *shard) failed(n int, err error) {
	s.p.cfg.Kafka.Errors.Count("produce", err)
	if s.p.cfg.Ack == AckMemory {
		s.p.lost.Add(int64(n))
		s.p.cfg.Kafka.Logger.Error("events that were accepted are dropped; with ACK=memory their clients are not told", "topic", s.p.cfg.Topic, "events", n, "total", total{&s.p.lost}, "err", err)
	}
}

// total is a number as it is when it is written.
type total struct{ *atomic.Int64 }

func (t total) LogValue() slog.Value { return slog.Int64Value(t.Load()) }

// drop fails pt's batch i.
func (s *shard) drop(pt *partition, i int, err error) {
	b := pt.take(i)
	if b.stamp != nobody {
		pt.forget()
	}
	s.settle(b, err)
}

// dropAll fails all of pt's batches but the one under way.
func (s *shard) dropAll(pt *partition, err error) {
	for keep := pt.inFlight(); keep < len(pt.queue); {
		s.drop(pt, keep, err)
	}
}
