package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/clickhouse"
)

// recoverOpen turns the plans found in the group's offsets into a flight that starts with
// RECOVERING, the first of each partition or of as many as fill a block: nothing is taken
// of one before all of its plans have left. Callers hold mu.
func (t *session) recoverOpen() {
	if !t.open() || t.unasked() || t.runway.recovers() {
		return
	}
	land := func() error {
		landing, end := context.WithTimeout(t.ctx, t.cfg.RevokeTimeout)
		defer end()
		return t.land(landing)
	}
	if err := land(); err != nil {
		t.lost(fmt.Errorf("declared batches wait for the insert under way: %w", err))
		return
	}
	next, of := make(map[int32]plan), make(map[int32]*partition)
	for id, p := range t.partitions {
		if len(p.open) > 0 && p.asked { // if not, it was assigned while others landed: begin comes first
			next[id], of[id] = p.open[0], p
		}
	}
	known, err := t.decided(t.ctx, next)
	if err != nil {
		t.lost(fmt.Errorf("read what is stored of declared batches: %w", err))
		return
	}
	if err := land(); err != nil { // what a rebalance has sent off while mu was free
		t.lost(fmt.Errorf("declared batches wait for the insert under way: %w", err))
		return
	}
	// One batch may take its time; more only what a rebalance can wait for, see there.
	ctx, cancel := t.limited(t.ctx)
	defer cancel()
	soon := time.Now().Add(t.cfg.SessionTimeout / 2)
	f := newFlight(newBlock())
	f.recover, f.later = true, make(map[int32]plans)
	for id, first := range next {
		if f.full(&t.cfg) || !f.empty() && time.Now().After(soon) {
			break
		}
		p := of[id]
		if t.partitions[id] != p { // given up meanwhile
			continue
		}
		if _, err := t.retake(ctx, f, first, p, known[id], math.MaxInt); err != nil {
			t.lost(fmt.Errorf("read declared batch %d:[%d,%d] again: %w", id, first.first, first.last, err))
			return
		}
		p.open = p.open[1:]
		f.later[id] = p.open
	}
	if f.empty() {
		return
	}
	t.cfg.Logger.Info("declared batches found, recovering", "batches", f.ranges(), "rows", f.block.rows())
	t.flyAlone(f)
}

// open tells whether plans are left to be recovered. Callers hold mu.
func (t *session) open() bool {
	for _, p := range t.partitions {
		if len(p.open) > 0 {
			return true
		}
	}
	return false
}

// maxRereadBytes is half of what the columns of a block can count.
const maxRereadBytes = 1 << 31

// reread takes the offsets of plan p from the log into f, or the first of them, until there
// are most bytes of records, and returns the last; the window of the partition says which
// are duplicates.
func (t *session) reread(ctx context.Context, f *flight, p plan, of *partition, most int) (last int64, err error) {
	id, w := of.id, of.window
	client, err := t.cfg.Kafka.Client(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{t.cfg.Topic: {id: kgo.NewOffset().At(p.first)}}),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxPartitionBytes(8<<20),
		kgo.KeepControlRecords(),
	)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	start, end, err := t.logRange(ctx, id)
	if err != nil {
		return 0, err
	}
	if end <= p.last && end > start {
		return 0, fmt.Errorf("the log ends at offset %d: it has lost its tail", end)
	}
	next, before := p.first, f.block.bytes
	if start > p.last {
		// Nothing of it is left, and nothing may come after it to be read.
		t.lostRange(id, p.first, p.last)
		next = p.last + 1
	}
	for next <= p.last {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return 0, err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			// Retention was faster than the sink: what is gone is gone, and says
			// so here and in the audit.
			if upTo := min(r.Offset, p.last+1); upTo > next {
				t.lostRange(id, next, upTo-1)
			}
			if r.Offset > p.last {
				next = max(next, r.Offset)
				return
			}
			f.take(r, w)
			next = r.Offset + 1
			if f.block.bytes-before >= most {
				p.last = r.Offset
			}
		})
		if f.block.bytes > maxRereadBytes {
			return 0, fmt.Errorf("more than %d bytes of records at once: lower FLUSH_ROWS, of which missing rows are read as many", maxRereadBytes)
		}
	}
	// The batch is the declared one, whatever was left of it.
	if b := f.batches[id]; b != nil {
		b.first, b.last = p.first, p.last
	} else {
		f.batches[id] = &batch{first: p.first, last: p.last}
	}
	return p.last, nil
}

// logRange returns the offsets [start,end) that the log of a partition has.
func (t *session) logRange(ctx context.Context, id int32) (start, end int64, err error) {
	admin := kadm.NewClient(t.client)
	for _, ask := range []struct {
		list func(context.Context, ...string) (kadm.ListedOffsets, error)
		to   *int64
	}{{admin.ListStartOffsets, &start}, {admin.ListEndOffsets, &end}} {
		offsets, err := ask.list(ctx, t.cfg.Topic)
		if err != nil {
			return 0, 0, fmt.Errorf("list offsets: %w", err)
		}
		o, ok := offsets.Lookup(t.cfg.Topic, id)
		if !ok || o.Err != nil {
			return 0, 0, fmt.Errorf("list offsets of partition %d: %w", id, cmp.Or(o.Err, errNoOffset))
		}
		*ask.to = o.Offset
	}
	return start, end, nil
}

var errNoOffset = errors.New("no answer for it")

