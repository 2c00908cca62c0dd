package producer

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/kafka"
	"edge/internal/ring"
	"edge/internal/stat"
)

// maxRequestBytes bounds a produce request, of which brokers take 100 MiB at
// most. More partitions than fit wait for the next.
const maxRequestBytes = 16 << 20

// maxAnsweredPause is the longest pause after an answer, of which several fit in
// the time that a request waits.
const maxAnsweredPause = 400 * time.Millisecond

// shard is a producer of its own: a ring, the identities, the batches. One
// goroutine owns all of it; answers reach it through a short list. So nothing
// on the way of a record is locked, and the order of everything is the order of
// its loop:
//
//	answers ─▶ settle requests, free batches
//	ring    ─▶ copy records into the batch of their partition
//	batches ─▶ one request to each leader that has none under way
//
// There is at most one request at a leader: what comes meanwhile gathers for
// the next, so batches grow with the load and nobody waits for a timer.
type shard struct {
	p    *Producer
	ring *ring.Ring[*job]
	full stat.Counter
	wake chan struct{} // holds a token when the loop has something to look at

	closing atomic.Bool // the ring is closed
	giveUp  atomic.Bool // what has no outcome gets none

	mu      sync.Mutex
	replies []*produce
	who     identity // fetched, not yet in use

	// The loop's own.
	now      time.Time
	jobs     [64]*job
	next     int // of jobs, the first that is not all placed
	popped   int
	view     *view
	parts    []partition
	first    int            // partition that is asked first, in turn
	busy     map[int32]bool // leaders with a request under way
	open     []*produce     // being filled
	spare    []*produce
	flights  int
	records  int // in batches
	bytes    int
	fetching bool // an identity
	timer    *time.Timer
	due      time.Time // when the timer fires; zero: not set
	answers  []*produce
	scratch  []byte
}

func newShard(p *Producer) *shard {
	s := &shard{
		p: p, ring: ring.New[*job](p.cfg.RingBatches, p.cfg.RingBytes),
		wake: make(chan struct{}, 1), who: nobody, busy: make(map[int32]bool),
	}
	s.timer = time.AfterFunc(time.Hour, s.nudge)
	s.timer.Stop()
	return s
}

// nudge has the loop look around once more.
func (s *shard) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *shard) run() {
	defer s.timer.Stop()
	for {
		s.now = time.Now()
		s.look()
		s.collect()
		s.take()
		if s.giveUp.Load() {
			s.abandon()
		} else {
			s.send()
		}
		if s.drained() && s.next == s.popped && s.records == 0 && s.flights == 0 {
			return
		}
		s.wait()
	}
}

// drained tells that the ring is closed and empty, for good.
func (s *shard) drained() bool { return s.closing.Load() && s.ring.Len() == 0 }

func (s *shard) wait() {
	if s.next < s.popped || s.drained() {
		<-s.wake
		return
	}
	s.ring.Wait(s.wake)
}

