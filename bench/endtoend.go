//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"edge/bench/chart"
	"edge/bench/child"
	"edge/bench/ledger"
	"edge/bench/load"
	"edge/internal/clickhouse"
)

// endToEndStage is the whole system in one process and its engine, from the
// bulk POST to the rollups: first at a constant rate for a minute, then as fast
// as it goes while the sink keeps up.
func endToEndStage(b *bench, s *section, f *fleet) error {
	rate := 330_000.0
	if b.o.quick {
		rate = 20_000
	}
	s.Title = "bulk POST to visible, everything on this machine"
	requests := newGenerated(5).lines(256)
	t := table{Header: []string{"", "offered/s", "events", "accepted/s", "visible/s", "server µs/event", "engine µs/event", "generator", "allocs/event", "lag max", "last visible after", "peak RSS MB"}}
	run := func(name string, start func() (*system, error), l load.Load, lead int64) (*flow, error) {
		l.Conns, l.Requests, l.Events, l.Stamp = fewConns, requests, bulkSize, distinct(requests)
		e, err := b.endToEnd(start, name, l, lead)
		if e == nil {
			return nil, err
		}
		offered, allocs := "saturated", ""
		if len(l.Schedule) > 0 {
			offered = count(l.Schedule[0].From * bulkSize)
		}
		if e.allocs >= 0 {
			allocs = fmt.Sprintf("%.2f", e.allocs)
		}
		t.row(name, offered, e.accepted, count(e.acceptedPerSecond), count(e.visiblePerSecond), micros(e.cpu, "server"), micros(e.cpu, "engine"),
			micros(e.cpu, "generator"), allocs, e.lag, fmt.Sprintf("%.2f s", e.after.Seconds()), e.peaks)
		s.take(sample{Target: e.entry.What, Events: e.accepted, PerSecond: e.visiblePerSecond, CPU: e.cpu, Allocs: e.allocs, Entry: e.entry}, e.entry.Beside)
		return e, err
	}
	ours := func(name string) func() (*system, error) {
		return func() (*system, error) { return f.ourSystem(name) }
	}
	steady, err := run("steady", ours("steady"), load.Load{Schedule: load.Constant(rate/bulkSize, b.o.soak)}, 0)
	if err != nil {
		return err
	}
	s.flow("steady", steady)
	// A client that knows the lag holds back when half a million events wait.
	const lead = 500_000
	saturated := load.Load{Duration: b.o.soak / 5}
	var peaks, toLimit, toPeer []float64
	for i := range b.o.rounds {
		limit, err := b.inserts(f)
		if err != nil {
			return err
		}
		t.row("limit: "+readyTwo, "saturated", limit.Events, "", count(limit.PerSecond), micros(limit.CPU, "server"), micros(limit.CPU, "engine"),
			"", fmt.Sprintf("%.2f", limit.Allocs), "", "", limit.peaks())
		s.take(limit, rivals)
		peak, err := run("peak", ours("peak"), saturated, lead)
		if err != nil {
			return err
		}
		peer, err := run("naive", f.naiveSystem, saturated, lead)
		if err != nil {
			return err
		}
		if i == 0 {
			s.flow("peak", peak)
		}
		peaks = append(peaks, peak.visiblePerSecond)
		if toPeer = faster(toPeer, peak, peer); peak.entry.OK() && limit.Entry.OK() {
			toLimit = append(toLimit, peak.visiblePerSecond/limit.PerSecond)
		}
	}
	peak := median(peaks)
	s.Tables = append(s.Tables, t)
	s.note("the limit is what ClickHouse takes in if it has the machine to itself: %d rows in blocks that are ready and the same each time", b.o.rows)
	s.note("no two events are the same; naive is three processes beside its engine, whose times are added up as server")
	if len(s.Book.Void()) == 0 {
		s.note("edge verify found nothing wrong with edge's: batches without gap or overlap, every rollup the sum of the rows")
	}
	s.goal(goal{What: "end to end, 2 cores", Must: "≥ 300 k events/s for 60 s, ledger exact", Stretch: "≥ 500 k",
		Measured: fmt.Sprintf("%s/s for %.0f s at %s offered; %s/s saturated", count(steady.visiblePerSecond), b.o.soak.Seconds(), count(rate), count(peak)),
		Ratio:    times("%.1fx", median(toPeer), "naive async and its sink") + ", both saturated; " + times("%.2f of", median(toLimit), "ready blocks two at a time"),
		Verdict:  verdict(steady.visiblePerSecond >= 300_000, peak >= 500_000)})
	return nil
}

// inserts is the limit: nothing on the way to the tables can be faster than its inserts are
// alone.
func (b *bench) inserts(f *fleet) (s sample, err error) {
	runs := &sinkRuns{b: b, f: f}
	if runs.engine, err = f.engine(); err != nil {
		return s, err
	}
	if runs.plain, runs.ready, err = b.filledTopic(f, newGenerated(5), blockRows); err != nil {
		return s, err
	}
	s, err = runs.limit(readyTwo, runs.ready, 2)
	return s, errors.Join(err, f.end())
}

