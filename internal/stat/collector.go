package stat

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Set is the catalogue of exported metrics: each entry names one metric and
// knows how to read it. It is a prometheus.Collector; fill it before the first
// scrape and never after.
type Set struct {
	entries []entry
}

type entry struct {
	desc *prometheus.Desc
	read func(*prometheus.Desc, chan<- prometheus.Metric)
}

func (s *Set) add(name, help string, labels []string, read func(*prometheus.Desc, chan<- prometheus.Metric)) {
	s.entries = append(s.entries, entry{prometheus.NewDesc(name, help, labels, nil), read})
}

// Counter exports c.
func (s *Set) Counter(name, help string, c *Counter) {
	s.CounterVec(name, help, nil, func(emit Emit) { emit(float64(c.Load())) })
}

// Gauge exports what read returns at scrape time.
func (s *Set) Gauge(name, help string, read func() float64) {
	s.GaugeVec(name, help, nil, func(emit Emit) { emit(read()) })
}

// Emit reports one value with its label values, in the order of the labels.
type Emit func(value float64, labelValues ...string)

// CounterVec exports every value that read emits as a counter.
func (s *Set) CounterVec(name, help string, labels []string, read func(Emit)) {
	s.vec(name, help, labels, prometheus.CounterValue, read)
}

// GaugeVec exports every value that read emits as a gauge.
func (s *Set) GaugeVec(name, help string, labels []string, read func(Emit)) {
	s.vec(name, help, labels, prometheus.GaugeValue, read)
}

func (s *Set) vec(name, help string, labels []string, kind prometheus.ValueType, read func(Emit)) {
	s.add(name, help, labels, func(d *prometheus.Desc, out chan<- prometheus.Metric) {
		read(func(v float64, lv ...string) { out <- prometheus.MustNewConstMetric(d, kind, v, lv...) })
	})
}

// Histogram exports h; labelValues belong to labels.
func (s *Set) Histogram(name, help string, h *Histogram) {
	s.HistogramVec(name, help, nil, func(emit func(*Histogram, ...string)) { emit(h) })
}

// HistogramVec exports every histogram that read emits with its label values.
func (s *Set) HistogramVec(name, help string, labels []string, read func(emit func(h *Histogram, labelValues ...string))) {
	s.add(name, help, labels, func(d *prometheus.Desc, out chan<- prometheus.Metric) {
		read(func(h *Histogram, lv ...string) {
			count, sum, buckets := h.Snapshot()
			out <- prometheus.MustNewConstHistogram(d, count, sum, buckets, lv...)
		})
	})
}

// Describe implements prometheus.Collector.
func (s *Set) Describe(out chan<- *prometheus.Desc) {
	for _, e := range s.entries {
		out <- e.desc
	}
}

// Collect implements prometheus.Collector.
func (s *Set) Collect(out chan<- prometheus.Metric) {
	for _, e := range s.entries {
		e.read(e.desc, out)
	}
}