// recover makes f's rows be in events and in every rollup exactly once,
// whatever state an earlier attempt left, and repeats until it has seen it.
// Every step may be killed and run again:
//
//  1. No insert of these partitions runs any more: they are killed and awaited.
//  2. The offsets that events holds are read; the rows of the others are
//     inserted. One insert makes one part per month, which appears by one
//     rename, so after a crash each month's rows are there or not.
//  3. The rollups of the touched hours are compared, minutes with events and the
//     others with finer ones, and the difference is inserted. Distinct-user states
//     are inserted anew: merging a user in twice changes nothing.
func (t *session) recover(ctx context.Context, f *flight) error {
	limit := 10 * t.cfg.InsertTimeout
	for try := 0; ; try++ {
		// Comparing hours of raw rows may take longer than one insert may, and begins
		// anew with each try.
		begun := time.Now()
		err := t.recoverOnce(ctx, f, limit)
		if time.Since(begun) >= limit {
			limit = min(2*limit, 10240*t.cfg.InsertTimeout)
		}
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || errors.Is(err, errDisowned) {
			return errDisowned
		}
		t.failedInsert(f, fmt.Errorf("recover: %w", err))
		if err := pause(ctx, try); err != nil {
			return errDisowned
		}
	}
}

func (t *session) recoverOnce(ctx context.Context, f *flight, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := t.quiesce(ctx, slices.Collect(maps.Keys(f.batches))); err != nil {
		return fmt.Errorf("end earlier inserts: %w", err)
	}
	// The plan is declared (again): a first attempt may have failed before it.
	if err := t.declare(ctx, f); err != nil {
		return err
	}
	if f.block.rows() == 0 {
		return nil
	}
	expiry, err := t.cfg.ClickHouse.ReadExpiry(ctx)
	if err != nil {
		return fmt.Errorf("read the TTL of events: %w", err)
	}
	missing, err := t.missing(ctx, f, expiry)
	if err != nil {
		return fmt.Errorf("read stored offsets: %w", err)
	}
	action := &t.stats.present
	if n := missing.block.rows(); n > 0 {
		action = &t.stats.reinserted
		err := t.send(ctx, missing, func(ctx context.Context) error {
			// Once more: what is missing may have been seen long ago, and a
			// successor may have come and gone since.
			return t.declare(ctx, f)
		})
		if err != nil {
			return fmt.Errorf("insert %d missing rows: %w", n, err)
		}
	}
	repaired, err := t.repairRollups(ctx, f, t.touches(f).since(oldest(expiry)))
	if err != nil {
		return fmt.Errorf("repair rollups: %w", err)
	}
	action.Inc()
	if repaired {
		t.stats.repaired.Inc()
	}
	t.cfg.Logger.Info("batches recovered", "batches", f.ranges(), "rows", f.block.rows(),
		"reinserted", missing.block.rows(), "rollups_repaired", repaired)
	return nil
}

// quiesce returns when no insert into this database that names one of the partitions runs:
// another group may store the same log in another one. The KILL
// comes first: the embedded engine lists an insert only when it has all rows, and
// has KILL QUERY reach the others.
func (t *session) quiesce(ctx context.Context, ids []int32) error {
	var named []string
	for _, id := range slices.Sorted(slices.Values(ids)) {
		named = append(named, fmt.Sprint(id))
	}
	where := fmt.Sprintf("match(Settings['log_comment'], '^edge/%d/.*,(%s),') AND current_database = currentDatabase()", t.source.now, strings.Join(named, "|"))
	for try := 0; ; try++ {
		if err := t.cfg.ClickHouse.Exec(ctx, "KILL QUERY WHERE "+where+" ASYNC"); err != nil {
			return err
		}
		running, err := t.cfg.ClickHouse.Strings(ctx, "SELECT query_id FROM system.processes WHERE "+where)
		if err != nil || len(running) == 0 {
			return err
		}
		t.cfg.Logger.Warn("ending inserts of an earlier owner", "queries", running)
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
}

// missing returns a flight with the rows of f that events does not hold, of those that no
// TTL can have taken: days may count them.
func (t *session) missing(ctx context.Context, f *flight, expiry clickhouse.Expiry) (*flight, error) {
	stored := make(map[[2]uint64]struct{})
	for id, b := range f.batches {
		if b.rows == 0 {
			continue
		}
		var offset proto.ColUInt64
		err := t.cfg.ClickHouse.Do(ctx, ch.Query{
			Body: fmt.Sprintf("SELECT _offset FROM events WHERE %s AND _offset BETWEEN %d AND %d AND toYYYYMM(ts) IN (%s)",
				t.source.rows(id, ofEvents), b.first, b.last, f.block.months()),
			Result: proto.Results{{Name: "_offset", Data: &offset}},
			OnResult: func(context.Context, proto.Block) error {
				for _, o := range offset {
					key := [2]uint64{uint64(id), o}
					if _, twice := stored[key]; twice {
						return fmt.Errorf("BUG: offset %d of partition %d is stored twice", o, id)
					}
					stored[key] = struct{}{}
				}
				return nil
			},
		})
		if err != nil {
			return nil, err
		}
	}
	out := newFlight(newBlock())
	out.batches = f.batches
	expired := 0
	for i := range f.block.rows() {
		switch _, ok := stored[[2]uint64{f.block.part.row(i), f.block.offset[i]}]; {
		case ok:
		case f.block.expired(i, expiry):
			expired++
		default:
			out.block.copyRow(f.block, i)
		}
	}
	if expired > 0 {
		t.cfg.Logger.Info("rows that a TTL has taken, or would, are not inserted again", "batches", f.ranges(), "rows", expired)
	}
	out.block.seal(t.source.now, f.batches)
	return out, nil
}
