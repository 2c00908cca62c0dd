package codec

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"
)

// What a Batch keeps when it goes back to the pool. Most requests are far
// smaller; keeping the memory of the few large ones would turn the largest
// body ever seen, times the number of pooled batches, into the resident size.
const (
	keepArena   = 1 << 20
	keepRecords = 16 << 10
	keepScratch = 64 << 10
	keepTags    = 1 << 10
	keepStack   = 64 // 4,160 levels
)

// A Pool hands out batches that check events against its rules.
type Pool struct {
	rules   Rules
	batches sync.Pool
	ids     ids
}

// NewPool returns a pool with the rules, their zero fields replaced by defaults.
func NewPool(rules Rules) *Pool {
	p := &Pool{rules: rules.withDefaults()}
	p.ids.seed()
	return p
}

// Get returns an empty batch holding one reference, the caller's.
func (p *Pool) Get() *Batch {
	b, _ := p.batches.Get().(*Batch)
	if b == nil {
		b = &Batch{pool: p}
	}
	b.refs.Store(1)
	return b
}

// A Batch is the memory of one request: an arena of encoded records, where
// they lie in it, and what was rejected. It is filled once by one of the
// Decode methods, then only read until the last reference is released. The
// producer reads record bytes until it has copied them, possibly after the
// request was answered, so whoever hands records on retains first.
type Batch struct {
	refs     atomic.Int32
	pool     *Pool
	arena    []byte
	records  []span
	rejected []Rejection
	dec      Decoder
	ev       Event
	lim      limits
	now      int64 // Unix ms
	nowText  []byte
	err      Error
	idNext   uint64   // ids from here on are the batch's own,
	idEnd    uint64   // up to here
	id       [36]byte // text of the id assigned last
}

// span is one record in the arena.
type span struct {
	start, end int
	hash       uint64
	assigned   bool
}

// Rejection is one event that was not kept.
type Rejection struct {
	Index int // position among the events of the body
	Err   Error
}

// Retain adds a reference.
func (b *Batch) Retain() {
	if b.refs.Add(1) <= 1 {
		panic("BUG: Retain of a released batch")
	}
}

// Release drops a reference. With the last one the batch and all its bytes go
// back to the pool.
func (b *Batch) Release() {
	switch n := b.refs.Add(-1); {
	case n > 0:
		return
	case n < 0:
		panic("BUG: Release of a released batch")
	}
	if poison {
		fill(b.arena, 0xDB)
		fill(b.dec.scratch, 0xDB)
	}
	b.reset()
	b.ev = Event{}
	if cap(b.arena) > keepArena {
		b.arena = nil
	}
	if cap(b.records) > keepRecords {
		b.records = nil
	}
	if cap(b.rejected) > keepRecords {
		b.rejected = nil
	}
	if cap(b.dec.scratch) > keepScratch {
		b.dec.scratch = nil
	}
	if cap(b.dec.tags) > keepTags {
		b.dec.tags = nil
	}
	b.dec.dropStack()
	clear(b.dec.tags[:cap(b.dec.tags)]) // views into the request body, which is not ours to pin
	b.pool.batches.Put(b)
}

func fill(p []byte, c byte) {
	for i := range p {
		p[i] = c
	}
}

func (b *Batch) reset() {
	b.arena = b.arena[:0]
	b.records = b.records[:0]
	b.rejected = b.rejected[:0]
}

// Len returns the number of records.
func (b *Batch) Len() int { return len(b.records) }

// Size returns the bytes of all records together.
func (b *Batch) Size() int { return len(b.arena) }

// Record returns record i, valid until the last Release; it must not be changed.
func (b *Batch) Record(i int) []byte {
	r := &b.records[i]
	return b.arena[r.start:r.end:r.end]
}

// Hash returns the partition hash of record i's event_id.
func (b *Batch) Hash(i int) uint64 { return b.records[i].hash }

// Assigned reports whether record i got its event_id here: nobody else knows
// that id, so nobody can send the event again under it.
func (b *Batch) Assigned(i int) bool { return b.records[i].assigned }

// Rejected returns the events that were not kept, in body order, valid until
// the last Release.
func (b *Batch) Rejected() []Rejection { return b.rejected }

// ForgetRejected gives up what Rejected returned, and its memory if that is much, with
// what an event nested too deep has taken: a batch may wait for long.
func (b *Batch) ForgetRejected() {
	b.dec.dropStack()
	const few = 64
	if b.rejected = b.rejected[:0]; cap(b.rejected) > few {
		b.rejected = nil
	}
}

