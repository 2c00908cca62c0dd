package sink

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// window remembers the ids of the last records of one partition, so that an
// event sent twice is stored once.
//
// Whether a record is a duplicate must not depend on what this process happened
// to see: a successor that reads the same records again has to decide the same,
// or a recovered batch would not be the declared one. So the rule speaks of the
// log alone. A record is a duplicate when the last stored record of its partition
// with the same id lies less than size offsets before it and was received less than
// age before it. What is in events is enough to rebuild the window from: all of the
// last size offsets, since nothing but the record that comes says how old is too old
// for it, and receive times are in no order.
//
// Slot offset%size of the ring belongs to an offset; the table finds an id's
// slot. Ring: 20 bytes an offset, allocated as far as it has been used. Table: 8
// bytes a cell, at most three quarters of the cells taken. Half of a cell is of the id's
// hash, so that a search and the closing of a gap touch the table, which a few lines of
// cache hold, and not the ids in it, which are anywhere.
type window struct {
	size  int64 // offsets remembered
	ageMs int64
	ring  []*stretch
	next  int64 // offset after the newest; 0 before the first
	// oldest is an offset not above the oldest one held; newest is the latest
	// receive time in seconds.
	oldest, newest int64
	// lost is what earlier lives of the log have stored of records that it has lost since.
	// Their offsets are other records' now; they count as being where the life ended.
	lost  map[[16]byte]original
	used  int      // ids in the table
	table []uint64 // the id's hash and slot+1, 0 empty; linear probing
}

// original is a lost record that is a row: where the life of it ended, and when it was
// received.
type original struct {
	until, receivedMs int64
	anywhere          bool // of another life: it may be what the copy has, wherever that is
}

// stretch is a piece of the ring.
type stretch struct {
	ids   [stretchSlots][16]byte
	times [stretchSlots]uint32 // of receipt, in seconds; 0: no row at this offset
}

const stretchSlots = 1024

func newWindow(size int64, ageMs int64) *window { return &window{size: size, ageMs: ageMs} }

// seen reports whether (id, at offset, received then) is a duplicate, and
// remembers it when it is not. Offsets must ascend.
func (w *window) seen(id [16]byte, offset, receivedMs int64) bool {
	w.advance(offset)
	h := hash(id)
	if slot, ok := w.find(id, h); ok {
		if receivedMs-int64(*w.time(slot))*1000 < w.ageMs {
			return true
		}
		w.remove(slot, h) // too old: the new one takes its place
	}
	if w.stored(id, offset, receivedMs) {
		return true
	}
	w.add(id, h, offset, receivedMs)
	return false
}

// stored is seen for what earlier lives have stored of records that the log has lost.
func (w *window) stored(id [16]byte, offset, receivedMs int64) bool {
	if w.lost == nil {
		return false
	}
	before, then, ok := w.lostBefore(id, offset)
	return ok && offset-before < w.size && receivedMs-then < w.ageMs
}

// copied is stored for a record of the copy, which a life after that has as a row.
func (w *window) copied(id [16]byte, offset, receivedMs int64) bool {
	o := w.lost[id]
	return o.anywhere && offset < o.until && receivedMs-o.receivedMs < w.ageMs
}

// store remembers a record that is a row, whatever the window says of it.
func (w *window) store(id [16]byte, offset, receivedMs int64) {
	w.advance(offset)
	h := hash(id)
	if slot, ok := w.find(id, h); ok {
		w.remove(slot, h)
	}
	w.add(id, h, offset, receivedMs)
}

// last returns where the last record with id before one at an offset was, and when it was
// received.
func (w *window) last(id [16]byte, at int64) (offset, receivedMs int64, ok bool) {
	slot, ok := w.find(id, hash(id))
	if !ok {
		return w.lostBefore(id, at)
	}
	newest := w.next - 1
	return newest - (newest-int64(slot))%w.size, int64(*w.time(slot)) * 1000, true
}

// lostBefore is last for the lost records. One that the copy may have is right before the
// record of the copy: whose row it is must not depend on where the window began.
func (w *window) lostBefore(id [16]byte, at int64) (offset, receivedMs int64, ok bool) {
	o, ok := w.lost[id]
	if o.anywhere && at < o.until {
		return at - 1, o.receivedMs, true
	}
	return o.until - 1, o.receivedMs, ok && at >= o.until
}

