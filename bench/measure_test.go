//go:build linux

package main

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"edge/bench/ledger"
)

func TestPairComparesNeighbours(t *testing.T) {
	ours, limit := &target{name: "ours"}, &target{name: "limit"}
	run := func(name string, rate, cpu float64) *sample {
		return &sample{Target: name, PerSecond: rate, CPU: map[string]float64{"server": cpu}}
	}
	var rates, cpus []float64
	var last *sample
	for _, s := range []*sample{run("limit", 100, 2), run("ours", 80, 3), run("peer", 10, 9), run("ours", 60, 4), run("limit", 120, 2)} {
		pair(last, s, ours, limit, &rates, &cpus)
		last = s
	}
	if !slices.Equal(rates, []float64{0.8, 0.5}) || !slices.Equal(cpus, []float64{1.5, 2}) {
		t.Errorf("got %v and %v; want 0.8, 0.5 and 1.5, 2: ours beside the peer is no pair with the limit", rates, cpus)
	}
	pair(last, run("ours", 1, 1), ours, nil, &rates, &cpus)
	lost := run("limit", 1, 1)
	lost.Entry = ledger.Entry{Promised: 2, Found: 1}
	pair(lost, run("ours", 1, 1), ours, limit, &rates, &cpus)
	if len(rates) != 2 {
		t.Error("a pair without a limit, or with one that lost events")
	}
}

func TestAwaitCountSaysSinceWhen(t *testing.T) {
	f := func(want, reached int64, counts ...int64) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			began, asked := time.Now(), 0
			n, since, err := awaitCount(t.Context(), func() (int64, error) {
				asked++
				return counts[min(asked, len(counts))-1], nil
			}, want, time.Minute)
			if grew := time.Duration(len(counts)-1) * 5 * time.Millisecond; err != nil || n != reached || since.Sub(began) != grew {
				t.Errorf("%v: got %d after %v, %v; want %d after %v", counts, n, since.Sub(began), err, reached, grew)
			}
		})
	}
	f(10, 10, 10)
	f(10, 11, 3, 11)
	f(10, 9, 3, 5, 9) // one is lost: a minute of waiting for it counts for nothing
}

func TestWithinHasNoErrors(t *testing.T) {
	f := func(p99 time.Duration, refused int64, want bool) {
		t.Helper()
		if s := (sample{P99: p99, Refused: refused}); s.within(10) != want {
			t.Errorf("p99 %d with %d errors within 10: got %v", p99, refused, !want)
		}
	}
	f(10, 0, true)
	f(11, 0, false)
	f(1, 1, false)
}

func TestInRoundsComparesWhatCounts(t *testing.T) {
	run := func(cpu float64, lost int64) sample {
		return sample{CPU: map[string]float64{"server": cpu}, Entry: ledger.Entry{Promised: 1, Found: 1 - lost}}
	}
	ours := []sample{run(1, 0), run(2, 0), run(4, 0)}
	if got := inRounds([]sample{run(3, 0), run(2, 0), run(99, 1)}, ours); got != 2 { // 3 and 1
		t.Errorf("got %v; want 2", got)
	}
	if got := inRounds([]sample{run(1, 1)}, ours); got != 0 {
		t.Errorf("of nothing: got %v", got)
	}
}

func TestPeakIsThatOfTheHighestRun(t *testing.T) {
	if got := peakOf([]sample{{RSS: 2}, {RSS: 9}, {RSS: 3}}); got != 9 {
		t.Errorf("got %d; want 9", got)
	}
}

func TestTypicalIsMadeOfMedians(t *testing.T) {
	all := []sample{
		{Target: "a", Events: 10, PerSecond: 1, P99: 9, Refused: 1, CPU: map[string]float64{"server": 5, "broker": 1}},
		{Target: "a", Events: 20, PerSecond: 3, P99: 7, CPU: map[string]float64{"server": 4, "broker": 3}},
		{Target: "a", Events: 30, PerSecond: 2, P99: 8, CPU: map[string]float64{"server": 6, "broker": 2}},
	}
	s := typical(all)
	if s.PerSecond != 2 || s.P99 != 8 || s.CPU["server"] != 5 || s.CPU["broker"] != 2 || s.Events != 60 || s.Refused != 1 {
		t.Errorf("got %+v", s)
	}
	lost := sample{Target: "a", PerSecond: 1000, CPU: map[string]float64{}, Entry: ledger.Entry{Promised: 2, Found: 1}}
	if got := typical(append(all, lost, lost, lost)).PerSecond; got != 2 {
		t.Errorf("with runs that lost events: got %v/s; want 2", got)
	}
	if got := typical([]sample{lost}).PerSecond; got != 1000 {
		t.Errorf("of no other: got %v/s", got)
	}
	if typical(nil).PerSecond != 0 {
		t.Error("nothing is typical of no runs")
	}
}
