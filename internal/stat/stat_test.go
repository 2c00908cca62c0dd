package stat

import (
	"math"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

func TestHistogramBuckets(t *testing.T) {
	h := NewHistogram([]float64{.001, .01, 1})
	for _, d := range []time.Duration{-time.Second, 0, time.Millisecond, time.Millisecond + 1, 10 * time.Millisecond, time.Second, time.Second + 1, time.Hour} {
		h.Observe(d)
	}
	count, sum, buckets := h.Snapshot()
	// A bound belongs to the bucket below it, as Prometheus has it.
	if diff := cmp.Diff(map[float64]uint64{.001: 3, .01: 5, 1: 6}, buckets); diff != "" {
		t.Error(diff)
	}
	if want := 3600 + 1 + 1 + .01 + .001 + .001 - 1; count != 8 || math.Abs(sum-want) > 1e-6 {
		t.Errorf("got count %d, sum %v; want 8, %v", count, sum, want)
	}
}

func TestCountHistogram(t *testing.T) {
	h := NewCountHistogram(Rows)
	h.ObserveN(1, 1)
	h.ObserveN(100_000, 3)
	h.ObserveN(2_000_000, 1)
	count, sum, buckets := h.Snapshot()
	if count != 5 || sum != 2_300_001 || buckets[1] != 1 || buckets[3e4] != 1 || buckets[1e5] != 4 || buckets[1e6] != 4 {
		t.Errorf("got count %d, sum %v, buckets %v", count, sum, buckets)
	}
}

// The bounds of every histogram here survive the way to nanoseconds and back.
func TestBoundsAreExact(t *testing.T) {
	h := NewHistogram(Seconds)
	for i, b := range Seconds {
		if got := float64(h.limits[i]) / 1e9; got != b {
			t.Errorf("bound %v became %v", b, got)
		}
		if i > 0 && h.limits[i] <= h.limits[i-1] {
			t.Errorf("bound %v is not above the one before", b)
		}
	}
}

func TestConcurrentWriters(t *testing.T) {
	var (
		c  Counter
		g  Gauge
		h  = NewHistogram(Seconds)
		wg sync.WaitGroup
	)
	const writers, times = 8, 1000
	for range writers {
		wg.Go(func() {
			for i := range times {
				c.Inc()
				c.Add(2)
				g.Add(1)
				g.Add(-1)
				h.Observe(time.Duration(i) * time.Millisecond)
				if i%100 == 0 {
					// A scrape in between sees buckets that never exceed the count.
					if count, _, buckets := h.Snapshot(); buckets[30] > count {
						t.Errorf("bucket 30 has %d of %d", buckets[30], count)
					}
				}
			}
		})
	}
	wg.Wait()
	count, _, _ := h.Snapshot()
	if c.Load() != 3*writers*times || g.Load() != 0 || count != writers*times {
		t.Errorf("got counter %d, gauge %d, histogram %d", c.Load(), g.Load(), count)
	}
}

// Two counters side by side are written by different cores.
func TestNeighboursShareNoCacheLine(t *testing.T) {
	var counters [2]Counter
	var gauges [2]Gauge
	f := func(name string, a, b unsafe.Pointer) {
		t.Helper()
		if d := uintptr(b) - uintptr(a); d < cacheLine {
			t.Errorf("%s: %d bytes apart; want %d", name, d, cacheLine)
		}
	}
	f("Counter", unsafe.Pointer(&counters[0]), unsafe.Pointer(&counters[1]))
	f("Gauge", unsafe.Pointer(&gauges[0]), unsafe.Pointer(&gauges[1]))
	h := NewHistogram(Seconds)
	f("Histogram", unsafe.Pointer(&h.counts[0]), unsafe.Pointer(&h.counts[1]))
}

func TestWritingAllocatesNothing(t *testing.T) {
	var c Counter
	h := NewHistogram(Seconds)
	if n := testing.AllocsPerRun(100, func() { c.Inc(); h.Observe(time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations; want 0", n)
	}
}

func TestSetInARegistry(t *testing.T) {
	var (
		c   Counter
		set Set
		h   = NewHistogram(Seconds)
		r   = NewCountHistogram(Rows)
	)
	c.Add(7)
	h.Observe(time.Second)
	r.ObserveN(100, 1)
	set.Counter("edge_test_total", "A counter.", &c)
	set.Gauge("edge_test_bytes", "A gauge.", func() float64 { return 8 })
	set.CounterVec("edge_test_results_total", "Counters by result.", []string{"result"}, func(emit Emit) { emit(1, "ok"); emit(2, "error") })
	set.GaugeVec("edge_test_used", "Gauges by shard.", []string{"shard"}, func(emit Emit) { emit(3, "0") })
	set.Histogram("edge_test_seconds", "A histogram of durations.", h)
	set.HistogramVec("edge_test_rows", "Histograms by table.", []string{"table"}, func(emit func(*Histogram, ...string)) { emit(r, "events") })

	registry := prometheus.NewPedanticRegistry() // checks what is collected against what was described
	if err := registry.Register(&set); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			key := f.GetName()
			for _, l := range m.Label {
				key += " " + l.GetName() + "=" + l.GetValue()
			}
			switch {
			case m.Counter != nil:
				got[key] = m.Counter.GetValue()
			case m.Gauge != nil:
				got[key] = m.Gauge.GetValue()
			default:
				got[key] = m.Histogram.GetSampleSum()
			}
		}
	}
	want := map[string]float64{
		"edge_test_total": 7, "edge_test_bytes": 8, "edge_test_results_total result=ok": 1, "edge_test_results_total result=error": 2,
		"edge_test_used shard=0": 3, "edge_test_seconds": 1, "edge_test_rows table=events": 100,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func BenchmarkObserve(b *testing.B) {
	h := NewHistogram(Seconds)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			h.Observe(3 * time.Millisecond)
		}
	})
}