func (w *window) find(id [16]byte, h uint32) (slot uint32, ok bool) {
	if w.table == nil {
		return 0, false
	}
	mask := len(w.table) - 1
	for i := int(h) & mask; w.table[i] != 0; i = (i + 1) & mask {
		if c := w.table[i]; uint32(c>>32) == h {
			if slot = uint32(c) - 1; *w.id(slot) == id {
				return slot, true
			}
		}
	}
	return 0, false
}

// advance forgets what lies size or more before offset.
func (w *window) advance(offset int64) {
	if w.ring == nil {
		w.ring = make([]*stretch, (w.size+stretchSlots-1)/stretchSlots)
		w.next, w.oldest = offset, offset
	}
	if offset-w.next >= w.size {
		w.clear()
		w.next = offset
	}
	for ; w.next <= offset; w.next++ {
		if slot := uint32(w.next % w.size); w.received(slot) != 0 {
			w.remove(slot, hash(*w.id(slot)))
		}
	}
}

func (w *window) clear() {
	for _, s := range w.ring {
		if s != nil {
			clear(s.times[:])
		}
	}
	clear(w.table)
	w.used = 0
}

func (w *window) add(id [16]byte, h uint32, offset, receivedMs int64) {
	slot := uint32(offset % w.size)
	if s := &w.ring[slot/stretchSlots]; *s == nil {
		*s = new(stretch)
	}
	if 4*(w.used+1) > 3*len(w.table) {
		w.grow()
	}
	*w.id(slot) = id
	seconds := upToSecond(receivedMs)
	*w.time(slot) = seconds
	w.newest = max(w.newest, int64(seconds))
	w.insert(uint64(h)<<32 | uint64(slot+1))
	w.used++
}

// upToSecond is a receive time rounded up, so that a record is never taken for older than it
// is, and never 0.
func upToSecond(ms int64) uint32 { return max(uint32((ms+999)/1000), 1) }

// lose remembers a lost record that is a row.
func (w *window) lose(id [16]byte, o original) {
	if w.lost == nil {
		w.lost = make(map[[16]byte]original)
	}
	o.receivedMs = int64(upToSecond(o.receivedMs)) * 1000 // as old as one that is not lost
	if was, ok := w.lost[id]; !ok || was.receivedMs < o.receivedMs {
		o.anywhere = o.anywhere || was.anywhere
		w.lost[id] = o
	}
}

func (w *window) grow() {
	old := w.table
	w.table = make([]uint64, max(2048, 2*len(old)))
	for _, c := range old {
		if c != 0 {
			w.insert(c)
		}
	}
}

func (w *window) insert(cell uint64) {
	mask := len(w.table) - 1
	i := int(cell>>32) & mask
	for w.table[i] != 0 {
		i = (i + 1) & mask
	}
	w.table[i] = cell
}

// remove takes slot, of an id with this hash, out of the table and closes the gap, so that
// a search never stops short of an id behind it.
func (w *window) remove(slot, h uint32) {
	mask := len(w.table) - 1
	i := int(h) & mask
	for uint32(w.table[i]) != slot+1 {
		i = (i + 1) & mask
	}
	for j := i; ; {
		j = (j + 1) & mask
		if w.table[j] == 0 {
			break
		}
		home := int(w.table[j]>>32) & mask
		if (j-home)&mask >= (j-i)&mask {
			w.table[i] = w.table[j]
			i = j
		}
	}
	w.table[i] = 0
	*w.time(slot) = 0
	w.used--
}

// hash says where an id's search starts. Ids are hashes, random, or ordered by time;
// folding both halves with a multiplication spreads all three.
func hash(id [16]byte) uint32 {
	hi, lo := bits.Mul64(binary.LittleEndian.Uint64(id[:8])^0x9e3779b97f4a7c15, binary.LittleEndian.Uint64(id[8:])^0xe7037ed1a0b428db)
	return uint32(hi ^ lo)
}

// id and time are those of a slot whose stretch there is.
func (w *window) id(slot uint32) *[16]byte {
	return &w.ring[slot/stretchSlots].ids[slot%stretchSlots]
}

func (w *window) time(slot uint32) *uint32 {
	return &w.ring[slot/stretchSlots].times[slot%stretchSlots]
}

// received is the time of the row at a slot, 0 when there is none. Its stretch may not be
// there: records without a row pass over it.
func (w *window) received(slot uint32) uint32 {
	if w.ring[slot/stretchSlots] == nil {
		return 0
	}
	return *w.time(slot)
}

