package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/twmb/franz-go/pkg/kadm"
)

// overtake brings newly assigned partitions to where events is, when that is
// beyond the group's offset. It never is in good order: a batch is declared
// before it is stored. But offsets get reset by hand, a group can be forgotten,
// and a commit that hung on a dying connection may arrive after the ones made
// later on another, so that an old plan replaces the one whose rows are in:
//
//	commit [100,199] ─ hangs ──────────────────────────────▶ applied
//	commit [100,199] again, insert, commit 200, commit [200,299], insert, crash
//
// Taking records from such an offset would store them twice. What is stored is
// left alone, holes in it are filled, the rollups are compared, and the group
// is moved on. And what is not stored yet may still be: the owner before may have died or
// be frozen with an insert that the plan replaced here was for, so inserts of these
// partitions are ended first.
//
// All this may take many times what a rebalance waits for, so mu is free while flights
// land, events is asked and rollups are compared: a member that kept one waiting would be
// put out of the group, as would the one that comes in its place, in turns. What is given
// up meanwhile is its next owner's to compare. Callers hold mu.
func (t *session) overtake(ctx context.Context) error {
	assigned := make(map[int32]*partition)
	for id, p := range t.partitions {
		if !p.asked {
			assigned[id] = p
		}
	}
	if len(assigned) == 0 {
		return nil
	}
	asking, end := t.limited(ctx)
	defer end()
	if err := t.quiesce(asking, slices.Collect(maps.Keys(assigned))); err != nil {
		return fmt.Errorf("end earlier inserts: %w", err)
	}
	for id, p := range assigned {
		if t.partitions[id] != p { // given up meanwhile, and perhaps given back: that one comes next
			continue
		}
		first, end, err := t.storedBeyond(ctx, id, p.next)
		if t.partitions[id] != p {
			continue
		}
		if err != nil {
			return err
		}
		if end > p.next {
			if err := t.land(ctx); err != nil {
				return err
			}
			if err := t.overtakePartition(ctx, p, first, end); err != nil && t.partitions[id] == p {
				return fmt.Errorf("partition %d: %w", id, err)
			}
		} else if p.known {
			if err := t.unstored(ctx, id, p.from()); err != nil && t.partitions[id] == p {
				return fmt.Errorf("partition %d: %w", id, err)
			}
			if t.partitions[id] != p {
				continue
			}
		}
		p.asked = true
	}
	return nil
}

// overtakePartition makes [first,end), of which events holds the last, whole.
func (t *session) overtakePartition(ctx context.Context, p *partition, first, end int64) error {
	from := min(first, p.from())
	t.cfg.Logger.Warn("events goes beyond the group's offset, comparing", "partition", p.id, "offset", p.next, "first", from, "last", end-1)
	start, _, err := t.logRange(ctx, p.id)
	if err != nil {
		return err
	}
	from = max(from, start)
	stands := p.stands()
	if !p.known { // the group stands nowhere, and is not to miss what the log never had
		stands.at = start
	}
	holes, err := t.holes(ctx, p.id, from, end)
	if err != nil {
		return err
	}
	if t.partitions[p.id] != p {
		return errDisowned
	}
	for _, h := range holes {
		if err := t.fill(ctx, p, h, stands); err != nil {
			return err
		}
	}
	if _, err := t.compareRollups(ctx, p.id, t.source.rows(p.id, ofEvents), from, end); err != nil {
		return err
	}
	if t.partitions[p.id] != p {
		return errDisowned
	}
	p.open, p.next, p.known = nil, end, true
	if err := t.commitUntil(ctx, map[int32]commitOffset{p.id: {at: end}}); err != nil {
		return err
	}
	t.state.overtaken(p.id, end)
	return nil
}

// storedBeyond returns the range of offsets [first,end) of the batches that
// have rows at next or beyond, or are noted without any; 0 and 0 when there is none. Callers
// hold mu, which is free meanwhile.
func (t *session) storedBeyond(ctx context.Context, id int32, next int64) (first, end int64, err error) {
	return t.span(ctx, fmt.Sprintf(`SELECT min(f) AS lo, max(l) + 1 AS hi FROM (
		SELECT min(_first) AS f, max(%[3]s) AS l FROM events WHERE %[2]s AND _offset >= %[1]d HAVING count() > 0
		UNION ALL SELECT first, %[5]s FROM empty_batches WHERE %[4]s AND last >= %[1]d
	) HAVING count() > 0`, next, t.source.rows(id, ofParts), t.source.last(id, ofParts), t.source.rows(id, ofBatches), t.source.last(id, ofBatches)))
}

