//go:build linux

package main

import (
	"errors"
	"fmt"
	"time"

	"edge/bench/child"
	"edge/bench/load"
)

// constantStage is the load the system was made for: 20,000 single events a
// second, come what may, at the ingesting side alone and at everything in one
// process.
func constantStage(b *bench, s *section, f *fleet) error {
	rate := 20_000.0
	if b.o.quick {
		rate = 2000
	}
	s.Title = fmt.Sprintf("%.0f single events/s, constant, open loop", rate)
	ours, err := f.ours("edge, HTTP side")
	if err != nil {
		return err
	}
	idle, err := b.idleCores(ours, b.o.long/2)
	if err != nil {
		return err
	}
	s.goal(goal{What: "processor of an idle edge", Must: "< 0.5 % of a core", Measured: fmt.Sprintf("%.2f %%", 100*idle), Verdict: verdict(idle < 0.005, false)})
	limit, err := f.bare(1)
	if err != nil {
		return err
	}
	peer, _, err := f.naive("sync", 1)
	if err != nil {
		return err
	}
	whole, err := f.whole()
	if err != nil {
		return err
	}
	everything, err := f.everything("edge, all in one", whole)
	if err != nil {
		return err
	}
	everything.settle = true
	single := newGenerated(2).singles(1024)
	l := load.Load{Conns: manyConns, Requests: single, Events: 1, Stamp: distinct(single), Schedule: load.Constant(rate, b.o.long/2)}
	warm := l
	warm.Schedule = load.Ramp(rate/10, rate, min(b.o.one, b.o.long))
	targets := []*target{ours, limit, peer, everything}
	for _, t := range targets {
		if _, err := b.measure(t, warm); err != nil {
			return err
		}
	}
	runs := make(map[*target][]sample)
	for range b.o.rounds {
		for _, t := range targets {
			m, err := b.measure(t, l)
			if err != nil {
				return err
			}
			runs[t] = append(runs[t], m)
		}
	}
	s.constant(runs[ours], runs[everything], runs[limit], runs[peer], rate)
	return nil
}

// constant adds what the runs of each came to.
func (s *section) constant(ours, everything, limit, peer []sample, rate float64) {
	all := []sample{typical(ours), typical(everything), typical(limit), typical(peer)}
	cpu := map[string]float64{}
	for _, runs := range [][]sample{ours, everything, limit, peer} {
		cpu[runs[0].Target] = inRounds(runs, ours)
	}
	s.Tables = append(s.Tables, httpTable(fmt.Sprintf("medians of %d runs of each, in turns", len(ours)), all, func(m sample) (string, string) {
		return "", cell("%.2f", cpu[m.Target]) // the rate is given
	}))
	p99 := func(m *sample) float64 { return float64(m.P99) / 1e6 }
	cores := func(m *sample) float64 { return m.Cores }
	beside := fmt.Sprintf("bare fasthttp p99 %s ms, %s cores; naive sync p99 %s ms, %s cores", ranged(limit, p99), ranged(limit, cores), ranged(peer, p99), ranged(peer, cores))
	what := fmt.Sprintf("%.0f single events/s, open loop", rate)
	measured := func(runs []sample, m *sample) string {
		return fmt.Sprintf("p99 %s ms, %d errors, %s cores", ranged(runs, p99), m.Refused, ranged(runs, cores))
	}
	m := &all[0]
	s.goal(goal{What: what, Must: "p99 ≤ 20 ms, 0 errors, ≤ 1 core", Stretch: "p99 ≤ 5 ms", Ratio: beside, Measured: measured(ours, m),
		Verdict: verdict(m.within(20*time.Millisecond) && m.Cores <= 1, m.P99 <= 5*time.Millisecond)})
	m = &all[1]
	s.goal(goal{What: what + ", everything in one", Must: "p99 ≤ 20 ms, 0 errors", Stretch: "p99 ≤ 5 ms", Ratio: beside,
		Measured: fmt.Sprintf("%s, and %.2f of its engine, with the merges after the run; %s MB peak", measured(everything, m), m.CPU["engine"]*rate/1e6, m.peaks()),
		Verdict:  verdict(m.within(20*time.Millisecond), m.P99 <= 5*time.Millisecond)})
	rss := func(m *sample) float64 { return float64(m.RSS) / 1e6 }
	s.number("constant_p99_ms", p99(&all[0]))
	s.number("constant_rss_mb", rss(&all[0]))
	peak := peakOf(ours)
	s.goal(goal{What: fmt.Sprintf("memory of edge at %.0f/s", rate), Must: "≤ 64 MB", Stretch: "≤ 24 MB", Measured: ranged(ours, rss) + " MB peak",
		Verdict: verdict(peak <= 64e6, peak <= 24e6)})
}

// inRounds is the median of the ratios of processor time in a round, theirs to ours; 0 if in
// none both have done what they promised.
func inRounds(theirs, ours []sample) float64 {
	var ratios []float64
	for i := range theirs {
		if theirs[i].Entry.OK() && ours[i].Entry.OK() {
			ratios = append(ratios, theirs[i].CPU["server"]/ours[i].CPU["server"])
		}
	}
	return median(ratios)
}

// idleCores is what t uses while nobody asks it for anything: its rings park, they
// do not poll. It has been used before, so that all its parts run.
func (b *bench) idleCores(t *target, d time.Duration) (float64, error) {
	if _, err := load.Run(b.ctx, load.Load{Addr: t.addr, Conns: fewConns, Requests: newGenerated(2).singles(16), Events: 1, Schedule: load.Constant(1000, d/10)}); err != nil {
		return 0, err
	}
	before := child.Ran(t.server)
	<-time.After(d)
	used := child.Ran(t.server) - before
	if used <= 0 { // a kernel without schedstat; threads wake for Go's own sake now and then
		return 0, errors.New("no processor time of the threads of an idle edge in /proc")
	}
	return used.Seconds() / d.Seconds(), nil
}
