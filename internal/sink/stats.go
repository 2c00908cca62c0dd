package sink

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"edge/internal/clickhouse"
	"edge/internal/codec"
	"edge/internal/stat"
)

type stats struct {
	rows, duplicates, lostRecords             stat.Counter
	stored, recovered, disowned, rebalances   stat.Counter
	retried                                   stat.Counter // tries that failed and were not the last
	present, reinserted, repaired             stat.Counter
	insertSeconds, batchRows, endToEndSeconds *stat.Histogram

	mu           sync.Mutex
	deadLetters  map[string]uint64 // by reason
	insertErrors map[string]uint64 // by ClickHouse code
}

func newStats() stats {
	return stats{
		insertSeconds:   stat.NewHistogram(stat.Seconds),
		batchRows:       stat.NewCountHistogram(stat.Rows),
		endToEndSeconds: stat.NewHistogram(stat.Seconds),
		deadLetters:     noLetters(),
		insertErrors:    map[string]uint64{"connection": 0},
	}
}

// noLetters has every reason at 0, so that an alert sees the first letter.
func noLetters() map[string]uint64 {
	m := make(map[string]uint64)
	for _, r := range codec.Reasons {
		m[r.String()] = 0
	}
	return m
}

// count adds a stored flight.
func (s *stats) count(f *flight) {
	s.rows.Add(uint64(f.block.rows()))
	for _, b := range f.batches {
		s.duplicates.Add(uint64(b.duplicates))
	}
	s.batchRows.ObserveN(int64(f.block.rows()), 1)
	now := time.Now().UnixMilli()
	runs(f.block.receivedAt.Data, func(ms proto.DateTime64, n int) {
		s.endToEndSeconds.ObserveN((now-int64(ms))*int64(time.Millisecond), uint64(n))
	})
}

// runs calls f with each value of a column and how often it comes in a row.
func runs[S ~[]E, E comparable](column S, f func(v E, n int)) {
	for from := 0; from < len(column); {
		to := from + 1
		for to < len(column) && column[to] == column[from] {
			to++
		}
		f(column[from], to-from)
		from = to
	}
}

func (s *stats) deadLetter(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadLetters[reason]++
}

func (s *stats) insertError(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	code := "connection"
	if c := clickhouse.Code(err); c != 0 {
		code = strconv.Itoa(c)
	}
	s.insertErrors[code]++
}

// progress is what readiness and the lag metrics know: where each partition
// stands and when anything last moved.
type progress struct {
	mu         sync.Mutex
	partitions map[int32]*position // of this session, or the last one
	member     bool                // of the group: a session has begun
	asked      []int32             // given by the group, and not known yet where it stands with them
	began      time.Time           // when the sink was made
	moved      time.Time           // last stored flight, or when lag began; zero: never a member that knew where it stood
	err        error               // the last failure since then
}

type position struct {
	stored int64     // next offset not yet in ClickHouse
	high   int64     // high watermark
	oldest time.Time // when the broker took the oldest record not stored, as far as seen; zero: there is none

	windowIDs, windowSeconds int64
}

// joined notes that the group has given the sink ids, which may be none: the first time
// in a session they are all it has.
func (p *progress) joined(ids []int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.member {
		maps.DeleteFunc(p.partitions, func(id int32, _ *position) bool { return !slices.Contains(ids, id) })
		p.asked = nil
	}
	p.member = true
	for _, id := range ids {
		if p.partitions[id] == nil {
			p.asked = append(p.asked, id)
		}
	}
	p.beginLocked()
}

func (p *progress) beginLocked() {
	// Joining again and again is no progress.
	if len(p.asked) == 0 && (p.err == nil || p.moved.IsZero()) {
		p.moved = time.Now()
	}
}

// assigned notes where the group stands with a partition. What waits there waits on.
func (p *progress) assigned(id int32, offset int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.partitions == nil {
		p.partitions = make(map[int32]*position)
	}
	offset = max(offset, 0)
	if at := p.partitions[id]; at == nil || at.stored != offset {
		p.partitions[id] = &position{stored: offset, high: offset}
	}
	if i := slices.Index(p.asked, id); i >= 0 {
		p.asked = slices.Delete(p.asked, i, i+1)
		p.beginLocked()
	}
}

// overtaken notes that all before offset turned out to be stored.
func (p *progress) overtaken(id int32, offset int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved = time.Now()
	p.advanceLocked(id, offset)
}

