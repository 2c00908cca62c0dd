package producer

import (
	"strconv"

	"edge/internal/stat"
)

// Describe adds the producer's metrics to set.
func (p *Producer) Describe(set *stat.Set) {
	set.CounterVec("edge_produce_records_total", "Records by fate: ok acknowledged, error refused or dropped, orphaned those of either kind whose request had been answered 503 by then.",
		[]string{"result"}, func(emit stat.Emit) {
			emit(float64(p.ok.Load()), "ok")
			emit(float64(p.failed.Load()), "error")
			emit(float64(p.orphaned.Load()), "orphaned")
		})
	set.Histogram("edge_produce_seconds", "From the request entering the ring to the broker's last acknowledgement.", p.seconds)
	set.Gauge("edge_produce_inflight_records", "Records in batches and not yet acknowledged.",
		func() float64 { return float64(p.inflight.Load()) })
	set.Gauge("edge_produce_buffered_bytes", "Bytes of those records.",
		func() float64 { return float64(p.buffered.Load()) })
	set.Gauge("edge_produce_held_bytes", "Record bytes of requests that are not all in batches yet, most of them in rings.",
		func() float64 { return float64(p.held.Load()) })
	p.eachShard(set.GaugeVec, "edge_ring_capacity", "Requests a shard's ring can hold.", func(i int) float64 { return float64(p.shards[i].ring.Cap()) })
	p.eachShard(set.GaugeVec, "edge_ring_used", "Requests in a shard's ring.", func(i int) float64 { return float64(p.shards[i].ring.Len()) })
	p.eachShard(set.CounterVec, "edge_ring_full_total", "Requests a shard's ring refused.", func(i int) float64 { return float64(p.shards[i].full.Load()) })
}

func (p *Producer) eachShard(add func(string, string, []string, func(stat.Emit)), name, help string, value func(int) float64) {
	add(name, help, []string{"shard"}, func(emit stat.Emit) {
		for i := range p.shards {
			emit(value(i), strconv.Itoa(i))
		}
	})
}
