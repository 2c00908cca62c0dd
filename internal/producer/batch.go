package producer

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/s2"

	"edge/internal/kafka"
)

// The record batch of Kafka's message format 2, as it lies on the wire and in
// the broker's log. Numbers are big-endian; those of a record are zigzag
// varints.
//
//	 0 base offset, 0     21 attributes: codec   43 producer id
//	 8 length after this  23 last offset delta   51 producer epoch
//	12 leader epoch, -1   27 first timestamp     53 base sequence
//	16 magic, 2           35 max timestamp       57 number of records
//	17 CRC-32C from 21 on                        61 records, perhaps compressed
//
//	record: length, attributes (1 byte, 0), timestamp delta, offset delta,
//	        key length (-1: none), value length, value, headers
const (
	lengthAt   = 8
	epochAt    = 12
	magicAt    = 16
	crcAt      = 17
	codecAt    = 21
	lastAt     = 23
	firstMsAt  = 27
	maxMsAt    = 35
	producerAt = 43
	bumpAt     = 51
	sequenceAt = 53
	countAt    = 57
	recordsAt  = 61
)

// maxBatchBytes bounds a batch before compression. What cannot be compressed grows by
// a few bytes a chunk, and the default of a topic's max.message.bytes is 1 MiB and 12.
const maxBatchBytes = 1<<20 - 128

// identity is a producer id and its epoch. Under it, every record of a
// partition has a number, by which the broker knows a batch that it has.
type identity struct {
	id    int64
	epoch int16
}

var nobody = identity{id: -1, epoch: -1}

// A batch is what goes to one partition at once. Records are copied in, so
// nothing points into the requests they came from.
//
// Once it may be in the log its bytes never change, however often it is sent: that
// is what lets the broker recognise it.
type batch struct {
	buf     []byte // room for the header, chunks packed already, records from tail on
	tail    int
	records int
	size    int   // bytes of the records before compression
	firstMs int64 // Unix time of the first record
	maxMs   int64
	since   time.Time // when the first record began to wait
	shares  []share   // whose records these are, in order

	packed  bool // the records are as they will be sent
	stamp   identity
	renewed int // how often it got another stamp
	// unsure: some attempt ended without the broker's word, so that the records
	// may be in the log.
	unsure bool
}

// share is how many records in a row are one request's.
type share struct {
	job *job
	n   int
}

// batches keeps the memory of batches. A pool of the runtime lets an idle
// process forget what a burst has grown.
var batches = sync.Pool{New: func() any { return &batch{buf: make([]byte, recordsAt, 4<<10), tail: recordsAt, stamp: nobody} }}

func newBatch() *batch { return batches.Get().(*batch) }

// free gives b back. Nobody may read its bytes any more.
func (b *batch) free() {
	clear(b.shares)
	if poison {
		for i := range b.buf {
			b.buf[i] = 0xDB
		}
	}
	*b = batch{buf: b.buf[:recordsAt], tail: recordsAt, shares: b.shares[:0], stamp: nobody}
	batches.Put(b)
}

// Headers as they lie in a record, their number first.
var (
	noHeaders       = []byte{0}
	assignedHeaders = func() []byte {
		out := binary.AppendVarint(nil, int64(len(kafka.AssignedID)))
		for _, h := range kafka.AssignedID {
			out = append(binary.AppendVarint(out, int64(len(h.Key))), h.Key...)
			out = append(binary.AppendVarint(out, int64(len(h.Value))), h.Value...)
		}
		return out
	}()
)

// recordSize is at least what a record of n bytes takes in a batch.
func recordSize(n int) int { return n + 4*5 + 10 + len(assignedHeaders) }

// append adds a record without a key, copying the value, and returns how many
// bytes it takes.
func (b *batch) append(value []byte, ms int64, assigned bool) int {
	if b.records == 0 {
		b.firstMs, b.maxMs = ms, ms
	}
	b.maxMs = max(b.maxMs, ms)
	headers := noHeaders
	if assigned {
		headers = assignedHeaders
	}
	age, offset := ms-b.firstMs, int64(b.records)
	n := 1 + varintLen(age) + varintLen(offset) + 1 + varintLen(int64(len(value))) + len(value) + len(headers)

	dst := slices.Grow(b.buf, n+binary.MaxVarintLen32)
	dst = binary.AppendVarint(dst, int64(n))
	dst = append(dst, 0)
	dst = binary.AppendVarint(dst, age)
	dst = binary.AppendVarint(dst, offset)
	dst = append(dst, 1) // -1: no key
	dst = binary.AppendVarint(dst, int64(len(value)))
	dst = append(dst, value...)
	dst = append(dst, headers...)
	grown := len(dst) - len(b.buf)
	b.buf = dst
	b.records++
	b.size += grown
	return grown
}