// DecodeOne decodes a body that is one event. On an error the batch is empty
// and the error is valid until the last Release.
func (b *Batch) DecodeOne(body []byte, now time.Time) *Error {
	b.begin(now)
	if err := b.dec.document(body, &b.ev, &b.lim, false); err != nil {
		return err
	}
	b.keep()
	return nil
}

// DecodeArray decodes a body that is an array of events, or an object that
// has one under the key events; other keys of it are ignored but must be
// valid. An error means that nothing of the body was kept.
func (b *Batch) DecodeArray(body []byte, now time.Time) *Error {
	b.begin(now)
	i := skipSpace(body, 0)
	if i == len(body) {
		return b.fail(emptyBody, "", i, 0)
	}
	switch body[i] {
	case '[':
		i = b.array(body, i)
	case '{':
		i = b.envelope(body, i)
	default:
		return b.fail(wantArray, "", i, 0)
	}
	if i < 0 {
		b.reset()
		return &b.err
	}
	if i = skipSpace(body, i); i != len(body) {
		return b.fail(trailingData, "", i, 0)
	}
	return nil
}

// DecodeLines decodes newline-delimited events. A line that is no event, for
// whatever reason, is rejected by itself. Blank lines are skipped and not
// counted. The only error is too many events; a body of blank lines is a
// batch without records or rejections.
func (b *Batch) DecodeLines(body []byte, now time.Time) *Error {
	b.begin(now)
	for start, index := 0, 0; start < len(body); {
		end := len(body)
		if n := bytes.IndexByte(body[start:], '\n'); n >= 0 {
			end = start + n
		}
		line := body[:end] // from 0, so that offsets are the body's
		i := skipSpace(line, start)
		start = end + 1
		if i == len(line) {
			continue
		}
		if index == b.pool.rules.MaxEvents {
			return b.fail(tooManyEvents, "", i, b.pool.rules.MaxEvents)
		}
		b.line(line, i, index)
		index++
	}
	return nil
}

func (b *Batch) line(line []byte, i, index int) {
	d := &b.dec
	if i = d.event(line, i, &b.ev, &b.lim, false); i >= 0 {
		if i = skipSpace(line, i); i != len(line) {
			i = d.fail(trailingData, i)
		}
	}
	switch {
	case i < 0:
		b.rejected = append(b.rejected, Rejection{index, d.fatal})
	case d.broken.what != none:
		b.rejected = append(b.rejected, Rejection{index, d.broken})
	default:
		b.keep()
	}
}

func (b *Batch) begin(now time.Time) {
	b.reset()
	b.now = now.UnixMilli()
	b.nowText = appendMillis(b.nowText[:0], b.now)
	b.lim = b.pool.rules.at(now)
}

// fail empties the batch and returns the error of the whole body.
func (b *Batch) fail(w what, field string, offset, limit int) *Error {
	b.reset()
	b.err = newError(w, field, offset, int64(limit))
	return &b.err
}

// array decodes the events of the array at i and returns the index behind it,
// or -1 with b.err set.
func (b *Batch) array(body []byte, i int) int {
	b.reset() // the last of several arrays in an envelope wins
	if i = skipSpace(body, i+1); i < len(body) && body[i] == ']' {
		return i + 1
	}
	for index := 0; ; index++ {
		if i >= len(body) {
			b.fail(unexpectedEnd, "", i, 0)
			return -1
		}
		if index == b.pool.rules.MaxEvents {
			b.fail(tooManyEvents, "", i, b.pool.rules.MaxEvents)
			return -1
		}
		if i = b.dec.event(body, i, &b.ev, &b.lim, false); i < 0 {
			b.err = b.dec.fatal
			return -1
		}
		if b.dec.broken.what != none {
			b.rejected = append(b.rejected, Rejection{index, b.dec.broken})
		} else {
			b.keep()
		}
		i = skipSpace(body, i)
		switch {
		case i >= len(body):
			b.fail(unexpectedEnd, "", i, 0)
			return -1
		case body[i] == ']':
			return i + 1
		case body[i] != ',':
			b.fail(wantCommaOrEnd, "", i, 0)
			return -1
		}
		i = skipSpace(body, i+1)
	}
}

// keep encodes the event just decoded into the arena.
func (b *Batch) keep() {
	var id [16]byte
	assigned := len(b.ev.EventID) == 0
	if !assigned {
		id = ID(b.ev.EventID)
	} else {
		id = b.newID()
		b.ev.EventID = appendUUID(b.id[:0], id)
	}
	b.ev.ReceivedAt = b.now
	start := len(b.arena)
	b.arena = appendRecord(b.arena, &b.ev, !b.dec.rough, b.nowText)
	b.records = append(b.records, span{start, len(b.arena), PartitionHash(id), assigned})
}
