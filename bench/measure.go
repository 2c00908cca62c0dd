//go:build linux

package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"edge/bench/child"
	"edge/bench/ledger"
	"edge/bench/load"
	"edge/internal/clickhouse"
)

// target is one of the programs that a stage compares.
type target struct {
	name   string
	addr   string
	server int            // pid of the program itself
	others map[string]int // pids of what it works with: broker, engine
	count  func() (int64, error)
	where  string           // what count looks at
	beside string           // not empty: no run of edge's ledger, and why; rivals: what it loses is its own affair
	admin  string           // where the server tells its allocations; empty: unknown
	log    string           // directory of its broker
	kill   func()           // ends the program at once; not of every target
	pool   *clickhouse.Pool // to its engine, if it has one of its own
	settle bool             // a run lasts until the merges it has caused have ended: they are part of its cost, and not of the next one's

	// What the run before left: the next one starts its sum there, so that an
	// event which turns up between two runs is in a ledger too.
	counted         bool
	found, doubtful int64
}

// sample is one run of one target.
type sample struct {
	Target    string             `json:"target"`
	Events    int64              `json:"events"`     // promised
	PerSecond float64            `json:"per_second"` // promised events
	CPU       map[string]float64 `json:"cpu_us"`     // µs per event: server, broker, engine, generator
	Cores     float64            `json:"cores"`      // of the server
	Allocs    float64            `json:"allocs"`     // of the server, per event; below 0: unknown
	P50       time.Duration      `json:"p50_ns"`
	P95       time.Duration      `json:"p95_ns"`
	P99       time.Duration      `json:"p99_ns"`
	P999      time.Duration      `json:"p999_ns"`
	RSS       int64              `json:"rss_bytes"`                  // peak of the server in this run
	OthersRSS map[string]int64   `json:"others_rss_bytes,omitempty"` // of the broker or the engine
	Refused   int64              `json:"refused"`                    // answers that were no 202, requests never answered or never sent
	Entry     ledger.Entry       `json:"ledger"`
}

// within tells whether every request had its 202, and 99 % of them within p99: a refusal is
// quick, and what was never answered has no latency.
func (s *sample) within(p99 time.Duration) bool { return s.Refused == 0 && s.P99 <= p99 }

// usage is the processor time of all that takes part.
func (t *target) usage() map[string]time.Duration {
	u := map[string]time.Duration{"generator": child.Self(), "server": child.CPU(t.server)}
	for name, pid := range t.others {
		u[name] = child.CPU(pid)
	}
	return u
}

// measure offers l to t and waits until what was promised is where it belongs:
// what a server does after it has answered is part of its cost.
func (t *target) measure(ctx context.Context, l load.Load) (sample, error) {
	before, err := t.count()
	if err != nil {
		return sample{}, fmt.Errorf("count the %s before %s: %w", t.where, t.name, err)
	}
	if t.counted {
		before = t.found
	}
	mallocs := t.mallocs()
	child.ForgetPeak(t.server)
	for _, pid := range t.others {
		child.ForgetPeak(pid)
	}
	used := t.usage()
	l.Addr = t.addr
	res, err := load.Run(ctx, l)
	if err != nil {
		return sample{}, fmt.Errorf("load %s: %w", t.name, err)
	}
	generator := child.Self()
	// A server that took it into memory is not done: its rate counts until all of
	// it is where it belongs, or buffers would pass for speed.
	found, last, err := awaitCount(ctx, t.count, before+res.Accepted, 30*time.Second)
	if err != nil {
		return sample{}, fmt.Errorf("count the %s after %s: %w", t.where, t.name, err)
	}
	elapsed := last.Sub(res.Began)
	if t.settle {
		if err := settle(ctx, t.pool, 2*time.Minute); err != nil {
			return sample{}, fmt.Errorf("after %s: %w", t.name, err)
		}
	}
	after := t.usage()
	after["generator"] = generator
	s := sample{
		Target: t.name, Events: res.Accepted, PerSecond: float64(res.Accepted) / elapsed.Seconds(), CPU: make(map[string]float64),
		P50: res.Latency.Quantile(0.5), P95: res.Latency.Quantile(0.95), P99: res.Latency.Quantile(0.99), P999: res.Latency.Quantile(0.999),
		Refused: res.Failed(),
		Cores:   (after["server"] - used["server"]).Seconds() / elapsed.Seconds(),
		Entry:   ledger.Entry{What: t.name, Where: t.where, Promised: res.Accepted, Doubtful: res.Doubtful + t.doubtful, Found: found - before},
	}
	t.counted, t.found = true, found
	t.doubtful = max(s.Entry.Promised+s.Entry.Doubtful-s.Entry.Found, 0)
	_, s.RSS = child.Memory(t.server)
	s.OthersRSS = make(map[string]int64)
	for name, pid := range t.others {
		_, s.OthersRSS[name] = child.Memory(pid)
	}
	s.Allocs = -1
	if mallocs > 0 {
		s.Allocs = (t.mallocs() - mallocs) / float64(max(res.Accepted, 1))
	}
	for name := range after {
		s.CPU[name] = perEvent(after[name]-used[name], res.Accepted)
	}
	return s, nil
}

// mallocsTotal is the metric of what a Go program has allocated, by its usual name.
const mallocsTotal = "go_memstats_mallocs_total"

// mallocs is how many objects the server has allocated so far; 0 when it does
// not say.
func (t *target) mallocs() float64 { return (&server{admin: t.admin}).mallocs() }

// ownMallocs is how many this process has.
func ownMallocs() float64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.Mallocs)
}

