// Package stat holds the counters and histograms the hot path writes: plain
// atomics on their own cache lines, no label lookup, no lock, no allocation.
// A scrape reads them through the prometheus.Collector side of the same types,
// so a value exists once and is formatted only when somebody asks.
//
// Every type is ready to use as a zero value except Histogram, which needs its
// bounds from NewHistogram. All methods may be called from any goroutine.
package stat

import (
	"math"
	"sync/atomic"
	"time"
)

// cacheLine is the distance that keeps two hot words from sharing a line on
// x86-64 (64 B, fetched in pairs) and arm64 (128 B).
const cacheLine = 128

// Counter only grows.
type Counter struct {
	n atomic.Uint64
	_ [cacheLine - 8]byte
}

// Add adds n.
func (c *Counter) Add(n uint64) { c.n.Add(n) }

// Inc adds one.
func (c *Counter) Inc() { c.n.Add(1) }

// Load returns the sum so far.
func (c *Counter) Load() uint64 { return c.n.Load() }

// Gauge is a value that goes both ways.
type Gauge struct {
	n atomic.Int64
	_ [cacheLine - 8]byte
}

// Add adds n, which may be negative, and returns the sum.
func (g *Gauge) Add(n int64) int64 { return g.n.Add(n) }

// Set replaces the value.
func (g *Gauge) Set(n int64) { g.n.Store(n) }

// Load returns the value.
func (g *Gauge) Load() int64 { return g.n.Load() }

// Histogram counts observations into fixed buckets. The sum is kept in
// nanoseconds for durations and in units for everything else; scale turns it
// into the exported unit.
type Histogram struct {
	bounds []float64 // exported unit, ascending; the bucket above the last is implicit
	limits []int64   // the same bounds in the unit of Observe
	scale  float64
	counts []Counter
	sum    atomic.Int64
}

// Seconds are the bucket bounds of every latency histogram: half a millisecond
// (below the cost of one loopback request) to 30 s (beyond every deadline here).
var Seconds = []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30}

// Rows are the bucket bounds for row counts of one insert.
var Rows = []float64{1, 10, 100, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6}

// NewHistogram returns a histogram of durations with bounds in seconds.
func NewHistogram(bounds []float64) *Histogram { return newHistogram(bounds, 1e9) }

// NewCountHistogram returns a histogram of plain numbers.
func NewCountHistogram(bounds []float64) *Histogram { return newHistogram(bounds, 1) }

func newHistogram(bounds []float64, scale float64) *Histogram {
	h := &Histogram{bounds: bounds, scale: scale, counts: make([]Counter, len(bounds)+1)}
	for _, b := range bounds {
		h.limits = append(h.limits, int64(math.Round(b*scale)))
	}
	return h
}

// Observe counts one duration.
func (h *Histogram) Observe(d time.Duration) { h.ObserveN(int64(d), 1) }

// ObserveN counts times observations of v, in nanoseconds for durations.
func (h *Histogram) ObserveN(v int64, times uint64) {
	i := 0
	for i < len(h.limits) && v > h.limits[i] {
		i++
	}
	h.counts[i].Add(times)
	h.sum.Add(v * int64(times))
}

// Snapshot returns the number of observations, their sum in the exported unit
// and the cumulative count per bound, as Prometheus wants them.
func (h *Histogram) Snapshot() (count uint64, sum float64, buckets map[float64]uint64) {
	buckets = make(map[float64]uint64, len(h.bounds))
	for i, b := range h.bounds {
		count += h.counts[i].Load()
		buckets[b] = count
	}
	count += h.counts[len(h.bounds)].Load()
	return count, float64(h.sum.Load()) / h.scale, buckets
}
