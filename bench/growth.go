//go:build linux

package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"edge/bench/chart"
	"edge/bench/load"
)

// growthStage is what an event costs as everything around it grows: distinct
// names, idle connections, partitions; what is stored is in queryStage, which stores
// it. Flat is the goal.
func growthStage(b *bench, s *section, f *fleet) error {
	s.Title = "cost per event as everything grows"
	for _, part := range []func(*bench, *section, *fleet) error{growNames, growConnections, growPartitions} {
		// Each part has the machine for itself.
		if err := errors.Join(part(b, s, f), f.end()); err != nil {
			return err
		}
	}
	return nil
}

// grown is a series of samples and what they grew with.
type grown struct {
	what string
	rows table
	edge []chart.Point
	rest map[string][]chart.Point
	p99  []string
}

func newGrown(what string) *grown {
	return &grown{what: what, rest: map[string][]chart.Point{},
		rows: table{Title: "by " + what, Header: []string{what, "events/s", "edge µs/event", "broker", "engine", "p99 ms", "peak RSS MB", "not 202"}}}
}

func (g *grown) add(x int, m sample) {
	g.rows.row(x, count(m.PerSecond), micros(m.CPU, "server"), micros(m.CPU, "broker"), micros(m.CPU, "engine"), millis(m.P99), m.peaks(), m.Refused)
	g.edge = append(g.edge, chart.Point{X: float64(x), Y: m.CPU["server"]})
	g.p99 = append(g.p99, millis(m.P99))
	for _, other := range []string{"broker", "engine"} {
		if v, ok := m.CPU[other]; ok {
			g.rest[other] = append(g.rest[other], chart.Point{X: float64(x), Y: v})
		}
	}
}

// flat is a cost that grows by no more than mostGrowth, which is what runs of one size
// differ by on a machine that others share.
const (
	flat       = "flat (≤ 1.25x)"
	mostGrowth = 1.25
)

// finish adds table, plot and goal. The verdict, if something is a must, is about edge
// itself: its highest cost, wherever that is, against the first.
func (g *grown) finish(s *section, name, of, must string) {
	s.Tables = append(s.Tables, g.rows)
	c := chart.Chart{Name: "growth-" + name, Title: "Processor time per event, by " + g.what, X: chart.Axis{Label: g.what, Log: true}, Y: chart.Axis{Label: "µs per event"},
		Lines: []chart.Line{{Label: "edge", Points: g.edge}}}
	for _, other := range []string{"broker", "engine"} {
		if len(g.rest[other]) > 0 {
			c.Lines = append(c.Lines, chart.Line{Label: other, Points: g.rest[other]})
		}
	}
	s.Charts = append(s.Charts, c)
	near, far, most := g.edge[0], g.edge[len(g.edge)-1], g.most()
	grew := most.Y / near.Y
	s.number("growth_"+name, grew)
	word := wish(false)
	if must != "" {
		word = verdict(grew <= mostGrowth, false)
	}
	cost := fmt.Sprintf("%.2f → %.2f µs/event", near.Y, far.Y)
	if most != far {
		cost += fmt.Sprintf(", %.2f at %s", most.Y, count(most.X))
	}
	s.goal(goal{What: fmt.Sprintf("growth: %s to %s %s", count(near.X), count(far.X), of), Must: must, Measured: fmt.Sprintf("%s; p99 of the POST %s ms", cost, strings.Join(g.p99, ", ")),
		Ratio: fmt.Sprintf("%.2fx", grew), Verdict: word})
}

// most is where edge's cost is highest after the first point; the first if there is no other.
func (g *grown) most() chart.Point {
	most := g.edge[0]
	for i, p := range g.edge {
		if i == 1 || p.Y > most.Y {
			most = p
		}
	}
	return most
}

// sweep measures every point in turns, several times, and adds the medians: a
// minute in which the machine is busy must not look like growth.
func (g *grown) sweep(b *bench, points []int, run func(int) (sample, error)) error {
	if b.o.quick {
		points = []int{points[0], points[len(points)-2]}
	}
	samples := make(map[int][]sample)
	for range b.o.rounds {
		for _, n := range points {
			m, err := run(n)
			if err != nil {
				return err
			}
			samples[n] = append(samples[n], m)
		}
	}
	for _, n := range points {
		g.add(n, typical(samples[n]))
	}
	return nil
}

