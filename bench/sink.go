//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"edge/bench/child"
	"edge/bench/naive"
	"edge/bench/rival"
)

const blockRows = 100_000

// The sinks, and the blocks that no sink can be faster than: one at a time, as a client
// inserts, and as many side by side as our sink does. CLICKHOUSE_COMPRESS is for a
// network between the sink and ClickHouse; here there is none. Ids that clients made are
// random, and cost the inserts of ready blocks more, too.
const (
	oursPlain  = "edge sink"
	oursSingle = "edge sink, FLUSH_INSERTS=1"
	oursPacked = "edge sink, compressing"
	oursByID   = "edge sink, event_ids"
	naiveSink  = "naive sink"
	readyOne   = "ch-go, ready blocks"
	readyTwo   = "ch-go, ready blocks, two at a time"
	readyByID  = "ch-go, ready blocks, event_ids"
)

// sinkStage empties a topic that was filled before the clock started, into
// tables with all their views, and sets it beside ready blocks inserted into the
// same tables: no sink can be faster than its inserts.
func sinkStage(b *bench, s *section, f *fleet) error {
	s.Title = fmt.Sprintf("%d records from Kafka into events and all rollups", b.o.rows)
	eng, err := f.engine()
	if err != nil {
		return err
	}
	st := &sinkRuns{b: b, f: f, engine: eng}
	if st.plain, st.ready, err = b.filledTopic(f, newGenerated(4), b.o.rows); err != nil {
		return err
	}
	withIDs := newGenerated(4)
	withIDs.withID = true
	if st.withIDs, st.readyIDs, err = b.filledTopic(f, withIDs, b.o.rows); err != nil {
		return err
	}
	// Full after half of the rows: from there each id that comes drives one out.
	remembered := max(b.o.rows/2, 1)
	limit := func() (sample, error) { return st.limit(readyOne, st.ready, 1) }
	two := func() (sample, error) { return st.limit(readyTwo, st.ready, 2) }
	limitByID := func() (sample, error) { return st.limit(readyByID, st.readyIDs, 1) }
	plain := func() (sample, error) { return st.ours(oursPlain, st.plain) }
	single := func() (sample, error) { return st.ours(oursSingle, st.plain, "FLUSH_INSERTS=1") }
	packed := func() (sample, error) { return st.ours(oursPacked, st.plain, "CLICKHOUSE_COMPRESS=true") }
	byID := func() (sample, error) {
		return st.ours(oursByID, st.withIDs, fmt.Sprint("DEDUP_MAX_IDS=", remembered))
	}
	r := sinkRatios{toLimit: make(map[string][]float64), samples: make(map[string][]sample)}
	for range b.o.rounds {
		var before *sample
		for _, run := range []func() (sample, error){single, limit, plain, st.peer, plain, two, plain, limit, packed, limitByID, byID, limitByID} {
			m, err := run()
			if err != nil {
				return err
			}
			beside := ""
			if !strings.HasPrefix(m.Target, "edge") {
				beside = rivals
			}
			s.take(m, beside)
			r.add(before, m)
			before = &m
		}
	}
	s.sink(&r, remembered)
	return nil
}

// sinkRatios are the runs by target, and the ratios of neighbours.
type sinkRatios struct {
	samples       map[string][]sample
	toLimit       map[string][]float64 // ours to ready blocks of the same events one at a time, by target
	toTwo, toPeer []float64            // of oursPlain
}

// add adds m, which ran after before.
func (r *sinkRatios) add(before *sample, m sample) {
	r.samples[m.Target] = append(r.samples[m.Target], m)
	rate := func(to []float64, ours, theirs string) []float64 {
		pair(before, &m, &target{name: ours}, &target{name: theirs}, &to, new([]float64))
		return to
	}
	for _, ours := range []string{oursPlain, oursSingle, oursPacked} {
		r.toLimit[ours] = rate(r.toLimit[ours], ours, readyOne)
	}
	r.toLimit[oursByID] = rate(r.toLimit[oursByID], oursByID, readyByID)
	r.toTwo, r.toPeer = rate(r.toTwo, oursPlain, readyTwo), rate(r.toPeer, oursPlain, naiveSink)
}

