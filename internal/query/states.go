package query

import (
	"bytes"
	"cmp"
	"container/list"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"edge/internal/stat"
)

// stateCache keeps buckets with their users for the next question that has them in its
// range. Reading and sending states is most of what an answer takes the server, and
// screens ask for nearly the same again and again.
//
// No bucket is taken unseen. Parts never change: what is inserted makes a new one, and so
// does a merge or a mutation. So a question asks the server which parts have rows of those
// buckets that are kept, and how many events, which is quick: if that is what it was, so
// are the states, and they are as new as if they had been read now. The others are read
// again. (So an answer's buckets may be from two or three moments of its query, as its rows
// and its buckets always were.) A table that was emptied or made anew, and one whose server
// lost parts in a power cut, may use names of parts again; hence the events, and
// maxStateAge for a part of the same name and as many.
//
// What changes between two questions costs one statement more. So a bucket that got events
// is not kept for a minute, but read with its users at once, and for twice as long each
// time it does so again.
//
// The five minutes that a range cuts at its ends can only be answered from rows. If they
// have few events, the counts and states of their seconds are kept, for as long as the
// bucket of those five minutes in the rollup does not change: every event is in both. An
// insert may come between reading the rows and reading the rollup. Then the two hold
// different numbers of events and nothing is kept, unless a second insert makes up for the
// first; but that one changes the bucket's parts when it completes, and so drops what was
// kept. (While a crash has left rows without their rollup, those rows may or may not be
// counted at an end, until the rollup is repaired.)
type stateCache struct {
	limit int // bytes; 0: nothing is kept

	mu     sync.Mutex
	byKey  map[bucketKey]*list.Element // of what is in used
	used   list.List                   // *bucket, the one used last in front
	bytes  int
	number uint64 // of the bucket that came last

	// What statements have brought that have not ended: half the limit at most. Who has
	// no room goes on without keeping anything.
	arriving atomic.Int64

	// How buckets came into answers: as they were kept, read, or read since those that
	// were kept had changed.
	kept, read, changed stat.Counter
}

const (
	maxStateAge = 10 * time.Minute
	minBackoff  = time.Minute // twice as long each time, up to maxStateAge
	bucketBytes = 448         // of a bucket beside what is in it: its key, its places in map and list
	partBytes   = 24          // of a part in it beside its name
	cellBytes   = 80          // of a cell in it beside its name and state

	// How many events five minutes may have whose seconds are kept. Of more the rows are
	// read, from the second that is asked for.
	maxSecondsOf = 4000
)

// scope is what a request's buckets are of.
type scope struct {
	event     string
	channel   string // the only one, or "": each, or all together
	byChannel bool
}

func scopeOf(r *Request) scope { return scope{r.EventName, r.Channel, byChannel(r)} }

// span is the time of a bucket, in seconds.
type span struct{ width, at int64 }

// spans are the buckets of pieces, in their order.
func spans(pieces []piece) iter.Seq[span] {
	return func(yield func(span) bool) {
		for _, p := range pieces {
			width := p.grain.seconds()
			for at := p.from; at < p.to; at += width {
				if !yield(span{width, at}) {
					return
				}
			}
		}
	}
}

// extend appends the bucket s, to the last piece if it goes on there.
func extend(pieces []piece, s span) []piece {
	if n := len(pieces); n > 0 && pieces[n-1].to == s.at && pieces[n-1].grain.seconds() == s.width {
		pieces[n-1].to += s.width
		return pieces
	}
	return append(pieces, piece{grainOf(s.width), s.at, s.at + s.width})
}

// bucketKey is that of a bucket. The sum of a range's buckets is kept as one of no width,
// one for each order of the range's length: there are few, whatever is asked for.
type bucketKey struct {
	scope
	span
}

// bucket is what one held. It is not written to any more.
type bucket struct {
	key         bucketKey
	number      uint64 // no other ever had it
	parts       []bucketPart
	cells       []bucketCell
	seconds     []bucketCell // of five minutes: what each second has of them, in place of cells
	hasSeconds  bool         // they are there
	counted     bool         // neither cells nor seconds are
	sum         *stateSum    // of others
	bytes       int
	read        time.Time
	backoff     time.Duration // got events while it was kept: nothing is in it, and will not be for so long
	nextBackoff time.Duration // of the next time
}

// bucketPart is that a part has rows of a bucket.
type bucketPart struct {
	name   string
	events int64
}

// bucketCell is what a part has of one channel in a bucket, or of all together, or what a
// second has.
type bucketCell struct {
	at     int64  // the start of the bucket, or the second
	name   string // of the channel
	events int64
	state  []byte
}

func (c *bucketCell) bytes() int { return cellBytes + len(c.name) + len(c.state) }

// whole tells whether b has all that its parts do.
func (b *bucket) whole() bool { return b.hasSeconds || !b.counted }

// all are the cells of b, and how wide they are.
func (b *bucket) all() (cells []bucketCell, width int64) {
	if b.hasSeconds {
		return b.seconds, 1
	}
	return b.cells, b.key.width
}

// events are those of all parts.
func (b *bucket) events() (n int64) {
	for _, p := range b.parts {
		n += p.events
	}
	return n
}

// look splits pieces: have are the buckets that are kept, held their times, and rest
// those of the others.
func (c *stateCache) look(s scope, pieces []piece, now time.Time) (have map[span]*bucket, held, rest []piece) {
	if c.limit == 0 {
		return nil, nil, pieces
	}
	have = make(map[span]*bucket)
	c.mu.Lock()
	defer c.mu.Unlock()
	for at := range spans(pieces) {
		e := c.byKey[bucketKey{s, at}]
		if e == nil || e.Value.(*bucket).backoff > 0 || !e.Value.(*bucket).whole() {
			rest = extend(rest, at)
			continue
		}
		if b := e.Value.(*bucket); now.Sub(b.read) <= maxStateAge {
			c.used.MoveToFront(e)
			have[at] = b
			held = extend(held, at)
			continue
		}
		c.remove(e)
		rest = extend(rest, at)
	}
	return have, held, rest
}

