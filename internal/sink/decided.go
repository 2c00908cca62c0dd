package sink

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// decided is what ClickHouse holds of a declared batch, and so what was decided of its
// records: which are rows, and how many there are of each kind. That stands, whatever the
// window says today; settings may have changed since, or the number of partitions, which
// share the window. Of a batch that has left nothing the window decides anew.
type decided struct {
	stored map[int64]struct{} // offsets
	batch  batch              // the counts that its rows say
	far    *window            // before the batch, further back than any; nil unless open
}

// decided returns what is decided of the next batches of partitions, of which no insert
// may run. Those that are open but for one it takes out of next: a window that looks back
// so far of each partition at once would be more memory than a sink has. Callers hold mu,
// which is free while a window is read.
func (t *session) decided(ctx context.Context, next map[int32]plan) (map[int32]*decided, error) {
	out := make(map[int32]*decided)
	asking, end := t.limited(ctx)
	defer end()
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(next)), max(maxListed/(1+len(t.source.earlier)), 1)) {
		if err := t.decidedOf(asking, ids, next, out); err != nil {
			return nil, err
		}
	}
	looked := false
	for _, id := range slices.Sorted(maps.Keys(out)) {
		d, p := out[id], next[id]
		if !d.open() {
			continue
		}
		if looked {
			delete(next, id)
			continue
		}
		looked = true
		d.far = newWindow(max(t.cfg.DedupIDs, p.last-p.first+1, farthest), math.MaxInt64)
		if err := t.loadWindow(ctx, id, p.first, d.far); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// decidedOf is decided of some partitions: a query has its length.
func (t *session) decidedOf(ctx context.Context, ids []int32, next map[int32]plan, out map[int32]*decided) error {
	var rows, empty []string
	for _, id := range ids {
		p := next[id]
		rows = append(rows, fmt.Sprintf("(%s AND _first = %d AND _last = %d AND _offset BETWEEN %[2]d AND %[3]d)", t.source.rows(id, ofEvents), p.first, p.last))
		empty = append(empty, fmt.Sprintf("(%s AND first = %d AND last = %d)", t.source.rows(id, ofBatches), p.first, p.last))
	}
	var part, said, dup, dead proto.ColUInt32
	var offset proto.ColUInt64
	return t.cfg.ClickHouse.Do(ctx, ch.Query{
		Body: fmt.Sprintf(`SELECT _part AS p, _offset AS o, _rows AS r, _dup AS du, _dead AS de FROM events WHERE %s
			UNION ALL SELECT part, toUInt64(0), toUInt32(0), dup, dead FROM empty_batches WHERE %s`,
			strings.Join(rows, " OR "), strings.Join(empty, " OR ")),
		Result: proto.Results{{Name: "p", Data: &part}, {Name: "o", Data: &offset}, {Name: "r", Data: &said}, {Name: "du", Data: &dup}, {Name: "de", Data: &dead}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range part {
				d := out[int32(part[i])]
				if d == nil {
					d = &decided{stored: make(map[int64]struct{})}
					out[int32(part[i])] = d
				}
				if said[i] > 0 {
					d.stored[int64(offset[i])] = struct{}{}
				}
				if int(said[i]) >= d.batch.rows { // a note of no rows is of no weight beside rows
					d.batch = batch{rows: int(said[i]), duplicates: int(dup[i]), dead: int(dead[i])}
				}
			}
			return nil
		},
	})
}

// retake takes the batch of plan p again, from the log into f, and returns its last offset:
// d, where there is one, says which records are rows. Else the window of the partition does,
// and the batch ends where it has most bytes of records.
func (t *session) retake(ctx context.Context, f *flight, p plan, of *partition, d *decided, most int) (last int64, err error) {
	if d == nil {
		return t.reread(ctx, f, p, of, most)
	}
	all := newFlight(newBlock())
	if _, err := t.reread(ctx, all, p, &partition{id: of.id}, math.MaxInt); err != nil {
		return 0, err
	}
	for i, duplicate := range d.duplicates(all.block, of.window) {
		if duplicate {
			continue
		}
		f.block.copyRow(all.block, i)
		if of.window != nil {
			of.window.store(all.block.id(i))
		}
	}
	f.dead = append(f.dead, all.dead...)
	f.records += all.records
	f.block.bytes += all.block.bytes
	b := all.batches[of.id]
	b.rows, b.duplicates, b.dead = d.batch.rows, d.batch.duplicates, d.batch.dead
	f.batches[of.id] = b
	return p.last, nil
}

// farthest is how many records back the original of a repeat is looked for at least: the
// window may have been that long before a setting made it shorter.
const farthest = 4_000_000

// open tells whether a record that is not stored may be a row or a duplicate.
func (d *decided) open() bool { return d.batch.rows > len(d.stored) && d.batch.duplicates > 0 }

// duplicates tells which records of b, all of the batch but its dead, are duplicates. When
// all of its rows are stored, the others are. When some are missing, which takes a crash
// between the parts of two months, as many of the others are as there were, the nearest
// first, since a window of another size reaches less far or farther:
//
//  1. those that the window of today says are;
//  2. those with an id that far has, which looks back further than any;
//  3. those of a month that has rows of the batch: they came by one rename, all of them.
//
// If that is not enough, the rest are rows all the same: the counts do not add up then, an
// audit says so, and nothing is dropped on a guess.
//
// What a life after the copy has stored of it counts as a duplicate beside these: it made
// the batch whole, under a number that is not the log's.
func (d *decided) duplicates(b *block, today *window) []bool {
	const second, third = 1 << 62, math.MaxInt64
	type candidate struct {
		row  int
		rank int64 // within the first and the second the distance, in offsets
	}
	var candidates []candidate
	out := make([]bool, b.rows())
	months := make(map[int]bool)
	for i := range out {
		id, offset, received := b.id(i)
		_, stored := d.stored[offset]
		if !stored && today != nil && today.copied(id, offset, received) {
			out[i] = true
			continue
		}
		if !d.open() {
			out[i] = !stored && len(d.stored) >= d.batch.rows
			continue
		}
		before, then, ok := d.far.last(id, offset)
		switch distance := offset - before; {
		case stored:
			months[b.month(i)] = true
		case ok && today != nil && distance < today.size && received-then < today.ageMs:
			candidates = append(candidates, candidate{i, distance})
			continue // as the window passes over it
		case ok:
			candidates = append(candidates, candidate{i, second + distance})
		default:
			candidates = append(candidates, candidate{i, third})
		}
		d.far.store(id, offset, received)
	}
	candidates = slices.DeleteFunc(candidates, func(c candidate) bool { return c.rank == third && !months[b.month(c.row)] })
	slices.SortStableFunc(candidates, func(a, b candidate) int { return cmp.Compare(a.rank, b.rank) })
	for _, c := range candidates[:min(d.batch.duplicates, len(candidates))] {
		out[c.row] = true
	}
	return out
}