// sink adds what the runs came to.
func (s *section) sink(r *sinkRatios, remembered int64) {
	t := table{Header: []string{"", "rows/s", "client µs/row", "engine µs/row", "broker µs/row", "client allocs/row", "peak RSS MB", "rows/s to ours"}}
	got, ids, two, peer := median(r.toLimit[oursPlain]), median(r.toLimit[oursByID]), median(r.toTwo), median(r.toPeer)
	ours, byID := typical(r.samples[oursPlain]), typical(r.samples[oursByID])
	toPlain := byID.PerSecond * inverse(ours.PerSecond) // they are no neighbours
	rel := map[string]float64{readyOne: inverse(got), readyTwo: inverse(two), naiveSink: inverse(peer), oursByID: toPlain, readyByID: toPlain * inverse(ids)}
	for _, name := range []string{oursPlain, oursSingle, oursPacked} {
		rel[name] = median(r.toLimit[name]) * inverse(got)
	}
	for _, name := range []string{readyOne, readyTwo, readyByID, oursPlain, oursSingle, oursPacked, oursByID, naiveSink} {
		m := typical(r.samples[name])
		t.row(name, count(m.PerSecond), micros(m.CPU, "server"), micros(m.CPU, "engine"), micros(m.CPU, "broker"), fmt.Sprintf("%.2f", m.Allocs), m.peaks(), cell("%.2f", rel[name]))
	}
	s.Tables = append(s.Tables, t)
	s.number("sink_per_second", ours.PerSecond)
	s.number("sink_cpu_us", ours.CPU["server"])
	s.number("sink_engine_cpu_us", ours.CPU["engine"])
	s.number("sink_broker_cpu_us", ours.CPU["broker"])
	s.number("sink_ids_cpu_us", byID.CPU["server"])
	const must, stretch = "≥ 0.80 of ready blocks, ≤ 0.9 µs client CPU/row", "≥ 0.95, ≤ 0.6 µs"
	reached := func(to, cpu float64) string { return paired(to, to >= 0.8 && cpu <= 0.9, to >= 0.95 && cpu <= 0.6) }
	s.goal(goal{What: "sink", Must: must, Stretch: stretch, Measured: fmt.Sprintf("%s rows/s, %.2f µs", count(ours.PerSecond), ours.CPU["server"]),
		Ratio: fmt.Sprintf("%s, %s; one at a time itself %s; %s", times("%.2f of", got, "ready blocks one at a time"), times("%.2f of", two, "two at a time"),
			cell("%.2f", median(r.toLimit[oursSingle])), times("%.1fx", peer, "naive sink")),
		Verdict: reached(got, ours.CPU["server"])})
	s.goal(goal{What: "sink, events with an event_id", Must: must, Stretch: stretch,
		Measured: fmt.Sprintf("%s rows/s, %.2f µs; %.0f MB peak, %.0f more than without", count(byID.PerSecond), byID.CPU["server"], float64(byID.RSS)/1e6, float64(byID.RSS-ours.RSS)/1e6),
		Ratio:    times("%.2f of", ids, "ready blocks of them one at a time") + ", " + times("%.2f of", toPlain, "events without"),
		Verdict:  reached(ids, byID.CPU["server"])})
	plain, packed := peakOf(r.samples[oursPlain]), peakOf(r.samples[oursPacked])
	s.goal(goal{What: "memory of the sink", Must: "≤ 192 MB at 100 k-row blocks", Stretch: "≤ 96 MB",
		Measured: fmt.Sprintf("%.0f MB in the highest run, %.0f MB compressing; with a window of %s event_ids %.0f MB", float64(plain)/1e6, float64(packed)/1e6,
			count(float64(remembered)), float64(peakOf(r.samples[oursByID]))/1e6),
		Verdict: verdict(max(plain, packed) <= 192e6, max(plain, packed) <= 96e6)})
	s.note("without an event_id of its own an event passes by the deduplication window; with one the window is full from half of the rows on (DEDUP_MAX_IDS=%d)", remembered)
	s.note("peak RSS of the rivals is that of this program; on loopback compressing can only cost")
}

// sinkRuns are the runs of a sink stage, each into a database of its own.
type sinkRuns struct {
	b               *bench
	f               *fleet
	plain, withIDs  *broker // each with its topic
	engine          *engine
	ready, readyIDs *rival.Block
	n               int
}

// effort is what it took to store a topic's records.
type effort struct {
	took, used time.Duration // used: of the sink's own process
	rss        int64
	mallocs    float64                  // objects that it allocated; ours since its start
	verify     func() ([]string, error) // says what is wrong, and ends the sink; nil: nothing to ask
}

// into runs work, which stores rows in a fresh database, and checks the tables. What was
// promised is what the topic holds, not what work says: it stops at a count of its own.
func (r *sinkRuns) into(name string, from *broker, rows int64, work func(database string) (effort, error)) (sample, error) {
	r.n++
	db := fmt.Sprintf("run_%d", r.n)
	if err := r.f.migrate(r.engine, db); err != nil {
		return sample{}, err
	}
	pool, err := r.f.pool(r.engine.addr, db)
	if err != nil {
		return sample{}, err
	}
	child.ForgetPeak(r.engine.Pid())
	engineBefore, brokerBefore := child.CPU(r.engine.Pid()), child.CPU(from.Pid())
	w, err := work(db)
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w", name, err)
	}
	_, engine := child.Memory(r.engine.Pid())
	s := sample{Target: name, Events: rows, PerSecond: float64(rows) / w.took.Seconds(), Allocs: w.mallocs / float64(max(rows, 1)), RSS: w.rss, OthersRSS: map[string]int64{"engine": engine}, CPU: map[string]float64{
		"server": perEvent(w.used, rows), "engine": perEvent(child.CPU(r.engine.Pid())-engineBefore, rows), "broker": perEvent(child.CPU(from.Pid())-brokerBefore, rows)}}
	var problems []string
	if w.verify != nil {
		if problems, err = w.verify(); err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
	}
	if s.Entry, err = storedEntry(name, pool, 0, rows, 0); err != nil {
		return s, err
	}
	if w.verify != nil {
		verified(&s.Entry, problems)
	}
	return s, pool.Exec(r.b.ctx, "DROP DATABASE "+db)
}