// look takes on what is new of the topic.
func (s *shard) look() {
	v := s.p.metadata.view.Load()
	if v == s.view {
		return
	}
	if s.view != nil && v.topics != s.view.topics {
		// Another topic of the same name: what was meant for the old one must
		// not get into its log, where other attempts may have written it.
		for i := range s.parts {
			pt := &s.parts[i]
			s.dropAll(pt, kerr.UnknownTopicID)
			pt.forget()
			pt.acked = 0
		}
	}
	s.view = v
	for len(s.parts) < len(v.leaders) {
		s.parts = append(s.parts, partition{index: int32(len(s.parts)), who: nobody})
	}
}

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
	switch fate {
	case done:
		pt.sequence += int32(b.records)
		pt.tries = 0
		s.settle(pt.take(0), nil)
		if pt.sequence >= lastSequence {
			pt.forget()
		}
	case again:
		s.retry(pt, r)
	case anew:
		if pt.sequence > 0 && answer.LogStartOffset <= pt.acked { // else retention took all we wrote
			s.p.cfg.Kafka.Logger.Error("broker has forgotten what it acknowledged, sequence restarted", "topic", s.p.cfg.Topic, "partition", pt.index, "err", err)
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
	pause := retryAfter(pt.tries)
	if r.err == nil { // the broker is there, it only cannot yet
		pause = min(pause, maxAnsweredPause)
	}
	pt.retryAt = s.now.Add(pause)
	s.p.metadata.refresh()
}

// take moves records from the ring into batches, as many as there is room for.
func (s *shard) take() {
	if s.next == s.popped {
		s.next, s.popped = 0, s.ring.Pop(s.jobs[:])
		for _, j := range s.jobs[:s.popped] {
			j.since = j.started
			if s.p.cfg.Ack == AckMemory { // told that we have it: it gets its time from here on
				j.since = s.now
			}
		}
	}
	for s.next < s.popped {
		j := s.jobs[s.next]
		if !s.place(j) {
			return
		}
		s.jobs[s.next] = nil
		s.next++
	}
}

// place copies j's records into batches and reports whether all are.
func (s *shard) place(j *job) bool {
	late := j.since.Add(s.p.patience)
	if !s.now.Before(late) {
		s.skip(j, errTooLate)
		return true
	}
	if s.view == nil {
		s.p.metadata.refresh()
		s.fetchIdentity()
		s.at(late)
		return false
	}
	n, from, bytes, refused := j.batch.Len(), j.placed, s.bytes, 0
	for ms := j.started.UnixMilli(); j.placed < n; j.placed++ {
		value := j.batch.Record(j.placed)
		size := recordSize(len(value))
		if s.records > 0 && (s.records >= s.p.maxRecords || s.bytes+size > s.p.maxBytes) {
			break
		}
		if size > maxBatchBytes-recordsAt {
			refused++ // as kgo does
			continue
		}
		pt := &s.parts[kafka.PartitionOf(j.batch.Hash(j.placed), len(s.view.leaders))]
		b := pt.last(size, j.since)
		s.bytes += b.append(value, ms, j.batch.Assigned(j.placed))
		s.records++
		b.owe(j)
	}
	s.p.inflight.Add(int64(j.placed - from - refused))
	s.p.buffered.Add(int64(s.bytes - bytes))
	all := j.placed == n
	if all {
		j.letGo()
	} else {
		s.at(late)
	}
	if refused > 0 {
		s.p.cfg.Kafka.Errors.Count("produce", kerr.MessageTooLarge)
		j.settle(refused, kerr.MessageTooLarge, s.now) // last: j may be gone
	}
	return all
}

// skip gives j's records that are in no batch yet the outcome err.
func (s *shard) skip(j *job, err error) {
	s.p.cfg.Kafka.Errors.Count("produce", err)
	n := j.batch.Len() - j.placed
	j.letGo()
	j.placed += n
	j.settle(n, err, s.now)
}

// send fills requests for the leaders that have none and sends them off.
func (s *shard) send() {
	if len(s.parts) == 0 {
		return
	}
	s.first = (s.first + 1) % len(s.parts)
	for i := range s.parts {
		if pt := &s.parts[(s.first+i)%len(s.parts)]; len(pt.queue) > 0 {
			s.expire(pt)
			if s.may(pt) {
				s.load(pt)
			}
		}
	}
	for i, r := range s.open {
		s.open[i] = nil
		s.busy[r.leader] = true
		s.flights++
		go r.do(s.p.client)
	}
	s.open = s.open[:0]
}

// may tells whether pt's first batch can go now.
func (s *shard) may(pt *partition) bool {
	switch {
	case len(pt.queue) == 0 || pt.flight != nil:
		return false
	case pt.who == nobody && pt.queue[0].stamp == nobody:
		s.fetchIdentity()
		return false
	}
	leader := int32(-1)
	if int(pt.index) < len(s.view.leaders) {
		leader = s.view.leaders[pt.index]
	}
	if leader < 0 {
		s.p.metadata.refresh()
		return false
	}
	if leader == pt.tried && s.now.Before(pt.retryAt) {
		s.at(pt.retryAt)
		return false
	}
	if s.p.cfg.Linger > 0 && len(pt.queue) == 1 && pt.tries == 0 && !s.closing.Load() {
		if until := pt.queue[0].since.Add(s.p.cfg.Linger); s.now.Before(until) {
			s.at(until)
			return false
		}
	}
	return !s.busy[leader]
}

// load puts pt's first batch into the request to its leader.
func (s *shard) load(pt *partition) {
	leader := s.view.leaders[pt.index]
	var r *produce
	for _, o := range s.open {
		if o.leader == leader {
			r = o
		}
	}
	switch {
	case r == nil:
		r = s.request(leader)
		s.open = append(s.open, r)
	case r.size+len(pt.queue[0].buf) > maxRequestBytes:
		return // when this one is back
	}
	r.add(pt.index, pt.ready(&s.scratch))
	pt.flight = r
}

func (s *shard) request(leader int32) *produce {
	var r *produce
	if n := len(s.spare); n > 0 {
		r, s.spare = s.spare[n-1], s.spare[:n-1]
	} else {
		r = newProduce(s)
	}
	r.reset(leader, s.view)
	return r
}

func (s *shard) fetchIdentity() {
	if s.fetching {
		return
	}
	s.fetching = true
	s.p.helpers.Go(func() {
		if who, err := newIdentity(s.p.ctx, s.p.client, s.p.cfg.Kafka.Errors.Count); err == nil {
			s.identified(who)
		}
	})
}

// expire drops what has waited too long and cannot be in the log.
func (s *shard) expire(pt *partition) {
	for keep := pt.kept(); keep < len(pt.queue); {
		late := pt.queue[keep].since.Add(s.p.patience)
		if s.now.Before(late) {
			s.at(late)
			return
		}
		s.drop(pt, keep, errTooLate)
	}
}

// dropAll fails all of pt's batches but the one under way.
func (s *shard) dropAll(pt *partition, err error) {
	for keep := pt.inFlight(); keep < len(pt.queue); {
		s.drop(pt, keep, err)
	}
}

// drop fails pt's batch i.
func (s *shard) drop(pt *partition, i int, err error) {
	b := pt.take(i)
	if b.stamp != nobody {
		pt.forget()
	}
	s.settle(b, err)
}

// settle gives b and the requests of its records their outcome.
func (s *shard) settle(b *batch, err error) {
	if err != nil {
		s.p.cfg.Kafka.Errors.Count("produce", err)
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

// at has the loop look around at t or before.
func (s *shard) at(t time.Time) {
	if s.due.IsZero() || t.Before(s.due) || !s.now.Before(s.due) {
		s.due = t
		s.timer.Reset(t.Sub(s.now))
	}
}

// abandon gives everything that has no outcome the outcome that there is none.
func (s *shard) abandon() {
	for i := range s.parts {
		s.dropAll(&s.parts[i], errStopped)
	}
	for s.popped > 0 {
		for ; s.next < s.popped; s.next++ {
			s.skip(s.jobs[s.next], errStopped)
			s.jobs[s.next] = nil
		}
		s.next, s.popped = 0, s.ring.Pop(s.jobs[:])
	}
}
