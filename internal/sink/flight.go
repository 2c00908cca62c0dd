package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/codec"
	"edge/internal/kafka"
)

// batch is what a flight carries of one partition: every offset of
// [first,last] is a row, a duplicate or a dead letter.
type batch struct {
	first, last            int64
	rows, duplicates, dead int
	oldest                 time.Time // when the broker took its first record
}

// flight is a block on its way into ClickHouse and the batches it is made of.
type flight struct {
	block   *block
	batches map[int32]*batch
	dead    []*kgo.Record // dead letters, not yet written
	recover bool          // declared earlier: look at the data first
	records int           // taken
	decoder codec.Decoder
	event   codec.Event

	// Of a hole that is filled: the group's offsets, which are past it and stay there.
	stands map[int32]commitOffset

	// The runway's, as recover is once it flies.
	ahead            *flight         // leaves and lands before it
	later            map[int32]plans // found behind its own by a recovery
	declared, passed bool            // its plan is in a commit, or being committed; it is past

	began  time.Time     // its first try
	tried  chan struct{} // closed when that has ended
	landed chan struct{} // closed when the flight is stored or given up
	err    error         // why it was given up; read after landed
}

func newFlight(b *block) *flight {
	return &flight{block: b, batches: make(map[int32]*batch), tried: make(chan struct{}), landed: make(chan struct{})}
}

func (f *flight) empty() bool { return len(f.batches) == 0 }

func (f *flight) full(c *Config) bool {
	return f.block.rows()+len(f.dead) >= c.FlushRows || f.block.bytes >= c.FlushBytes
}

// filled is the part of f that is full.
func (f *flight) filled(c *Config) float64 {
	return max(float64(f.block.rows())/float64(c.FlushRows), float64(f.block.bytes)/float64(c.FlushBytes))
}

// take adds one record: as a row, as a duplicate that w has seen before, or as
// a dead letter when it is no event.
func (f *flight) take(r *kgo.Record, w *window) {
	b := f.upTo(r.Partition, r.Offset, r.Timestamp)
	f.records++
	f.block.bytes += len(r.Key) + len(r.Value)
	if err := f.decoder.DecodeRecord(r.Value, &f.event); err != nil {
		f.dead = append(f.dead, deadLetter(r, err))
		b.dead++
		return
	}
	duplicate := false
	switch {
	case w == nil:
	case kafka.HasAssignedID(r): // nobody sends that again, but a log put back from a copy has it again
		duplicate = w.stored(f.event.ID, r.Offset, f.event.ReceivedAt)
	default:
		duplicate = w.seen(f.event.ID, r.Offset, f.event.ReceivedAt)
	}
	if duplicate {
		b.duplicates++
		return
	}
	f.row(b, &f.event, r.Partition, r.Offset)
}

// upTo returns the batch of partition, which ends with offset from now on.
func (f *flight) upTo(partition int32, offset int64, oldest time.Time) *batch {
	b := f.batches[partition]
	if b == nil {
		b = &batch{first: offset, oldest: oldest}
		f.batches[partition] = b
	}
	b.last = offset
	return b
}

func (f *flight) row(b *batch, ev *codec.Event, partition int32, offset int64) {
	f.block.append(ev, partition, offset)
	b.rows++
}

// store brings f from FILLING to STORED. It returns nil when the group's
// offsets are past f, and an error only when the session is over.
func (t *session) store(ctx context.Context, f *flight) (err error) {
	defer func() {
		if err != nil {
			t.stats.disowned.Inc()
		}
	}()
	outcome := &t.stats.stored
	if err := t.try(ctx, f); err != nil {
		return err
	}
	took := time.Since(f.began)
	if err := t.runway.turn(ctx, f); err != nil {
		return errDisowned
	}
	if f.recover {
		outcome = &t.stats.recovered
		if err := t.runway.clear(ctx, f); err != nil {
			return errDisowned
		}
		if err := t.recover(ctx, f); err != nil {
			return err
		}
		took = time.Since(f.began)
	}
	t.stats.insertSeconds.Observe(took)
	if err := t.recordEmpty(ctx, f); err != nil {
		return err
	}
	if f.stands == nil {
		if err := t.finish(ctx, f); err != nil {
			return err
		}
	}
	outcome.Inc()
	t.stats.count(f)
	return nil
}