// limit inserts ready blocks, some side by side.
func (r *sinkRuns) limit(name string, ready *rival.Block, connections int) (sample, error) {
	size := int64(ready.Rows())
	n := (r.b.o.rows + size - 1) / size * size
	return r.into(name, r.plain, n, func(db string) (effort, error) {
		pool, err := r.f.pool(r.engine.addr, db)
		if err != nil {
			return effort{}, err
		}
		before, mallocs := child.Self(), ownMallocs()
		took, err := ready.Fill(r.b.ctx, pool, n, connections)
		_, rss := child.Memory(os.Getpid())
		return effort{took: took, used: child.Self() - before, rss: rss, mallocs: ownMallocs() - mallocs}, err
	})
}

// peer is the sink of an average team, over a part of the records.
func (r *sinkRuns) peer() (sample, error) {
	n := max(r.b.o.rows/8, 1)
	return r.into(naiveSink, r.plain, n, func(db string) (effort, error) {
		before, mallocs := child.Self(), ownMallocs()
		took, err := naive.Sink(r.b.ctx, naive.Config{Brokers: []string{r.plain.addr}, Topic: topic}, r.engine.addr, db, int(n))
		_, rss := child.Memory(os.Getpid())
		return effort{took: took, used: child.Self() - before, rss: rss, mallocs: ownMallocs() - mallocs}, err
	})
}

// ours starts edge with the role sink alone. The clock runs from the first rows
// that are stored to the last: what it takes to join the group is no throughput. Behind
// the clock it has to prove, as edge verify does, that no batch is missing or twice and
// that every rollup is the sum of the rows.
func (r *sinkRuns) ours(name string, from *broker, settings ...string) (sample, error) {
	return r.into(name, from, r.b.o.rows, func(db string) (effort, error) {
		s, err := r.f.edge("sink", append(append(r.engine.settings(db), "ROLES=sink", "KAFKA_BROKERS="+from.addr, "KAFKA_GROUP="+db), settings...)...)
		if err != nil {
			return effort{}, err
		}
		pool, err := r.f.pool(r.engine.addr, db)
		if err != nil {
			return effort{}, err
		}
		var first, last time.Time
		var atFirst, rows int64
		var cpuFirst, cpuLast time.Duration
		ctx, cancel := context.WithTimeout(r.b.ctx, 2*time.Minute)
		defer cancel()
		done, began := errors.New("all stored"), time.Now()
		// ClickHouse is asked and not edge: a scrape costs edge as much as
		// thousands of rows. It is asked often at the beginning and the end, which
		// the clock runs between, and seldom in the middle: an answer costs the
		// engine some of them, too. Above 1.6 M rows/s the end would be seen late.
		err = poll(ctx, 25*time.Millisecond, func() error {
			if rows > 0 && rows < r.b.o.rows-4*blockRows && time.Since(last) < 250*time.Millisecond {
				return nil
			}
			var err error
			if rows, err = number(ctx, pool, "SELECT toInt64(count()) AS n FROM events"); err != nil {
				return err
			}
			last, cpuLast = time.Now(), child.CPU(s.Pid())
			if rows > 0 && first.IsZero() {
				first, cpuFirst, atFirst = last, cpuLast, rows
			}
			if rows >= r.b.o.rows {
				return done
			}
			return nil
		})
		if !errors.Is(err, done) {
			return effort{}, errors.Join(err, fmt.Errorf("%d of %d rows stored: %s", rows, r.b.o.rows, s.Tail()))
		}
		_, rss := child.Memory(s.Pid())
		mallocs := s.mallocs()
		verify := func() ([]string, error) {
			problems, err := s.verify(r.b.ctx)
			return problems, errors.Join(err, s.Stop())
		}
		// Scaled from the part between first and last to all. A single block has no
		// such part: its clock runs from the start.
		part := rows - atFirst
		if part == 0 {
			return effort{last.Sub(began), cpuLast, rss, mallocs, verify}, nil
		}
		scale := float64(rows) / float64(part)
		return effort{time.Duration(float64(last.Sub(first)) * scale), time.Duration(float64(cpuLast-cpuFirst) * scale), rss, mallocs, verify}, nil
	})
}
