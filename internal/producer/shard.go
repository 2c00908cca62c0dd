package producer

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"edge/internal/kafka"
	"edge/internal/ring"
	"edge/internal/stat"
)

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
// the next, so batches grow with the load and nobody who waits for an answer
// waits for a timer.
type shard struct {
	p    *Producer
	ring *ring.Ring[*job]
	full stat.Counter
	wake chan struct{} // holds a token when the loop has something to look at

	waiting atomic.Int64 // records, as of the loop's last turn

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
	sent     time.Time // when the last request was
	answers  []*produce
	scratch  []byte
}

// maxTakes bounds how often one look around empties jobs: answers wait meanwhile.
const maxTakes = 32

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
		if s.look() {
			s.fetchIdentity() // now, and not when the first shard cannot take any more
		}
		s.collect()
		s.take()
		s.waiting.Store(int64(s.records))
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
	if s.resting() {
		s.at(s.sent.Add(rest))
		s.ring.Gather(restRequests, s.wake)
		return
	}
	s.ring.Wait(s.wake)
}

// keepsUp tells that little waits, for the shard and for the broker: in the ring less
// than half, and not much more than a rest gathers; in batches what one of them holds.
func (s *shard) keepsUp() bool {
	return s.waiting.Load() < min(4096, int64(s.p.maxRecords/4)) &&
		s.ring.Len() < min(2*restRequests, s.ring.Cap()/2) && s.ring.Bytes() < s.p.cfg.RingBytes/4
}

// look takes on what is new of the topic, and tells whether it saw it for the first time.
func (s *shard) look() bool {
	v := s.p.metadata.view.Load()
	if v == s.view {
		return false
	}
	first := s.view == nil
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
	return first
}

// take moves records from the ring into batches, as many as there is room for.
func (s *shard) take() {
	for range maxTakes {
		if s.next == s.popped {
			s.pop()
		}
		for s.next < s.popped {
			if !s.place(s.jobs[s.next]) {
				return
			}
			s.jobs[s.next] = nil
			s.next++
		}
		if s.popped < len(s.jobs) {
			return // the ring was empty
		}
	}
}

func (s *shard) pop() {
	s.next, s.popped = 0, s.ring.Pop(s.jobs[:])
	for _, j := range s.jobs[:s.popped] {
		j.since = j.started
		if s.p.cfg.Ack == AckMemory { // gathers with what leaves the ring beside it, however long it was there
			j.since = s.now
		}
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
		b := pt.last(size, j.since, s.p.gather)
		s.bytes += b.append(value, ms, j.batch.Assigned(j.placed))
		if b.full() {
			s.scratch = b.squeeze(s.scratch)
		}
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
		s.failed(refused, kerr.MessageTooLarge)
		j.settle(refused, kerr.MessageTooLarge, s.now) // last: j may be gone
	}
	return all
}

// skip gives j's records that are in no batch yet the outcome err.
func (s *shard) skip(j *job, err error) {
	n := j.batch.Len() - j.placed
	s.failed(n, err)
	j.letGo()
	j.placed += n
	j.settle(n, err, s.now)
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
