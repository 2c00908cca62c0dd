// Package ring is a bounded queue from many goroutines to one, limited in
// items and in bytes. A full ring refuses at once; it never blocks a writer,
// grows or drops.
//
// Why not a channel. A channel takes its lock twice an item, hands over one
// item a receive, knows no bytes, and cannot say "closed" to a sender without
// panicking. The writers here are request handlers that need an answer in
// nanoseconds (in a crowd, microseconds) and the reader is a shard that wants
// whatever has gathered, so Pop takes many items for one update of the shared
// state.
//
// Why one reader. Only the reader moves the head, so it needs no
// compare-and-swap, slots are freed in order, and one store frees a whole
// batch of them. More readers are more rings: that is what a shard is.
//
// # The two words
//
// All that decides whether an item fits is two atomic words: the writers' word
// holds the tail (items ever claimed), the bytes ever claimed and whether the
// ring is closed; the readers' word holds the head and the bytes ever freed.
// Counters wrap; only differences are used.
//
// A writer claims slot, bytes and its place in the order with a single
// compare-and-swap of the writers' word. So there is no state in which an item
// has its bytes but no slot, a refusal leaves no trace, and since closed is a
// bit of the same word no item can be claimed after Close.
//
// Push refuses only a ring that is full. It loads the writers' word first and
// the readers' word second. At the moment of the second load the tail is at
// least the one loaded, so items and bytes inside are at least the
// differences computed: if those are too many, the ring was full at that
// moment. If they are not, then at the moment the swap succeeds the head is at
// least the one loaded and the tail exactly the one loaded, so the item fits.
// A swap that fails means another writer got in, and is retried, never
// reported. (A head beyond the loaded tail means the tail is stale: retried.)
//
// Two cores that retry at once pass the word to and fro for every item, and neither
// gets far. So when two races were lost within microseconds, the second loser pauses,
// and the winner has the word to itself for hundreds of items. (Dice, Hendler and
// Mirsky, "Lightweight Contention Management for Efficient Compare-and-Swap
// Operations", 2013.) Eight writers that do nothing else hand over two to four times as
// many items for it. Writers that have other work meet now and then, and retry at once.
//
// # What a slot's sequence proves
//
// The claim orders writers; it does not say that the value is there yet. The
// writer stores the value, then its ticket plus one as the slot's sequence.
// The reader takes a slot only if the sequence is head plus one: then the
// value of this lap is complete, because Go's atomics are sequentially
// consistent and the store of the sequence happens before the load that sees
// it. In the other direction the reader clears the slot before it moves the
// head, and the claim that reuses the slot loaded that head.
//
// An item whose writer was preempted between claim and store holds back those
// behind it: order is by claim. Pop returns 0 meanwhile.
//
// # Parking
//
// An idle reader sleeps on a channel; it does not poll. The interleaving to
// fear is
//
//	reader: ring empty                                  reader: sleeps, for ever
//	                     writer: publishes, nobody sleeps
//
// so the reader first raises asleep and then looks at the ring again, and the
// writer publishes first and then looks at asleep. In any total order of these
// four operations, which sequential consistency grants, either the reader sees
// the item or the writer sees the flag. The writer that lowers the flag sends
// the token; the channel holds one, so the send cannot block. A token left
// over from a sleep that did not happen causes one extra look, no more.
//
// A reader with no use yet for what comes asks to be woken later (Gather): asleep
// holds the position that the tail must reach, and a writer before it leaves the
// reader alone. The argument is the same with "the nth item" for "the item". So
// that a sleeping reader does not make the ring refuse what it could take, n is at
// most half the slots, and a quarter of the bytes wake it as well: an item of three
// quarters fits at any time. A refusal of one still heavier wakes it, too.
//
// # Limits
//
// The tail has 31 bits and the byte counters 32, so a ring holds at most 2^30
// items and 4 GiB. A writer would have to stall between two adjacent loads
// and its swap for exactly a multiple of 2^31 items, and of 2^32 bytes, to
// mistake one state for another.
package ring

import (
	"errors"
	"math/bits"
	"sync/atomic"
	"time"
)

var (
	// ErrFull says that the item does not fit now, by count or by bytes.
	ErrFull = errors.New("the ring is full")
	// ErrClosed says that the ring takes no more items.
	ErrClosed = errors.New("the ring is closed")
)

// line keeps words written by different goroutines apart: 64 B on x86-64,
// fetched in pairs, and 128 B on arm64.
const line = 128

// A Ring is a bounded queue with many writers and one reader. Push, Close,
// Len, Bytes and Cap may be called from any goroutine; Pop, Wait and Gather from
// one at a time.
type Ring[T any] struct {
	mask     uint32
	maxBytes uint32
	slots    []slot[T]
	wake     chan struct{} // holds the token of one wake-up
	_        [line]byte

	claimed atomic.Uint64 // the writers' word, see pack
	lost    atomic.Int64  // when the last race was lost, in ns since began
	_       [line - 16]byte

	freed atomic.Uint64 // the readers' word, written by the reader alone
	_     [line - 8]byte

	asleep atomic.Uint32 // 0, or sleeping and the position to wake the reader at
	_      [line - 4]byte
}

type slot[T any] struct {
	seq   atomic.Uint32
	bytes uint32
	value T
}

// Races lost within crowd of each other are one, in which a loser pauses for so many
// rounds of an empty loop: 6 µs and then up to 26 at 2.5 GHz.
const (
	crowd         = 5 * time.Microsecond
	shortestPause = 1 << 14
	longestPause  = 1 << 16
)

