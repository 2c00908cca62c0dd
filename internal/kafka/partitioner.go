package kafka

import "github.com/twmb/franz-go/pkg/kgo"

// PartitionOf is the partition, out of n, of an event whose event_id has the
// hash: every copy of an event meets the same partition and thus the same
// deduplication window.
func PartitionOf(hash uint64, n int) int { return int(HashPartition(hash)) % n }

// ByHash is PartitionOf for a kgo client that produces to the topic of events. A
// record brings its hash in its Partition field, see HashPartition.
type ByHash struct{}

// HashPartition is a hash of an event_id as ByHash wants it in a record.
func HashPartition(hash uint64) int32 { return int32(hash >> 33) }

// ForTopic implements kgo.Partitioner.
func (ByHash) ForTopic(string) kgo.TopicPartitioner { return ByHash{} }

// RequiresConsistency keeps a record's partition fixed while its leader is away.
func (ByHash) RequiresConsistency(*kgo.Record) bool { return true }

// Partition implements kgo.TopicPartitioner.
func (ByHash) Partition(r *kgo.Record, n int) int { return int(r.Partition) % n }