// try inserts f for the first time, unless it has to recover from the start. When that
// fails it has to recover, too.
func (t *session) try(ctx context.Context, f *flight) error {
	defer close(f.tried)
	f.block.seal(t.source.now, f.batches)
	err := t.bury(ctx, f)
	f.began = time.Now()
	if err != nil || f.recover {
		return err
	}
	err = t.insert(ctx, f)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errDisowned) || ctx.Err() != nil:
		return errDisowned
	}
	t.failedInsert(f, err)
	t.runway.fail(f)
	return nil
}

// insert declares the plan and sends the block, in the order that a successor
// depends on: ClickHouse registers the query, then the coordinator accepts the
// plan, then the rows go out.
func (t *session) insert(ctx context.Context, f *flight) error {
	empty := f.block.rows() == 0
	if !empty {
		t.yieldToRepair(ctx)
		t.lookForRepairs()
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.InsertTimeout)
	defer cancel()
	if empty { // duplicates and dead letters only: the note is cut as a successor cuts the log
		return t.declare(ctx, f)
	}
	var planErr error
	err := t.send(ctx, f, func(ctx context.Context) error {
		planErr = t.declare(ctx, f)
		return planErr
	})
	if planErr != nil {
		return planErr
	}
	return err
}

// send runs one INSERT of f's block. before runs once the server has taken the
// query and before the first row is sent.
//
// From then on ctx ends nothing; the session's end and patience do. Hanging up
// on rows that are sent does not unsend them: a server that stood still may
// read them later, and the embedded one lists an insert only when it has read
// it all, so recovery would see neither rows nor query and send them again.
// How long the insert itself may take is the server's max_execution_time.
func (t *session) send(ctx context.Context, f *flight, before func(context.Context) error) error {
	if conn := t.inserts.take(); conn != nil {
		taken, err := t.sendOn(ctx, conn, headerPatience, f, before)
		if err == nil || taken || ctx.Err() != nil || ch.IsException(err) {
			return err
		}
		// Nothing was declared and no row sent: the server has closed the
		// connection long ago, or what lies between has forgotten it.
	}
	conn, err := t.cfg.ClickHouse.Dial(ctx)
	if err != nil {
		return err
	}
	_, err = t.sendOn(ctx, conn, t.cfg.InsertTimeout, f, before)
	return err
}

// headerPatience is how long a server may be silent on a kept connection before
// another is tried; as long as a dial may take.
const headerPatience = 5 * time.Second

// sendOn is send on one connection, and tells whether the server took the query.
func (t *session) sendOn(ctx context.Context, conn *ch.Client, untilTaken time.Duration, f *flight, before func(context.Context) error) (taken bool, err error) {
	work, cancel := context.WithCancel(t.ctx)
	defer cancel()
	ended := context.AfterFunc(ctx, cancel)
	defer ended()
	silent := time.AfterFunc(untilTaken, cancel)
	defer silent.Stop()
	patience := time.AfterFunc(10*t.cfg.InsertTimeout, cancel)
	defer patience.Stop()
	rows := newPieces(f.block, t.cfg.ClickHouse.Compressed())
	input := rows.input()
	declared := false
	err = conn.Do(work, ch.Query{
		Body:     input.Into("events"),
		Input:    input,
		Settings: t.insertSettings(f),
		OnInput: func(ctx context.Context) error {
			if !rows.taken {
				<-ctx.Done() // by the error that ended the connection
				return ctx.Err()
			}
			if !declared {
				silent.Stop()
				if err := before(ctx); err != nil {
					return err
				}
				if !ended() {
					return ctx.Err()
				}
				declared = true
			}
			if !rows.more() {
				return io.EOF // all sent: an empty block ends the insert
			}
			return nil
		},
	})
	if err != nil {
		// The connection ends with an insert that failed, so that nothing of it can
		// reach the server later.
		_ = conn.Close()
		return rows.taken, err
	}
	t.inserts.put(conn)
	return true, nil
}

