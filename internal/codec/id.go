package codec

import (
	crand "crypto/rand"
	"encoding/binary"
	"sync/atomic"
)

// idRun is how many ids a batch takes from its pool at a time. With one, every event
// of every core would add to the same word; what a batch has left when it goes is lost.
const idRun = 64

// ids numbers the events that come without an id. An id is a version 7 UUID
// (RFC 9562, sections 5.7 and 6.2, method 2): 48 bits of Unix milliseconds and
// 74 that the operating system draws once for the pool, of which the last 62 count up.
//
// Drawn anew for each event they were hex digits that nothing compresses, a quarter of
// the log. Counting is as safe: a pool meets itself after 2^62 ids, which are 146,000
// years at a million a second, and another process only where both come to the same
// number in the same millisecond. Of two that make 2^50 ids each, a million a second
// for 35 years, that is one pair in 2^23.
//
// Who knows one id can guess the next. Nothing rests on that: no answer has an id, and
// the sink does not look for an assigned one among those it has seen (kafka.AssignedID).
type ids struct {
	high uint64 // version and the 12 bits behind it
	next atomic.Uint64
}

func (s *ids) seed() {
	var random [16]byte
	crand.Read(random[:]) // never fails: it ends the process instead
	s.high = 0x7000 | binary.BigEndian.Uint64(random[:8])&0x0FFF
	s.next.Store(binary.BigEndian.Uint64(random[8:]))
}

// newID returns an id of the batch's time. Ids of one request ascend: a batch's
// next run lies behind all that were taken before.
func (b *Batch) newID() (id [16]byte) {
	if b.idNext == b.idEnd {
		b.idEnd = b.pool.ids.next.Add(idRun)
		b.idNext = b.idEnd - idRun
	}
	const variant, count = 1 << 63, 1<<62 - 1 // behind the last number comes the first
	binary.BigEndian.PutUint64(id[:8], uint64(b.now)<<16|b.pool.ids.high)
	binary.BigEndian.PutUint64(id[8:], variant|b.idNext&count)
	b.idNext++
	return id
}
