package producer

import "time"

// When a batch goes to its leader, and when it is too late for it to go.

// maxRequestBytes bounds a produce request, of which brokers take 100 MiB at
// most. More partitions than fit wait for the next.
const maxRequestBytes = 16 << 20

// With AckMemory nobody waits for a request to the broker, and each costs both
// sides what hundreds of records do. So a shard rests after one, unless much is
// there already: a record that comes alone leaves at once, and under load a shard
// sends a hundred requests a second, or as many as it fills.
const (
	rest         = 10 * time.Millisecond
	restRequests = 256
	restBytes    = 256 << 10
)

// resting tells whether what is there waits for more. With batches that are full
// no more can come.
func (s *shard) resting() bool {
	return s.p.cfg.Ack == AckMemory && s.bytes < restBytes && s.next == s.popped &&
		s.now.Before(s.sent.Add(rest)) && !s.closing.Load()
}

// send fills requests for the leaders that have none and sends them off.
func (s *shard) send() {
	if len(s.parts) == 0 || s.resting() {
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
		s.sent = s.now
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
	r.add(pt.index, pt.ready(s.now, &s.scratch))
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
		if who, err := newIdentity(s.p.ctx, s.p.client, s.p.cfg.Kafka); err == nil {
			s.identified(who)
		}
	})
}

// expire drops what has waited too long and cannot be in the log, and what may be there
// and has waited so long that sending it again could put it there twice.
func (s *shard) expire(pt *partition) {
	if pt.forgotten(s.now) {
		s.drop(pt, 0, errTooLate)
	}
	for keep := pt.kept(); keep < len(pt.queue); {
		late := pt.queue[keep].since.Add(s.p.patience)
		if s.now.Before(late) {
			s.at(late)
			return
		}
		s.drop(pt, keep, errTooLate)
	}
}