// put keeps what was found of pieces. Buckets that have got events since they were kept
// are not, for a while.
func (c *stateCache) put(s scope, pieces []piece, f *found, now time.Time) {
	for _, b := range f.buckets {
		b.parts, b.cells = slices.Clone(b.parts), slices.Clone(b.cells) // without the room to grow
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for at := range spans(pieces) {
		key := bucketKey{s, at}
		e := c.byKey[key]
		if len(f.buckets) == 0 && (f.full || !f.known) { // or of a name that nobody sends
			if e != nil {
				c.remove(e) // it has changed
			}
			continue
		}
		b := f.buckets[at]
		if b == nil {
			b = new(bucket)
		}
		b.key, b.counted, b.read, b.nextBackoff = key, f.counts, now, minBackoff
		if e != nil {
			before := e.Value.(*bucket)
			switch age := now.Sub(before.read); {
			case age < before.backoff:
				continue
			case before.backoff > 0 || age <= maxStateAge && before.events() == b.events():
				b.nextBackoff = before.nextBackoff
			case age <= maxStateAge:
				b = &bucket{key: key, read: now, backoff: before.nextBackoff, nextBackoff: min(2*before.nextBackoff, maxStateAge)}
			}
			c.remove(e)
		}
		b.bytes += bucketBytes + len(s.event) + len(s.channel)
		c.add(b)
	}
}

// add keeps b, in the place of those that were not used for longest, but not of all.
// Callers hold mu.
func (c *stateCache) add(b *bucket) {
	if !c.fits(b) {
		return
	}
	if c.byKey == nil {
		c.byKey = make(map[bucketKey]*list.Element)
	}
	c.number++
	b.number = c.number
	c.byKey[b.key] = c.used.PushFront(b)
	for c.bytes += b.bytes; c.bytes > c.limit; {
		c.remove(c.used.Back())
	}
}

func (c *stateCache) fits(b *bucket) bool { return b.bytes <= c.limit/2 }

// forget drops what is kept of the buckets of pieces.
func (c *stateCache) forget(s scope, pieces []piece) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at := range spans(pieces) {
		if e := c.byKey[bucketKey{s, at}]; e != nil {
			c.remove(e)
		}
	}
}

func (c *stateCache) remove(e *list.Element) {
	b := c.used.Remove(e).(*bucket)
	delete(c.byKey, b.key)
	c.bytes -= b.bytes
}

// found is what a statement says of buckets.
type found struct {
	scope
	cache   *stateCache // nil: nothing of it will be kept
	bytes   int
	full    bool // there was no room: nothing is here
	known   bool // there are buckets of the scope: that one is empty is worth keeping, too
	counts  bool // only in which parts its events are
	buckets map[span]*bucket
}

func newFound(s scope, of *stateCache) *found {
	return &found{scope: s, cache: of, full: of != nil && of.limit == 0, buckets: make(map[span]*bucket)}
}

// drop gives the room back.
func (f *found) drop() {
	f.cache.arriving.Add(-int64(f.bytes))
	f.full, f.bytes, f.buckets = true, 0, nil
}

// add takes the n rows of one block.
func (f *found) add(c *rows, n int) {
	for i := 0; i < n && !f.full; i++ {
		at := c.span(i)
		b, grown := f.buckets[at], 0
		if b == nil {
			b, grown = new(bucket), bucketBytes
			f.buckets[at] = b
		}
		grown -= b.bytes
		b.addPart(c.parts.Row(i), c.events.Row(i))
		if c.has.state {
			cell := bucketCell{at.at, f.channel, c.events.Row(i), bytes.Clone(c.states.RowBytes(i))}
			if c.has.name {
				cell.name = c.names.Row(i)
			}
			b.cells = append(b.cells, cell)
			b.bytes += cell.bytes()
		}
		if f.cache == nil {
			continue
		}
		grown += b.bytes
		f.bytes += grown
		if f.cache.arriving.Add(int64(grown)) > int64(f.cache.limit/2) {
			f.drop()
		}
	}
}

// addPart adds events to those of the part. Parts are in the order of their names.
func (b *bucket) addPart(name string, events int64) {
	i, there := slices.BinarySearchFunc(b.parts, name, func(p bucketPart, name string) int { return cmp.Compare(p.name, name) })
	if !there {
		b.parts = slices.Insert(b.parts, i, bucketPart{name: name})
		b.bytes += partBytes + len(name)
	}
	b.parts[i].events += events
}

// confirms tells whether b still is what the bucket at s holds.
func (f *found) confirms(s span, b *bucket) bool {
	var parts []bucketPart
	if now := f.buckets[s]; now != nil {
		parts = now.parts
	}
	return slices.Equal(parts, b.parts)
}

func (c *stateCache) describe(set *stat.Set) {
	set.CounterVec("edge_query_buckets_total", "Buckets with users that answers were put together from: kept since an earlier answer, read, or read because those that were kept had changed.",
		[]string{"from"}, func(emit stat.Emit) {
			emit(float64(c.kept.Load()), "kept")
			emit(float64(c.read.Load()), "read")
			emit(float64(c.changed.Load()), "changed")
		})
	set.Gauge("edge_query_states_bytes", "Memory of the buckets that are kept for later answers.", func() float64 {
		c.mu.Lock()
		defer c.mu.Unlock()
		return float64(c.bytes)
	})
}