// owe notes that the last n records are j's.
func (b *batch) owe(j *job) {
	if last := len(b.shares) - 1; last >= 0 && b.shares[last].job == j {
		b.shares[last].n++
		return
	}
	b.shares = append(b.shares, share{j, 1})
}

func varintLen(v int64) int {
	return (bits.Len64(uint64(v<<1^v>>63)|1) + 6) / 7
}

// packFrom is the size from which records share enough text to be worth
// packing: four events shrink by half, one alone would grow.
const packFrom = 1 << 10

// snappy is the codec's number in a header. It takes half the time of lz4 and
// makes batches of events about as small, a quarter of 40 and a fifth of 1000;
// uncompressed, copies and system calls cost more than it does.
const snappy = 2

// chunkBytes is how much is packed at once, as soon as it is there: a cache still has
// it, the packer's table is small, and a batch takes a quarter of the memory. Bodies of
// 100 events cost 6 % less than with whole batches packed in the end, and are 2 to 14 %
// larger in the log. From 64 KiB on the packer takes a larger table: most chunks, with
// the record that is one too many, stay below.
const chunkBytes = 60 << 10

// A snappy block is the length of what it unpacks to, as a varint, and then literals,
// and copies of what is at most so far back. So the blocks of chunks make one block
// when their lengths give way to one length, which has three bytes from two to the
// fourteenth, less than a chunk, to two to the twenty-first, more than a batch.
const blockAt = recordsAt + 3

// full tells whether squeeze has a chunk to pack.
func (b *batch) full() bool { return len(b.buf)-b.tail >= chunkBytes }

// squeeze packs the records from tail on in place, by way of scratch, which it
// returns.
func (b *batch) squeeze(scratch []byte) []byte {
	records := b.buf[b.tail:]
	scratch = s2.EncodeSnappy(scratch[:cap(scratch)], records)
	_, n := binary.Uvarint(scratch)
	b.tail = max(b.tail, blockAt)
	b.buf = append(b.buf[:b.tail], scratch[n:]...)
	b.tail = len(b.buf)
	return scratch
}

// pack compresses the records in place, if that makes them smaller, by way of
// scratch, which it returns.
func (b *batch) pack(scratch []byte) []byte {
	b.packed = true
	codec := b.buf[codecAt : codecAt+2]
	binary.BigEndian.PutUint16(codec, 0)
	if b.tail > recordsAt {
		binary.BigEndian.PutUint16(codec, snappy)
		if b.tail < len(b.buf) {
			scratch = b.squeeze(scratch)
		}
		binary.PutUvarint(b.buf[recordsAt:blockAt], uint64(b.size))
		return scratch
	}
	if b.size < packFrom {
		return scratch
	}
	scratch = s2.EncodeSnappy(scratch[:cap(scratch)], b.buf[recordsAt:])
	if len(scratch) < b.size {
		binary.BigEndian.PutUint16(codec, snappy)
		b.buf = append(b.buf[:recordsAt], scratch...)
	}
	return scratch
}

// renew moves the times of a packed batch that is not in the log, if they are old, and tells
// whether they were: brokers forget by them, and one that could be forgotten at once could
// not be sent twice. When an event was accepted is in the event.
func (b *batch) renew(now time.Time) bool {
	late := now.UnixMilli() - b.maxMs
	if late < fresh.Milliseconds() {
		return false
	}
	b.firstMs += late
	b.maxMs += late
	return true
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// mark completes the header of a packed batch: the identity and the number of
// the first record.
func (b *batch) mark(who identity, sequence int32) {
	b.stamp = who
	h := b.buf[:recordsAt]
	be := binary.BigEndian
	be.PutUint64(h, 0)
	be.PutUint32(h[lengthAt:], uint32(len(b.buf)-epochAt))
	be.PutUint32(h[epochAt:], 0xFFFFFFFF)
	h[magicAt] = 2
	be.PutUint32(h[lastAt:], uint32(b.records-1))
	be.PutUint64(h[firstMsAt:], uint64(b.firstMs))
	be.PutUint64(h[maxMsAt:], uint64(b.maxMs))
	be.PutUint64(h[producerAt:], uint64(who.id))
	be.PutUint16(h[bumpAt:], uint16(who.epoch))
	be.PutUint32(h[sequenceAt:], uint32(sequence))
	be.PutUint32(h[countAt:], uint32(b.records))
	be.PutUint32(h[crcAt:], crc32.Checksum(b.buf[codecAt:], castagnoli))
}
