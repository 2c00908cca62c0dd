package server

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// prefetch is what fasthttp reads of a streamed body before it calls the
// handler, into a buffer of the connection's. Blocks up to this size are not
// charged: they at most double memory that the limit of connections bounds.
const prefetch = 8 << 10

// keepBytes is the largest block kept for reuse. Larger ones are rare and go
// back to the collector, so one huge body does not stay for ever.
const keepBytes = 1 << 20

// memory hands out the blocks that request bodies are read and inflated into, and
// long answers wait in, and keeps all of them together under a budget. A block is
// paid for before it is allocated, in powers of two from prefetch on, and grows
// only when bytes have really arrived: a Content-Length of 10 MiB and nothing
// behind it costs 8 KiB, or else a handful of silent clients would own the budget.
type memory struct {
	limit   int64
	used    atomic.Int64
	classes []sync.Pool // of *block, of prefetch<<i bytes
}

// block is a byte slice in use by one request.
type block struct {
	b     []byte
	class int
}

// borrowed is the class of a block whose bytes are not the budget's.
const borrowed = -1

// newMemory returns a budget of limit bytes for bodies of up to maxBody bytes.
func newMemory(limit int64, maxBody int) *memory {
	// One byte more than the largest body tells that it is larger.
	return &memory{limit: limit, classes: make([]sync.Pool, classOf(maxBody+1)+1)}
}

// classOf returns the smallest class that holds n bytes.
func classOf(n int) int {
	return bits.Len(uint(max(n-1, 0) / prefetch))
}

// take charges n bytes and reports whether they were there.
func (m *memory) take(n int64) bool {
	if m.used.Add(n) > m.limit {
		m.used.Add(-n)
		return false
	}
	return true
}

// get returns an empty block for n bytes, or nil when the budget is spent.
func (m *memory) get(n int) *block {
	class := classOf(n)
	size := prefetch << class
	if class > 0 && !m.take(int64(size)) {
		return nil
	}
	if class < len(m.classes) { // an answer may be longer
		if blk, ok := m.classes[class].Get().(*block); ok {
			return blk
		}
	}
	return &block{b: make([]byte, 0, size), class: class}
}

// grow returns a block for n bytes with what old holds, and takes old back. On
// nil the budget is spent and old is still the caller's. Both are charged
// while one is copied to the other, because both exist.
func (m *memory) grow(old *block, n int) *block {
	blk := m.get(n)
	if blk == nil {
		return nil
	}
	blk.b = append(blk.b, old.b...)
	m.put(old)
	return blk
}

// fill returns a block of what text appends, or nil when the budget is spent.
func (m *memory) fill(text func(dst []byte) []byte) *block {
	blk := m.get(0)
	b := text(blk.b)
	if cap(b) == cap(blk.b) {
		blk.b = b
		return blk
	}
	m.put(blk)
	if blk = m.get(len(b)); blk != nil {
		blk.b = append(blk.b, b...)
	}
	return blk
}

// put takes blk back; nil and borrowed bytes are allowed.
func (m *memory) put(blk *block) {
	if blk != nil && blk.class != borrowed {
		m.used.Add(-m.recycle(blk))
	}
}

// recycle takes blk back and leaves it paid for; paid is by how much.
func (m *memory) recycle(blk *block) (paid int64) {
	size := prefetch << blk.class
	blk.b = blk.b[:0]
	if size <= keepBytes && blk.class < len(m.classes) {
		m.classes[blk.class].Put(blk)
	}
	if blk.class == 0 {
		return 0
	}
	return int64(size)
}