// recordEmpty notes the batches of f that left no row, for the audit. It comes
// before the commit that passes them.
func (t *session) recordEmpty(ctx context.Context, f *flight) error {
	var values []string
	for _, id := range slices.Sorted(maps.Keys(f.batches)) {
		if b := f.batches[id]; b.rows == 0 {
			values = append(values, fmt.Sprintf("(%d, %d, %d, %d, %d, %d, now())", t.source.now, id, b.first, b.last, b.duplicates, b.dead))
		}
	}
	for try := 0; len(values) > 0; try++ {
		err := t.cfg.ClickHouse.Exec(ctx, "INSERT INTO empty_batches VALUES "+strings.Join(values, ", "))
		if err == nil {
			return nil
		}
		t.failedInsert(f, err)
		if pause(ctx, try) != nil {
			return errDisowned
		}
	}
	return nil
}

// declare commits f's plan, or where the group stands if it is past f. The coordinator
// accepts that from a member of the generation only, and is asked again only if it is
// away. (Which member owns what it does not ask; who gives a partition up in good order
// lands first.)
func (t *session) declare(ctx context.Context, f *flight) error {
	t.runway.commits.Lock()
	defer t.runway.commits.Unlock()
	if f.stands != nil {
		return t.commitUntil(ctx, f.stands)
	}
	return t.commitUntil(ctx, t.runway.declare(f, t.source.now))
}

// finish commits past f.
func (t *session) finish(ctx context.Context, f *flight) error {
	t.runway.commits.Lock()
	defer t.runway.commits.Unlock()
	return t.commitUntil(ctx, t.runway.pass(f, t.source.now))
}

// commitUntil commits until it is accepted, refused (errDisowned) or ctx ends.
func (t *session) commitUntil(ctx context.Context, offsets map[int32]commitOffset) error {
	for try := 0; ; try++ {
		err := t.commit(ctx, offsets)
		switch {
		case err == nil:
			return nil
		case t.ctx.Err() != nil, refused(err):
			t.cfg.Logger.Warn("commit refused", "err", err)
			t.lost(errDisowned) // the next flight's commit must not come first
			return errDisowned
		case errors.Is(err, kerr.UnknownTopicID):
			t.recreated(err)
			return errDisowned
		}
		t.state.failed(err)
		t.cfg.Logger.Warn("commit", "err", err, "attempt", try+1)
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
}

// pause waits before attempt try+1: 50 ms doubling to 5 s.
func pause(ctx context.Context, try int) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(min(50*time.Millisecond<<min(try, 10), 5*time.Second)):
		return nil
	}
}

// insertSettings are what an insert depends on; none is left to the server's
// defaults, which changed three times in 2026. prepare has checked that the
// server knows them.
func (t *session) insertSettings(f *flight) []ch.Setting {
	settings := make([]ch.Setting, 0, len(t.source.settings)+2)
	for _, s := range t.source.settings {
		settings = append(settings, ch.Setting{Key: s[0], Value: s[1], Important: true})
	}
	return append(settings,
		ch.Setting{Key: "max_execution_time", Value: fmt.Sprint(int(t.cfg.InsertTimeout.Seconds())), Important: true},
		ch.Setting{Key: "log_comment", Value: t.comment(f), Important: true})
}

// comment marks f's queries on the server: "edge/<src>/,0,3," names the log and
// the partitions, so that a successor of any of them finds the query.
func (t *session) comment(f *flight) string {
	var b strings.Builder
	fmt.Fprintf(&b, "edge/%d/,", t.source.now)
	for _, id := range slices.Sorted(maps.Keys(f.batches)) {
		fmt.Fprintf(&b, "%d,", id)
	}
	return b.String()
}

func (t *session) failedInsert(f *flight, err error) {
	t.state.failed(fmt.Errorf("insert: %w", err))
	t.stats.insertError(err)
	t.stats.retried.Inc()
	t.cfg.Logger.Warn("insert failed, looking at the data", "rows", f.block.rows(), "batches", f.ranges(), "err", err)
}

// ranges is f for a log line: "0:[100,199] 3:[7,9]".
func (f *flight) ranges() string {
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(f.batches)) {
		fmt.Fprintf(&b, "%d:[%d,%d] ", id, f.batches[id].first, f.batches[id].last)
	}
	return strings.TrimSpace(b.String())
}