// passed notes that the group is at offset, by another sink's doing: no progress of this one.
func (p *progress) passed(id int32, offset int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advanceLocked(id, offset)
}

func (p *progress) advanceLocked(id int32, offset int64) {
	at := p.partitions[id]
	if at == nil || offset <= at.stored {
		return
	}
	at.stored, at.oldest = offset, time.Time{}
	if at.high > at.stored {
		at.oldest = time.Now() // at least
	}
}

// idle notes a poll without errors: with nothing to store, what failed before
// is over.
func (p *progress) idle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.member && len(p.asked) == 0 && p.lagLocked() == 0 {
		p.moved, p.err = time.Now(), nil
	}
}

// end notes that the log of a partition goes to high.
func (p *progress) end(id int32, high int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.partitions[id]
	if at == nil || high <= at.stored {
		return
	}
	if len(p.asked) == 0 && p.lagLocked() == 0 {
		p.moved = time.Now() // from here on there is something to store
	}
	if at.oldest.IsZero() {
		at.oldest = time.Now() // at least
	}
	at.high = max(at.high, high)
}

// seen notes what a poll brought of a partition: the batch being filled, if
// any, how far the log goes, and what the window covers.
func (p *progress) seen(part *partition, filling *batch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.partitions[part.id]
	if at == nil {
		return
	}
	if len(p.asked) == 0 && p.lagLocked() == 0 {
		p.moved = time.Now() // an idle sink is not a stuck one
	}
	if filling != nil && (at.oldest.IsZero() || filling.oldest.Before(at.oldest)) {
		at.oldest = filling.oldest
	}
	at.high = max(at.high, part.high)
	if part.window != nil {
		ids, seconds := part.window.span()
		at.windowIDs, at.windowSeconds = int64(ids), seconds
	}
}

// stored notes that f is in, and what waits behind it, in order.
func (p *progress) stored(f *flight, waiting []*flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved, p.err = time.Now(), nil
	for id, b := range f.batches {
		at := p.partitions[id]
		if at == nil || f.stands != nil {
			continue // a hole: where the group stands is not moved by it
		}
		at.stored, at.oldest = b.last+1, time.Time{}
		for _, next := range slices.Backward(waiting) {
			if b := next.batches[id]; b != nil {
				at.oldest = b.oldest
			}
		}
		if at.oldest.IsZero() && at.high > at.stored {
			at.oldest = f.batches[id].oldest // at most: what follows has not been seen yet
		}
	}
}

func (p *progress) failed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func (p *progress) forget(id int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.partitions, id)
	p.asked = slices.DeleteFunc(p.asked, func(asked int32) bool { return asked == id })
}

// left notes that the session has ended. Where its partitions stand is still the answer to
// what waits, until the next one.
func (p *progress) left() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.member = false
}

// without returns the partitions that no session has now.
func (p *progress) without() []int32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.member {
		return nil
	}
	return slices.Collect(maps.Keys(p.partitions))
}

func (p *progress) lagLocked() (lag int64) {
	for _, at := range p.partitions {
		lag += max(at.high-at.stored, 0)
	}
	return lag
}

// Stuck returns how long the sink has had something to store, or not known where it stands,
// or has not been a member of the group for the first time, and stored nothing; and the
// error it saw last.
func (s *Sink) Stuck() (time.Duration, error) {
	p := &s.state
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.moved.IsZero():
		return time.Since(p.began), p.err
	case len(p.asked) == 0 && p.lagLocked() == 0 && p.err == nil:
		return 0, nil
	}
	return time.Since(p.moved), p.err
}

// Failed notes what keeps the sink from beginning.
func (s *Sink) Failed(err error) { s.state.failed(err) }

// Ready is nil while the sink makes progress: it has joined the group and knows where it
// stands, and what it has to store gets stored within limit.
func (s *Sink) Ready(limit time.Duration) error {
	stuck, err := s.Stuck()
	s.state.mu.Lock()
	joined := !s.state.moved.IsZero()
	s.state.mu.Unlock()
	switch {
	case !joined:
		return cmp.Or(err, errNotJoined)
	case stuck > limit && err != nil:
		return fmt.Errorf("nothing stored for %s: %w", stuck.Round(time.Second), err)
	case stuck > limit:
		return fmt.Errorf("nothing stored for %s", stuck.Round(time.Second))
	}
	return nil
}

var errNotJoined = fmt.Errorf("has not joined the consumer group yet, or not heard where it stands")

