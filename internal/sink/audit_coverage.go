package sink

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// auditChunk is how many offsets one query looks at: its memory is bounded by
// one group per batch and, at worst, one offset per batch.
const auditChunk = 2_000_000

func (a *Audit) coverage(ctx context.Context, r *Report, log map[int32]logPosition) error {
	ranges, err := a.ranges(ctx)
	if err != nil {
		return err
	}
	for _, c := range due(ranges, log) {
		c.expiring, c.young, c.committed = a.expiring.UnixMilli(), math.MaxInt64, math.MaxInt64
		if at, ok := log[c.Partition]; ok && at.now == c.Source {
			c.young = at.young
			if at.committed >= 0 { // a group without offsets says nothing
				c.committed = at.committed
			}
		}
		from := c.First
		if c.First > c.begins { // whichever batch has c.begins began at most so long before
			from = max(0, c.begins-longest)
		}
		for ; from <= c.Last || from < c.ends; from += auditChunk {
			if err := a.chunk(ctx, r, c, from); err != nil {
				return err
			}
		}
		r.end(c)
	}
	return nil
}

// due returns what is to be looked at: the ranges that have rows, those of all lives of
// the log together, and of the log, in an audit of some time, what was received in it,
// whether it has rows or not.
func due(ranges []Coverage, log map[int32]logPosition) []*coverage {
	var all []*coverage
	of := make(map[int32]*coverage)
	for _, c := range ranges {
		at, id := log[c.Partition], c.Partition
		if end, ok := at.had(c.Source, id); ok {
			if c.Source, c.Last = at.now, min(c.Last, end-1); c.First > c.Last {
				continue // the log has lost it
			}
		} else if c.Source != at.now {
			all = append(all, &coverage{Coverage: c, logNumbers: logNumbers{now: c.Source}, next: c.First, begins: c.First})
			continue
		}
		if of[id] == nil {
			of[id] = &coverage{Coverage: c, logNumbers: at.logNumbers}
			all = append(all, of[id])
		}
		of[id].First, of[id].Last = min(of[id].First, c.First), max(of[id].Last, c.Last)
		of[id].next, of[id].begins = of[id].First, of[id].First
	}
	for _, id := range slices.Sorted(maps.Keys(log)) {
		at := log[id]
		from := at.recent
		if from >= min(at.calm, at.committed) {
			continue
		}
		c := of[id]
		if c == nil {
			c = &coverage{Coverage: Coverage{Source: at.now, Partition: id, First: math.MaxInt64, Last: -1}, logNumbers: at.logNumbers, next: from, begins: from}
			all = append(all, c)
		}
		c.begins, c.next = min(c.begins, from), min(c.next, from)
		c.ends = min(at.calm, at.committed)
	}
	return all
}

// coverage is a partition of which the batches are looked at one after the other. Times
// are Unix milliseconds.
type coverage struct {
	Coverage
	logNumbers
	begins    int64 // batches that begin before are not looked at
	ends      int64 // batches have to reach up to here; 0: to nowhere
	next      int64 // the offset the next batch has to begin at
	received  int64 // when the last was, the first of it
	expiring  int64 // what was received before may have expired
	young     int64 // but nothing from this offset on
	committed int64 // from here on inserts may be under way, side by side
}

// ranges returns the partitions that have batches and the offsets they span.
func (a *Audit) ranges(ctx context.Context) ([]Coverage, error) {
	var src, part proto.ColUInt32
	var first, last proto.ColUInt64
	var out []Coverage
	rows, empty := "1", "1"
	if !a.Since.IsZero() {
		rows = a.lately()
		empty = fmt.Sprintf("at >= toDateTime(%d, 'UTC')", a.Since.Unix())
	}
	err := a.ClickHouse.Do(ctx, ch.Query{
		Body: fmt.Sprintf(`SELECT s, p, min(f) AS first, max(l) AS last FROM (
			SELECT _src AS s, _part AS p, min(_first) AS f, max(_last) AS l FROM events WHERE %s GROUP BY s, p
			UNION ALL SELECT src, part, min(first), max(last) FROM empty_batches WHERE %s GROUP BY src, part
		) GROUP BY s, p ORDER BY s, p`, rows, empty),
		Result: proto.Results{{Name: "s", Data: &src}, {Name: "p", Data: &part}, {Name: "first", Data: &first}, {Name: "last", Data: &last}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range src {
				out = append(out, Coverage{Source: src[i], Partition: int32(part[i]), First: int64(first[i]), Last: int64(last[i])})
			}
			return nil
		},
	})
	return out, err
}

// lately is the condition that a row was received since Since. One that says it was far
// in the future came from a clock that was ahead, and is not in every audit until then.
func (a *Audit) lately() string {
	const ahead = time.Hour
	return fmt.Sprintf("received_at >= toDateTime64(%d, 3, 'UTC') AND received_at < toDateTime64(%d, 3, 'UTC')", a.Since.Unix(), time.Now().Add(ahead).Unix())
}

// longest is more than any batch is.
const longest = 4 << 20