func perEvent(d time.Duration, events int64) float64 {
	return float64(d.Nanoseconds()) / 1e3 / float64(max(events, 1))
}

// awaitCount waits until count has reached want, for as long as patience, and returns
// what it has reached and since when: what never comes is no reason to call the rest slow.
func awaitCount(ctx context.Context, count func() (int64, error), want int64, patience time.Duration) (reached int64, since time.Time, err error) {
	deadline := time.Now().Add(patience)
	for {
		n, err := count()
		if now := time.Now(); since.IsZero() || n > reached {
			reached, since = n, now
		}
		if err != nil || n >= want || time.Now().After(deadline) {
			return reached, since, err
		}
		select {
		case <-ctx.Done():
			return reached, since, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ranged is the median of a figure of the runs, and from where to where it went.
func ranged(all []sample, get func(*sample) float64) string {
	var v []float64
	for i := range all {
		v = append(v, get(&all[i]))
	}
	return fmt.Sprintf("%.2f (%.2f to %.2f)", median(v), slices.Min(v), slices.Max(v))
}

// median of values; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

// race is limit, ours, peer, ours, limit, as often as there are rounds.
type race struct {
	limit, ours, peer *target // limit or peer may be nil
	load              load.Load
}

// outcome is what a race comes to.
type outcome struct {
	samples     map[string][]sample // by target
	order       []string
	limit, peer string // their names
	// Medians of the ratios of neighbours: ours to the limit, ours to the peer. 0: no pair.
	ToLimit, CPUToLimit float64
	ToPeer, CPUToPeer   float64
}

func (r race) run(b *bench) (*outcome, error) {
	var toLimit, cpuToLimit, toPeer, cpuToPeer []float64
	out := &outcome{samples: make(map[string][]sample)}
	for _, t := range []*target{r.limit, r.ours, r.peer} {
		if t == nil {
			continue
		}
		out.order = append(out.order, t.name)
		switch t {
		case r.limit:
			out.limit = t.name
		case r.peer:
			out.peer = t.name
		}
		warm := r.load
		warm.Duration = min(b.o.one, 500*time.Millisecond)
		if _, err := b.measure(t, warm); err != nil {
			return nil, err
		}
	}
	for range b.o.rounds {
		var before, last *sample
		for _, t := range []*target{r.limit, r.ours, r.peer, r.ours, r.limit} {
			if t == nil {
				continue
			}
			s, err := b.measure(t, r.load)
			if err != nil {
				return nil, err
			}
			out.samples[t.name] = append(out.samples[t.name], s)
			before, last = last, &s
			pair(before, last, r.ours, r.limit, &toLimit, &cpuToLimit)
			pair(before, last, r.ours, r.peer, &toPeer, &cpuToPeer)
		}
	}
	out.ToLimit, out.CPUToLimit = median(toLimit), median(cpuToLimit)
	out.ToPeer, out.CPUToPeer = median(toPeer), median(cpuToPeer)
	return out, nil
}

// pair appends the ratios of two runs next to each other when one is ours and
// the other is theirs, and both have done what they promised.
func pair(a, b *sample, ours, theirs *target, rate, cpu *[]float64) {
	if a == nil || theirs == nil || !a.Entry.OK() || !b.Entry.OK() {
		return
	}
	switch {
	case a.Target == theirs.name && b.Target == ours.name:
		a, b = b, a
	case a.Target == ours.name && b.Target == theirs.name:
	default:
		return
	}
	*rate = append(*rate, a.PerSecond/b.PerSecond)
	*cpu = append(*cpu, a.CPU["server"]/b.CPU["server"])
}

// peakOf is the highest peak of the runs: a bound that one of them passes is not kept.
func peakOf(all []sample) (rss int64) {
	for i := range all {
		rss = max(rss, all[i].RSS)
	}
	return rss
}

// typical is the sample of t whose fields are the medians of its runs.
func (o *outcome) typical(name string) sample {
	return typical(o.samples[name])
}

// typical is made of the runs whose ledgers add up; of all, where none does and the table
// still has to show something.
func typical(all []sample) sample {
	if len(all) == 0 {
		return sample{CPU: map[string]float64{}}
	}
	if counted := slices.DeleteFunc(slices.Clone(all), func(s sample) bool { return !s.Entry.OK() }); len(counted) > 0 {
		all = counted
	}
	field := func(get func(*sample) float64) float64 {
		var v []float64
		for i := range all {
			v = append(v, get(&all[i]))
		}
		return median(v)
	}
	s := sample{Target: all[0].Target, CPU: make(map[string]float64)}
	s.PerSecond = field(func(s *sample) float64 { return s.PerSecond })
	s.Cores = field(func(s *sample) float64 { return s.Cores })
	s.Allocs = field(func(s *sample) float64 { return s.Allocs })
	s.P50 = time.Duration(field(func(s *sample) float64 { return float64(s.P50) }))
	s.P95 = time.Duration(field(func(s *sample) float64 { return float64(s.P95) }))
	s.P99 = time.Duration(field(func(s *sample) float64 { return float64(s.P99) }))
	s.P999 = time.Duration(field(func(s *sample) float64 { return float64(s.P999) }))
	s.RSS = int64(field(func(s *sample) float64 { return float64(s.RSS) }))
	s.OthersRSS = make(map[string]int64)
	for name := range all[0].OthersRSS {
		s.OthersRSS[name] = int64(field(func(s *sample) float64 { return float64(s.OthersRSS[name]) }))
	}
	for name := range all[0].CPU {
		s.CPU[name] = field(func(s *sample) float64 { return s.CPU[name] })
	}
	for i := range all {
		s.Events += all[i].Events
		s.Refused += all[i].Refused
	}
	return s
}