// Describe adds the sink's metrics to set.
func (s *Sink) Describe(set *stat.Set) {
	st := &s.stats
	set.Counter("edge_sink_rows_total", "Rows stored in ClickHouse.", &st.rows)
	set.Counter("edge_sink_duplicates_total", "Records dropped because their event_id was stored before.", &st.duplicates)
	set.Counter("edge_sink_lost_records_total", "Records that retention removed before they were stored.", &st.lostRecords)
	set.Counter("edge_sink_rebalances_total", "Times partitions were taken from this sink.", &st.rebalances)
	set.CounterVec("edge_sink_batches_total", "Flights by outcome: stored at the first try, recovered after one that failed, disowned; retried are the tries that failed and were followed by another.", []string{"outcome"}, func(emit stat.Emit) {
		emit(float64(st.stored.Load()), "stored")
		emit(float64(st.recovered.Load()), "recovered")
		emit(float64(st.disowned.Load()), "disowned")
		emit(float64(st.retried.Load()), "retried")
	})
	set.CounterVec("edge_sink_recoveries_total", "Recoveries by what they found: all rows present, rows reinserted, rollups repaired.", []string{"action"}, func(emit stat.Emit) {
		emit(float64(st.present.Load()), "present")
		emit(float64(st.reinserted.Load()), "reinserted")
		emit(float64(st.repaired.Load()), "rollup_rebuilt")
	})
	set.CounterVec("edge_dlq_records_total", "Records moved to the dead-letter topic by reason.", []string{"reason"}, s.eachLocked(&st.deadLetters))
	set.CounterVec("edge_sink_insert_errors_total", "Failed inserts by ClickHouse error code.", []string{"code"}, s.eachLocked(&st.insertErrors))
	set.Histogram("edge_sink_insert_seconds", "From the first try of an insert to its rows being stored.", st.insertSeconds)
	set.Histogram("edge_sink_batch_rows", "Rows per insert.", st.batchRows)
	set.Histogram("edge_end_to_end_seconds", "From accepting an event to it being queryable.", st.endToEndSeconds)
	set.GaugeVec("edge_sink_lag_records", "Records in the log and not yet in ClickHouse.", []string{"partition"},
		s.eachPartition(func(p *position) float64 { return float64(max(p.high-p.stored, 0)) }))
	set.GaugeVec("edge_sink_oldest_seconds", "Age of the oldest record not yet in ClickHouse.", []string{"partition"},
		s.eachPartition(func(p *position) float64 {
			if p.oldest.IsZero() {
				return 0
			}
			return max(time.Since(p.oldest).Seconds(), 0)
		}))
	set.GaugeVec("edge_retention_headroom_ratio", "Part of the topic's retention left before the oldest record not yet in ClickHouse is removed.", []string{"partition"},
		s.eachPartition(func(p *position) float64 {
			if p.oldest.IsZero() || s.cfg.Retention <= 0 {
				return 1
			}
			return max(1-time.Since(p.oldest).Seconds()/s.cfg.Retention.Seconds(), 0)
		}))
	set.GaugeVec("edge_dedup_ids", "Event ids the deduplication window holds.", []string{"partition"},
		s.eachPartition(func(p *position) float64 { return float64(p.windowIDs) }))
	set.GaugeVec("edge_dedup_window_seconds", "How far back the deduplication window reaches now.", []string{"partition"},
		s.eachPartition(func(p *position) float64 { return float64(p.windowSeconds) }))
	set.Gauge("edge_sink_stuck_seconds", "Time since the last progress while there is something to store, or while the sink has not joined its group or not heard where its partitions stand.", func() float64 {
		stuck, _ := s.Stuck()
		return stuck.Seconds()
	})
}

func (s *Sink) eachLocked(counts *map[string]uint64) func(stat.Emit) {
	return func(emit stat.Emit) {
		s.stats.mu.Lock()
		defer s.stats.mu.Unlock()
		for k, n := range *counts {
			emit(float64(n), k)
		}
	}
}

func (s *Sink) eachPartition(value func(*position) float64) func(stat.Emit) {
	return func(emit stat.Emit) {
		s.state.mu.Lock()
		defer s.state.mu.Unlock()
		for _, id := range slices.Sorted(maps.Keys(s.state.partitions)) {
			emit(value(s.state.partitions[id]), strconv.Itoa(int(id)))
		}
	}
}