// chunk checks the batches of c that begin in [from, from+auditChunk). One may reach beyond
// it by less than longest.
func (a *Audit) chunk(ctx context.Context, r *Report, c *coverage, from int64) error {
	var first, last, whole, rows, said, offsets, dup, dead proto.ColUInt64
	var received proto.ColInt64
	return a.ClickHouse.Do(ctx, ch.Query{
		Body: fmt.Sprintf(`SELECT f, max(l) AS l, max(whole) AS whole, sum(rows) AS rows, max(said) AS said, sum(offsets) AS offsets, max(dup) AS dup, max(dead) AS dead, min(received) AS received FROM (
			SELECT _first AS f, max(%[6]s) AS l, max(_last) AS whole, countIf(_offset <= %[6]s) AS rows, toUInt64(max(_rows)) AS said, uniqExactIf(_offset, _offset <= %[6]s) AS offsets,
				toUInt64(max(_dup)) AS dup, toUInt64(max(_dead)) AS dead, min(toUnixTimestamp64Milli(received_at)) AS received
			FROM events WHERE %[1]s AND _offset >= %[3]d AND _offset < %[5]d AND _first >= %[3]d AND _first < %[4]d
			GROUP BY f
			UNION ALL
			SELECT first AS f, max(%[7]s) AS l, max(last), toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(argMax(dup, last)), toUInt64(argMax(dead, last)), 1000 * toInt64(toUnixTimestamp(min(at)))
			FROM empty_batches WHERE %[2]s AND first >= %[3]d AND first < %[4]d
			GROUP BY f
		) GROUP BY f ORDER BY f`, c.rows(c.Partition, ofParts), c.rows(c.Partition, ofBatches), from, from+auditChunk, from+auditChunk+longest,
			c.last(c.Partition, ofParts), c.last(c.Partition, ofBatches)),
		Result: proto.Results{{Name: "f", Data: &first}, {Name: "l", Data: &last}, {Name: "whole", Data: &whole}, {Name: "rows", Data: &rows}, {Name: "said", Data: &said},
			{Name: "offsets", Data: &offsets}, {Name: "dup", Data: &dup}, {Name: "dead", Data: &dead}, {Name: "received", Data: &received}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range first {
				if last[i] < whole[i] { // of a batch that the log has lost the end of nobody knows how many duplicates are left
					said[i], dup[i], dead[i] = offsets[i], min(last[i]+1-first[i]-offsets[i], dup[i]+dead[i]), 0
				}
				r.batch(c, auditBatch{int64(first[i]), int64(last[i]), int64(rows[i]), int64(said[i]), int64(offsets[i]), int64(dup[i]), int64(dead[i]), received[i]})
			}
			return nil
		},
	})
}

type auditBatch struct{ first, last, rows, said, offsets, dup, dead, received int64 }

// batch adds one batch of c, which has to begin at c.next.
func (r *Report) batch(c *coverage, b auditBatch) {
	if b.first < c.begins {
		c.next = max(c.next, b.last+1)
		return
	}
	c.Batches++
	c.Rows += b.rows
	c.Duplicates += b.dup
	c.Dead += b.dead
	where := fmt.Sprintf("source %d, partition %d, batch [%d,%d]", c.Source, c.Partition, b.first, b.last)
	young := c.next // of the gap before it
	if c.received < c.expiring {
		young = min(max(c.next, c.young), b.first)
		c.Expired += max(young-c.next, 0)
	}
	switch {
	case young < b.first:
		passed := max(min(b.first, c.committed), young)
		r.Pending += b.first - passed
		if young < passed {
			c.Missing += passed - young
			r.problem("%s: offsets %d to %d before it are in no batch", where, young, passed-1)
		}
	case b.first < c.next:
		r.problem("%s: begins inside the batch before it, which reaches to %d", where, c.next-1)
	}
	if b.rows > b.offsets {
		c.Extra += b.rows - b.offsets
		r.problem("%s: %d rows for %d offsets", where, b.rows, b.offsets)
	}
	length := b.last - b.first + 1
	switch lacks := length - b.offsets - b.dup - b.dead; {
	case lacks > 0 && b.received < c.expiring && b.first < c.young:
		c.Expired += lacks
	case lacks > 0 && b.first >= c.committed:
		r.Pending += lacks
	case lacks != 0:
		c.Missing += max(lacks, 0)
		r.problem("%s: %d rows + %d duplicates + %d dead are not %d", where, b.offsets, b.dup, b.dead, length)
	case b.offsets != b.said:
		r.problem("%s: has %d rows and says %d", where, b.offsets, b.said)
	}
	c.next, c.received = max(c.next, b.last+1), b.received
}

// end adds what the batches of c lack at their end, and c.
func (r *Report) end(c *coverage) {
	if lacks := c.ends - c.next; lacks > 0 {
		c.Missing += lacks
		r.problem("source %d, partition %d: the group is at offset %d, and what is stored ends at %d", c.Source, c.Partition, c.committed, c.next)
	}
	c.First, c.Last = c.begins, max(c.Last, c.next-1)
	r.Partitions = append(r.Partitions, c.Coverage)
}
