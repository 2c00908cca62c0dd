package embedded

import (
	"edge/internal/stat"
)

type stats struct {
	regressions      stat.Counter
	uncleanStarts    stat.Counter
	uncleanHostBoots stat.Counter
	diskErrors       stat.Counter
	cutBytes         stat.Counter
	holes            stat.Counter
	trimmed          stat.Counter
}

// Describe adds the broker's metrics to set.
func (b *Broker) Describe(set *stat.Set) {
	s := &b.stats
	set.Counter("edge_log_regressions_total", "Partitions whose log was found to have lost records that were committed or stored.", &s.regressions)
	set.Counter("edge_unclean_starts_total", "Starts after a run that did not close the embedded broker.", &s.uncleanStarts)
	set.Counter("edge_unclean_host_boots_total", "Unclean starts with a boot of the host in between.", &s.uncleanHostBoots)
	set.Counter("edge_disk_errors_total", "Writes and fsyncs of the embedded broker that failed.", &s.diskErrors)
	set.Counter("edge_log_cut_bytes_total", "Bytes of torn or corrupt batches cut off the log at start.", &s.cutBytes)
	set.Counter("edge_log_holes_total", "Ranges of offsets found missing inside the log at start.", &s.holes)
	set.Counter("edge_log_trimmed_records_total", "Records removed from the embedded log after they were committed and old enough.", &s.trimmed)
	set.GaugeVec("edge_disk_free_bytes", "Free space on the file system of a directory.", []string{"path"}, func(emit stat.Emit) {
		if free, _, err := space(b.dir); err == nil {
			emit(float64(free), b.dir)
		}
	})
	set.GaugeVec("edge_disk_size_bytes", "Size of that file system.", []string{"path"}, func(emit stat.Emit) {
		if _, size, err := space(b.dir); err == nil {
			emit(float64(size), b.dir)
		}
	})
	set.Gauge("edge_broker_refusing", "1 while the embedded broker turns producers away: the disk reserve is reached, or an fsync failed.", func() float64 {
		if b.Ready() != nil {
			return 1
		}
		return 0
	})
	set.CounterVec("edge_broker_refused_connections_total", "Connections to the embedded broker closed at the gate.", []string{"reason"}, func(emit stat.Emit) {
		emit(float64(b.door.refusedKey.Load()), "key")
		emit(float64(b.door.refusedLength.Load()), "length")
		emit(float64(b.door.refusedPeers.Load()), "peers")
	})
}
