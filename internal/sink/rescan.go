package sink

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"edge/internal/clickhouse"
)

// rescan fills the holes that a power cut left in events, partition by
// partition, from what the log still has. A hole is a range of offsets below
// the committed one that no batch covers, or a batch with fewer rows than its
// rows say it had. Either is recovered like a declared plan, except that the
// group's offsets are past it already. Callers hold mu.
func (t *session) rescan(ctx context.Context) error {
	if t.cfg.Rescan == nil || t.rescanned != nil && len(t.rescanned) >= t.source.partitions {
		return nil
	}
	for id := range maps.Clone(t.partitions) { // land lets go of mu
		p := t.partitions[id]
		if p == nil || t.rescanned[id] {
			continue
		}
		if err := t.land(ctx); err != nil {
			return err
		}
		err := t.rescanPartition(ctx, p)
		if t.partitions[p.id] != p { // given up meanwhile: its next owner compares it
			continue
		}
		if err != nil {
			return fmt.Errorf("partition %d: %w", p.id, err)
		}
		if t.rescanned == nil {
			t.rescanned = make(map[int32]bool)
		}
		t.rescanned[p.id] = true
	}
	if len(t.rescanned) == t.source.partitions {
		t.cfg.Rescan()
	}
	return nil
}

func (t *session) rescanPartition(ctx context.Context, p *partition) error {
	started := time.Now()
	stands := p.stands()
	end := stands.at
	first, _, err := t.logRange(ctx, p.id)
	if err != nil {
		return err
	}
	if t.partitions[p.id] != p { // see rescan
		return errDisowned
	}
	holes, err := t.holes(ctx, p.id, first, end)
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
	repaired, err := t.compareRollups(ctx, p.id, t.source.rows(p.id, ofEvents), first, end)
	if err != nil {
		return err
	}
	lost, err := t.compareLost(ctx, p.id)
	if err != nil {
		return err
	}
	repaired = repaired || lost
	t.cfg.Logger.Info("log compared with what is stored", "partition", p.id, "first", first, "last", end-1,
		"holes", len(holes), "rollups_repaired", repaired, "took_ms", time.Since(started).Milliseconds())
	return nil
}

// holes returns what of [from,end) is not in events, as plans of at most a
// block each: damaged batches as they were, the rest cut anew. Callers hold mu, which is
// free meanwhile: that is a look at all batches there are. What earlier lives of the log
// have stored of it is no hole. Of a batch of theirs that the log has lost the end of the
// rows of that count, too; when it is damaged, the window says what belongs in the rest.
func (t *session) holes(ctx context.Context, id int32, from, end int64) ([]plan, error) {
	t.mu.Unlock()
	defer t.mu.Lock()
	ctx, cancel := t.patient(ctx)
	defer cancel()
	var out []plan
	next := from
	gap := func(to int64) {
		for next < to {
			last := min(next+int64(t.cfg.FlushRows), to) - 1
			out = append(out, plan{t.source.now, next, last})
			next = last + 1
		}
	}
	var first, last, rows, said proto.ColUInt64
	err := t.cfg.ClickHouse.Do(ctx, ch.Query{
		Body: fmt.Sprintf(`SELECT f, max(l) AS l, sum(c) AS c, max(said) AS said FROM (
			SELECT _first AS f, max(%[3]s) AS l, count() AS c, toUInt64(max(_rows)) AS said FROM events
			WHERE %[1]s AND _offset >= %[2]d GROUP BY f
			UNION ALL SELECT first AS f, max(%[5]s) AS l, toUInt64(0), toUInt64(0) FROM empty_batches
			WHERE %[4]s AND last >= %[2]d GROUP BY f
		) GROUP BY f ORDER BY f`, t.source.rows(id, ofParts), from, t.source.last(id, ofParts),
			t.source.rows(id, ofBatches), t.source.last(id, ofBatches)),
		Result: proto.Results{{Name: "f", Data: &first}, {Name: "l", Data: &last}, {Name: "c", Data: &rows}, {Name: "said", Data: &said}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range first {
				f, l := int64(first[i]), int64(last[i])
				if f >= end {
					break
				}
				gap(min(f, end))
				// A batch that began before the log does is whole or beyond help.
				if rows[i] < said[i] && f >= from {
					out = append(out, plan{t.source.now, f, l})
				}
				next = max(next, l+1)
			}
			return nil
		},
	})
	gap(end)
	return out, err
}