// steadyBatches has a Kafka request leave every ten milliseconds, where otherwise the next
// one leaves when the disk is done with the last. At a rate that leaves the machine idle
// half of the time an event's cost is mostly that of its request, so it would follow the
// speed of the disk, and be the less the busier the machine is.
const steadyBatches = "LINGER=10ms"

// steady notes it.
func (s *section) steady(where string) {
	s.note("%s edge runs with %s: without it an event's cost follows the speed of the disk, and is the less the busier the machine is", where, steadyBatches)
}

// growNames is the whole system at a fixed rate that it can hold, with ever more
// distinct names and campaigns.
func growNames(b *bench, s *section, f *fleet) error {
	srv, err := f.whole(steadyBatches)
	if err != nil {
		return err
	}
	t, err := f.everything("edge", srv)
	if err != nil {
		return err
	}
	t.settle = true // the merges of 10,000 names are not what one name costs
	g := newGrown("distinct event names and campaigns")
	if _, err := b.measure(t, bulks(newGenerated(8), b.o.one)); err != nil { // warm
		return err
	}
	err = g.sweep(b, []int{1, 10, 100, 1000, 10_000}, func(n int) (sample, error) {
		made := newGenerated(uint64(8 + n))
		made.names, made.campaigns = n, n
		return b.measure(t, bulks(made, b.o.one))
	})
	if err != nil {
		return err
	}
	s.steady("by names and campaigns")
	s.note("the engine's share by names includes all merges that the run has caused, those after it too")
	g.finish(s, "names", "event names and campaigns", flat)
	return nil
}

// bulks is 50,000 events a second in bulks.
func bulks(g *generated, d time.Duration) load.Load {
	requests := g.lines(256)
	return load.Load{Conns: fewConns, Requests: requests, Events: bulkSize, Stamp: distinct(requests), Schedule: load.Constant(50_000/bulkSize, d)}
}

// growConnections is the ingesting side with ever more clients that say nothing more.
func growConnections(b *bench, s *section, f *fleet) error {
	t, err := f.ours("edge")
	if err != nil {
		return err
	}
	l := load.Load{Conns: fewConns, Requests: newGenerated(9).singles(256), Events: 1, Schedule: load.Constant(10_000, b.o.one)}
	if _, err := b.measure(t, l); err != nil { // warm
		return err
	}
	g := newGrown("idle connections")
	err = g.sweep(b, []int{1, 100, 1000, 10_000}, func(n int) (sample, error) {
		idle, err := load.OpenIdle(t.addr, n, l.Requests[0])
		if err != nil {
			return sample{}, err
		}
		defer idle.Close()
		t.found += int64(n) // the event that each has brought is none of the run's
		m, err := b.measure(t, l)
		if open := idle.Open(); err == nil && open < n {
			err = fmt.Errorf("%d of %d idle connections are open at the end of the run", open, n)
		}
		return m, err
	})
	if err != nil {
		return err
	}
	s.note("each idle connection has had an event, and was open at the end of its run")
	g.finish(s, "connections", "idle connections", flat)
	return nil
}

// growPartitions is the ingesting side, saturated with bulks. The embedded
// broker pays two fsyncs for each partition of a request, so it is its cost that
// grows here, and the rate that falls; a real cluster shares partitions out.
func growPartitions(b *bench, s *section, f *fleet) error {
	g := newGrown("partitions")
	requests := newGenerated(10).lines(64)
	targets := make(map[int]*target)
	err := g.sweep(b, []int{1, 4, 16, 64}, func(n int) (sample, error) {
		if targets[n] == nil {
			broker, err := f.broker(n)
			if err != nil {
				return sample{}, err
			}
			srv, err := f.ingest(broker)
			if err != nil {
				return sample{}, err
			}
			targets[n] = srv.of("edge", broker)
		}
		return b.measure(targets[n], load.Load{Conns: fewConns, Requests: requests, Events: bulkSize, Duration: b.o.one})
	})
	if err != nil {
		return err
	}
	g.finish(s, "partitions", "partitions", "")
	return nil
}