// span asks for a range of offsets [lo,hi); 0 and 0 when the answer is empty. Callers hold
// mu, which is free meanwhile.
func (t *session) span(ctx context.Context, query string) (first, end int64, err error) {
	t.mu.Unlock()
	defer t.mu.Lock()
	ctx, cancel := t.patient(ctx)
	defer cancel()
	var lo, hi proto.ColUInt64
	err = t.cfg.ClickHouse.Do(ctx, ch.Query{
		Body:   query,
		Result: proto.Results{{Name: "lo", Data: &lo}, {Name: "hi", Data: &hi}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range lo {
				first, end = int64(lo[i]), int64(hi[i])
			}
			return nil
		},
	})
	return first, end, err
}

// unstored says so when the log has records before from, where the group stands, that no
// batch has: these are not the tables that the group has stored into, or they have lost
// what they had. It is no reason to store nothing more: what is to become of those records
// is for people to say. Callers hold mu, which is free meanwhile.
func (t *session) unstored(ctx context.Context, id int32, from int64) error {
	if from == 0 {
		return nil
	}
	t.mu.Unlock()
	defer t.mu.Lock()
	ctx, cancel := t.patient(ctx)
	defer cancel()
	// In good order the last batch is there. To find where what is stored ends otherwise is
	// a look at that many offsets of all partitions.
	var end int64
	for _, back := range []int64{int64(t.cfg.FlushRows), longest} {
		var err error
		if end, err = t.storedBefore(ctx, id, max(0, from-back)); err != nil || end >= from {
			return err
		}
	}
	start, _, err := t.logRange(ctx, id)
	if err != nil || start >= from {
		return err
	}
	young, err := t.young(ctx, id)
	if err != nil {
		return err
	}
	if lacks := max(start, end, young); lacks < from {
		t.cfg.Logger.Error("the group is past records that are not stored: another CLICKHOUSE_DATABASE, or tables that lost them; edge verify counts them, docs/backup.md brings them back",
			"partition", id, "first", lacks, "last", from-1)
	}
	return nil
}

// storedBefore returns the offset behind the last batch that has rows at from or beyond, or
// is noted without any.
func (t *session) storedBefore(ctx context.Context, id int32, from int64) (end int64, err error) {
	var until proto.ColUInt64
	err = t.cfg.ClickHouse.Do(ctx, ch.Query{
		Body: fmt.Sprintf(`SELECT max(l) AS until FROM (
			SELECT max(%[3]s) + 1 AS l FROM events WHERE %[2]s AND _offset >= %[1]d HAVING count() > 0
			UNION ALL SELECT max(%[5]s) + 1 FROM empty_batches WHERE %[4]s HAVING count() > 0
		)`, from, t.source.rows(id, ofParts), t.source.last(id, ofParts), t.source.rows(id, ofBatches), t.source.last(id, ofBatches)),
		Result: proto.Results{{Name: "until", Data: &until}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range until {
				end = int64(until[i])
			}
			return nil
		},
	})
	return end, err
}

// young returns the first offset that no row of can have expired, as in an audit: 0 without
// a TTL, and beyond all when nothing says which may have.
func (t *session) young(ctx context.Context, id int32) (int64, error) {
	a := Audit{ClickHouse: t.cfg.ClickHouse}
	err := a.readTTL(ctx)
	switch {
	case errors.Is(err, errNoAges):
		return math.MaxInt64, nil
	case err != nil:
		return 0, fmt.Errorf("read the TTL of events: %w", err)
	case a.expiring.IsZero():
		return 0, nil
	}
	offsets, err := kadm.NewClient(t.client).ListOffsetsAfterMilli(ctx, a.expiring.UnixMilli(), t.cfg.Topic)
	if err != nil {
		return 0, fmt.Errorf("list offsets: %w", err)
	}
	o, ok := offsets.Lookup(t.cfg.Topic, id)
	if !ok || o.Err != nil {
		return 0, fmt.Errorf("list offsets of partition %d: %w", id, cmp.Or(o.Err, errNoOffset))
	}
	return o.Offset, nil
}