// fill recovers one hole of a partition, a block at a time, and waits until it is stored.
// The group stands behind it, and goes on standing there. Callers hold mu.
func (t *session) fill(ctx context.Context, p *partition, hole plan, stands commitOffset) error {
	if err := t.land(ctx); err != nil { // what a rebalance has sent off since mu was free
		return err
	}
	for hole.first <= hole.last {
		last, err := t.fillFirst(ctx, p, hole, stands)
		if err != nil {
			return err
		}
		hole.first = last + 1
	}
	return nil
}

// fillFirst is fill for as much as a block takes; it returns the last offset of that.
func (t *session) fillFirst(ctx context.Context, p *partition, hole plan, stands commitOffset) (last int64, err error) {
	id := p.id
	if t.partitions[id] != p {
		return 0, errDisowned // while the one before landed, in good order: we are a member still
	}
	of := &partition{id: id}
	if t.cfg.DedupIDs > 0 {
		of.window = t.newWindow()
		if err := t.loadWindow(ctx, id, hole.first, of.window); err != nil {
			return 0, err
		}
	}
	known, err := t.decided(ctx, map[int32]plan{id: hole})
	if err != nil {
		return 0, err
	}
	if err := t.land(ctx); err != nil { // as in fill
		return 0, err
	}
	if t.partitions[id] != p {
		return 0, errDisowned
	}
	f := newFlight(newBlock())
	f.recover, f.stands = true, map[int32]commitOffset{id: stands}
	asking, end := t.limited(ctx) // one block at most
	defer end()
	if last, err = t.retake(asking, f, hole, of, known[id], t.cfg.FlushBytes); err != nil {
		return 0, err
	}
	t.cfg.Logger.Warn("stored rows are missing, inserting them again", "batches", f.ranges(), "rows", f.block.rows())
	t.flyAlone(f)
	return last, t.land(ctx)
}

// hours returns the hours that rows, a condition on events, have times in, and the TTL.
func (t *session) hours(ctx context.Context, rows string) (hours []int64, expiry clickhouse.Expiry, err error) {
	ctx, cancel := t.patient(ctx)
	defer cancel()
	hours, err = unixSeconds(ctx, t.cfg.ClickHouse, "SELECT DISTINCT toString(toUnixTimestamp(toStartOfHour(ts))) AS s FROM events WHERE "+rows)
	if err != nil || len(hours) == 0 {
		return nil, expiry, err
	}
	if expiry, err = t.cfg.ClickHouse.ReadExpiry(ctx); err != nil {
		return nil, expiry, fmt.Errorf("read the TTL of events: %w", err)
	}
	return hours, expiry, nil
}

// compareRollups corrects the rollups over everything that the rows of
// [first,end) touch, of those that a condition on events selects: a rollup's part may be
// lost although the row's is not. Callers hold mu, which is free meanwhile: it may take many
// times what a rebalance waits for.
func (t *session) compareRollups(ctx context.Context, id int32, of string, first, end int64) (bool, error) {
	if first >= end {
		return false, nil
	}
	t.mu.Unlock()
	defer t.mu.Lock()
	f := newFlight(newBlock())
	f.batches[id] = &batch{first: first, last: end - 1}
	rows := func(first, end int64) string {
		return fmt.Sprintf("%s AND _offset BETWEEN %d AND %d", of, first, end-1)
	}
	hours, expiry, err := t.hours(ctx, rows(first, end))
	if err != nil || len(hours) == 0 {
		return false, err
	}
	w := touching(hours)
	w.named = "1"
	repaired, err := t.repairCounts(ctx, f, w.since(oldest(expiry)))
	if err != nil {
		return repaired, err
	}
	// The states of a few blocks at a time: each is one insert, and ends as soon.
	for some := int64(10 * t.cfg.FlushRows); first < end; first += some {
		if err := t.insertStates(ctx, f, rows(first, min(first+some, end))); err != nil {
			return repaired, err
		}
	}
	return repaired, nil
}

// compareLost corrects the rollups over what earlier lives have stored of records that the
// log has lost: an insert that was under way then is no plan of this life, and in no hole.
// Callers hold mu, which is free meanwhile.
func (t *session) compareLost(ctx context.Context, id int32) (bool, error) {
	repaired := false
	for _, l := range t.source.ended() {
		if _, ok := l.until[id]; !ok {
			continue
		}
		first, end, err := t.span(ctx, fmt.Sprintf("SELECT min(_offset) AS lo, max(_offset) + 1 AS hi FROM events WHERE %s HAVING count() > 0", l.gone(id)))
		if err != nil {
			return repaired, err
		}
		differed, err := t.compareRollups(ctx, id, l.gone(id), first, end)
		if repaired = repaired || differed; err != nil {
			return repaired, err
		}
	}
	return repaired, nil
}