var began = time.Now() // of the clock of lost

// A word is closed (1 bit), position (31 bits) and bytes (32 bits).
const (
	closedBit = 1 << 63
	posMask   = 1<<31 - 1
	maxItems  = 1 << 30
	maxWeight = 1<<32 - 1
)

func pack(pos, bytes uint32) uint64  { return uint64(pos&posMask)<<32 | uint64(bytes) }
func position(word uint64) uint32    { return uint32(word>>32) & posMask }
func distance(from, to uint32) int32 { return int32((to-from)<<1) >> 1 } // signed, of 31-bit positions

// New returns a ring for capacity items, rounded up to a power of two, and
// maxBytes bytes; both are at least 1 and are clamped to 2^30 items and 4 GiB.
func New[T any](capacity int, maxBytes int64) *Ring[T] {
	return newAt[T](capacity, maxBytes, 0, 0)
}

// newAt starts the counters at pos and bytes, so that tests reach their wrap.
func newAt[T any](capacity int, maxBytes int64, pos, bytes uint32) *Ring[T] {
	capacity = min(max(capacity, 1), maxItems)
	size := 1 << bits.Len(uint(capacity-1))
	r := &Ring[T]{
		mask:     uint32(size - 1),
		maxBytes: uint32(min(max(maxBytes, 1), maxWeight)),
		slots:    make([]slot[T], size),
		wake:     make(chan struct{}, 1),
	}
	r.claimed.Store(pack(pos, bytes))
	r.freed.Store(pack(pos, bytes))
	for i := range uint32(size) {
		// Anything but the ticket that comes to this slot first, plus one.
		r.slots[(pos+i)&r.mask].seq.Store((pos + i) & posMask)
	}
	return r
}

// Push adds v, which weighs bytes. It never blocks. ErrFull means that the
// ring held too many items or bytes at some moment of the call, ErrClosed that
// it was closed; both leave the ring as it was. An item heavier than the
// ring's maxBytes never fits.
func (r *Ring[T]) Push(v T, bytes int) error {
	if uint64(bytes) > maxWeight {
		return ErrFull
	}
	weight := uint32(bytes)
	var ticket uint32
	pause := shortestPause
	for {
		w := r.claimed.Load()
		if w&closedBit != 0 {
			return ErrClosed
		}
		if perturb {
			disturb()
		}
		free := r.freed.Load()
		ticket = position(w)
		items := distance(position(free), ticket)
		if items < 0 {
			continue // w is stale, the reader is past it
		}
		inside := uint64(uint32(w) - uint32(free))
		if items > int32(r.mask) || inside+uint64(weight) > uint64(r.maxBytes) {
			r.wakeReader() // it may be gathering
			return ErrFull
		}
		if perturb {
			disturb()
		}
		if r.claimed.CompareAndSwap(w, pack(ticket+1, uint32(w)+weight)) {
			break
		}
		now := time.Since(began)
		if now-time.Duration(r.lost.Swap(int64(now))) < crowd {
			for range pause {
			}
			pause = min(2*pause, longestPause)
		}
	}
	if perturb {
		disturb()
	}
	s := &r.slots[ticket&r.mask]
	s.value = v
	s.bytes = weight
	s.seq.Store((ticket + 1) & posMask)
	if perturb {
		disturb()
	}
	if at := r.asleep.Load(); at != 0 && (distance(at, ticket+1) >= 0 || r.heavy()) {
		r.wakeReader()
	}
	return nil
}

// Pop moves up to len(dst) items into dst, in the order of their claims, and
// returns how many. Their slots and bytes are free when it returns: what the
// caller holds from then on is for the caller to bound.
func (r *Ring[T]) Pop(dst []T) int {
	free := r.freed.Load()
	head, bytes := position(free), uint32(free)
	n := 0
	for n < len(dst) {
		s := &r.slots[head&r.mask]
		next := (head + 1) & posMask
		if s.seq.Load() != next {
			break
		}
		var zero T
		dst[n] = s.value
		s.value = zero // the ring keeps nothing alive that it has handed over
		bytes += s.bytes
		head = next
		n++
	}
	if n > 0 {
		if perturb {
			disturb()
		}
		r.freed.Store(pack(head, bytes))
	}
	return n
}

// Close makes every later Push return ErrClosed. What is inside stays for the
// reader. It may be called more than once.
func (r *Ring[T]) Close() {
	for {
		w := r.claimed.Load()
		if w&closedBit != 0 {
			return
		}
		if r.claimed.CompareAndSwap(w, w|closedBit) {
			r.wakeReader()
			return
		}
	}
}

// Len returns the number of items inside, those still being written included.
func (r *Ring[T]) Len() int {
	items, _ := r.inside()
	return items
}

// Bytes returns the bytes of the items inside.
func (r *Ring[T]) Bytes() int64 {
	_, bytes := r.inside()
	return bytes
}

// inside is exact for some moment of the call.
func (r *Ring[T]) inside() (items int, bytes int64) {
	for {
		free := r.freed.Load()
		w := r.claimed.Load()
		if free != r.freed.Load() {
			continue
		}
		return int(distance(position(free), position(w))), int64(uint32(w) - uint32(free))
	}
}

// Cap returns the number of items that fit.
func (r *Ring[T]) Cap() int { return len(r.slots) }