// span returns how many ids the window holds and how far back the oldest was
// received, in seconds before the newest.
func (w *window) span() (ids int, seconds int64) {
	if w.used == 0 {
		return 0, 0
	}
	at := func(offset int64) uint32 { return w.received(uint32(offset % w.size)) }
	for w.oldest = max(w.oldest, w.next-w.size); at(w.oldest) == 0; w.oldest++ {
	}
	return w.used, max(w.newest-int64(at(w.oldest)), 0)
}

func (t *session) newWindow() *window {
	return newWindow(max(t.cfg.DedupIDs/int64(t.source.partitions), 1), t.cfg.DedupAge.Milliseconds())
}

// loadWindows rebuilds the windows of partitions that have none from events:
// the rows before the first record this session takes. Callers hold mu, which is free
// while they are read: that may take longer than a rebalance waits.
func (t *session) loadWindows(ctx context.Context) error {
	if t.cfg.DedupIDs == 0 {
		return nil
	}
	for _, p := range slices.Collect(maps.Values(t.partitions)) {
		if p.window != nil || !p.asked || t.partitions[p.id] != p {
			continue
		}
		started := time.Now()
		w := t.newWindow()
		err := t.loadWindow(ctx, p.id, p.from(), w)
		if t.partitions[p.id] != p { // given up meanwhile
			continue
		}
		if err != nil {
			return fmt.Errorf("rebuild the deduplication window of partition %d: %w", p.id, err)
		}
		p.window = w
		if ids, seconds := w.span(); ids > 0 {
			t.cfg.Logger.Info("deduplication window rebuilt", "partition", p.id, "ids", ids, "seconds", seconds, "took_ms", time.Since(started).Milliseconds())
		}
	}
	return nil
}

// loadWindow reads into w the rows of a partition before the record at first. Callers hold
// mu, which is free meanwhile.
func (t *session) loadWindow(ctx context.Context, id int32, first int64, w *window) error {
	t.mu.Unlock()
	defer t.mu.Lock()
	ctx, cancel := t.patient(ctx)
	defer cancel()
	var (
		offset   proto.ColUInt64
		eventID  proto.ColUUID
		received proto.ColInt64
	)
	if err := t.loadLost(ctx, id, first, w); err != nil {
		return err
	}
	return t.cfg.ClickHouse.Do(ctx, ch.Query{
		// Rows come in offset order: store wants them ascending, and in that
		// order the window forgets what it would have forgotten.
		Body: fmt.Sprintf(`SELECT _offset, event_id, toUnixTimestamp64Milli(received_at) AS received FROM events
			WHERE %s AND _offset >= %d AND _offset < %d
			ORDER BY _offset`, t.source.rows(id, ofEvents), max(first-w.size, 0), first),
		Result: proto.Results{{Name: "_offset", Data: &offset}, {Name: "event_id", Data: &eventID}, {Name: "received", Data: &received}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range offset {
				w.store(eventID[i], int64(offset[i]), received[i])
			}
			return nil
		},
	})
}

// maxLost bounds the ids that a window has of lost records, of all lives together, a hundred
// bytes each.
const maxLost = 1 << 20

// loadLost reads into w what earlier lives have stored of records that a partition of the
// log has lost: a client that had no answer sends them again. The place where a life ended
// may be ahead of first, and the window come to it.
func (t *session) loadLost(ctx context.Context, id int32, first int64, w *window) error {
	for _, l := range t.source.ended() {
		end, ok := l.until[id]
		if !ok || first-end >= w.size {
			continue
		}
		var eventID proto.ColUUID
		var received proto.ColInt64
		err := t.cfg.ClickHouse.Do(ctx, ch.Query{
			// What a copy has comes again for certain, the others if somebody sends them.
			Body: fmt.Sprintf(`SELECT event_id, toUnixTimestamp64Milli(received_at) AS received FROM events
				WHERE %s ORDER BY _offset < %d OR _offset >= %d, _offset DESC LIMIT %d`, l.gone(id), first, end, max(maxLost-len(w.lost), 0)),
			Result: proto.Results{{Name: "event_id", Data: &eventID}, {Name: "received", Data: &received}},
			OnResult: func(context.Context, proto.Block) error {
				for i := range eventID {
					w.lose(eventID[i], original{end, received[i], l.other})
				}
				return nil
			},
		})
		if err != nil {
			return err
		}
	}
	return nil
}
