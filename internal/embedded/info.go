package embedded

import (
	"errors"
	"maps"
)

var errClosed = errors.New("the embedded broker is closed")

// PartitionInfo is a partition and the offset its next record gets.
type PartitionInfo struct {
	ID            int32
	HighWatermark int64
}

// Partitions returns the partitions of topic in order; nil when there is no
// such topic or the broker is closed.
func (b *Broker) Partitions(topic string) []PartitionInfo {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.closed {
		return nil
	}
	var ps []PartitionInfo
	for _, p := range b.cluster.PartitionInfos(topic) {
		ps = append(ps, PartitionInfo{p.Partition, p.HighWatermark})
	}
	return ps
}

// TopicID returns the id topic was created with, and zeros when there is no such topic or
// the broker is closed. It changes when the log is made anew under the same name.
func (b *Broker) TopicID(topic string) (id [16]byte) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if !b.closed {
		if info := b.cluster.TopicInfo(topic); info != nil {
			id = info.TopicID
		}
	}
	return id
}

// ClusterID is random and made with the log.
func (b *Broker) ClusterID() string {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.id.ClusterID
}

// Incarnation counts from 1 and grows in Check. A (ClusterID, TopicID,
// Incarnation, partition, offset) names one record for ever.
func (b *Broker) Incarnation() uint32 {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.id.Incarnation
}

// Until returns where the earlier incarnations of topic ended, by incarnation and partition:
// the first offset that Check left to be given to other records.
func (b *Broker) Until(topic string) map[uint32]map[int32]int64 {
	b.mu.RLock()
	defer b.mu.RUnlock()
	out := make(map[uint32]map[int32]int64)
	for of, topics := range b.id.Until {
		out[of] = maps.Clone(topics[topic])
	}
	return out
}

// Unscanned reports whether what ClickHouse holds must be compared with the log: the previous
// run ended without Close and the host was booted since, so that what was not fsynced, in any
// file of any program, may be gone; or Check has found that the log lost its tail. It stays
// true over restarts until Scanned is called, so that a start that fails in between loses
// nothing.
func (b *Broker) Unscanned() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.id.Unscanned
}

// Scanned says that the comparison Unscanned asks for is done.
func (b *Broker) Scanned() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errClosed
	}
	id := b.id
	id.Unscanned = false
	if err := id.save(b.dir); err != nil {
		return err
	}
	b.id = id
	return nil
}

// Ready returns why the broker turns producers away: its disk reserve is
// reached, or an fsync failed. Nil means it does not.
func (b *Broker) Ready() error { return b.disk.reason() }