// faster appends how many times as much a second ours made visible, if both have stored what
// they promised: what is lost takes no time.
func faster(to []float64, ours, theirs *flow) []float64 {
	if !ours.entry.OK() || !theirs.entry.OK() {
		return to
	}
	return append(to, ours.visiblePerSecond/theirs.visiblePerSecond)
}

// flow adds the numbers and the plot of e.
func (s *section) flow(name string, e *flow) {
	s.Charts = append(s.Charts, e.chart(name))
	s.number(name+"_per_second", e.visiblePerSecond)
	s.number(name+"_cpu_us", e.cpu["server"])
	s.number(name+"_engine_cpu_us", e.cpu["engine"])
	s.number(name+"_stored_bytes", e.bytesPerEvent)
}

// flow is what one end-to-end run came to.
type flow struct {
	accepted          int64
	acceptedPerSecond float64
	visiblePerSecond  float64
	cpu               map[string]float64
	allocs            float64 // below 0: unknown
	lag               int64
	after             time.Duration // from the last answer to the last event visible
	peaks             string        // resident, of edge and its engine
	bytesPerEvent     float64
	entry             ledger.Entry
	seen              []chart.Point // visible events over time
}

func (e *flow) chart(name string) chart.Chart {
	return chart.Chart{Name: "e2e-" + name, Title: "End to end, " + name + ": events visible over time",
		X: chart.Axis{Label: "seconds"}, Y: chart.Axis{Label: "events visible"}, Lines: []chart.Line{{Label: "visible", Points: e.seen}}}
}

// endToEnd offers l to a fresh system and watches the tables. lead, not 0, holds
// the load while so many accepted events are not visible yet.
func (b *bench) endToEnd(start func() (*system, error), name string, l load.Load, lead int64) (*flow, error) {
	t, err := start()
	if err != nil {
		return nil, err
	}
	var answered, hold = new(atomic.Int64), new(atomic.Bool)
	l.Addr, l.Hold = t.addr, hold
	l.Answered = func(_ int64, _ time.Time, status int) {
		if status == 202 {
			answered.Add(int64(l.Events))
		}
	}
	e := &flow{cpu: map[string]float64{}}
	mallocs := t.mallocs()
	used, began := t.usage(), time.Now()
	ctx, cancel := context.WithCancel(b.ctx)
	watched := make(chan error, 1)
	go func() {
		watched <- poll(ctx, 100*time.Millisecond, func() error {
			n, err := t.count()
			e.seen = append(e.seen, chart.Point{X: time.Since(began).Seconds(), Y: float64(n)})
			behind := answered.Load() - n
			e.lag = max(e.lag, behind)
			hold.Store(lead > 0 && behind > lead)
			return err
		})
	}()
	res, err := load.Run(b.ctx, l)
	generator, finished := child.Self(), time.Now()
	cancel()
	if err = errors.Join(err, <-watched); err != nil {
		return nil, err
	}
	_, last, err := awaitCount(b.ctx, t.count, res.Accepted, 2*time.Minute)
	if err != nil {
		return nil, err
	}
	after := t.usage()
	after["generator"] = generator
	e.accepted, e.acceptedPerSecond = res.Accepted, res.PerSecond()
	e.visiblePerSecond = float64(res.Accepted) / last.Sub(began).Seconds()
	e.after = last.Sub(finished)
	e.seen = append(e.seen, chart.Point{X: last.Sub(began).Seconds(), Y: float64(res.Accepted)})
	for k := range after {
		name := k
		if k != "engine" && k != "generator" {
			name = "server"
		}
		e.cpu[name] += perEvent(after[k]-used[k], res.Accepted)
	}
	if e.allocs = -1; mallocs > 0 {
		e.allocs = (t.mallocs() - mallocs) / float64(max(res.Accepted, 1))
	}
	m := sample{OthersRSS: make(map[string]int64)}
	_, m.RSS = child.Memory(t.server)
	for other, pid := range t.others {
		_, m.OthersRSS[other] = child.Memory(pid)
	}
	e.peaks = m.peaks()
	if e.entry, err = storedEntry("end to end, "+name, t.pool, 0, res.Accepted, res.Doubtful); err != nil {
		return e, err
	}
	e.entry.Beside = t.beside
	if t.verify != nil {
		problems, err := t.verify(b.ctx)
		if err != nil {
			return e, err
		}
		verified(&e.entry, problems)
	}
	if e.bytesPerEvent, err = storedBytes(b.ctx, t.pool, res.Accepted); err != nil {
		return e, err
	}
	return e, t.stop()
}

// storedBytes is what an event takes on ClickHouse's disk, rollups included.
func storedBytes(ctx context.Context, pool *clickhouse.Pool, events int64) (float64, error) {
	n, err := number(ctx, pool, "SELECT toInt64(sum(bytes_on_disk)) AS n FROM system.parts WHERE active AND database = currentDatabase()")
	return float64(n) / float64(max(events, 1)), err
}
