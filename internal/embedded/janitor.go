package embedded

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// Retention says what may be removed from a topic.
type Retention struct {
	// Group must have committed past a record before it may go.
	Group string
	// Age is how long a record stays after its timestamp.
	Age time.Duration
}

// Trim removes records that are both consumed and old, a whole segment file
// at a time, and always leaves the last record: kfake finds the next offset by
// looking at it, and an emptied partition starts again at 0.
//
// The broker calls it every minute.
func (b *Broker) Trim(ctx context.Context) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.closed {
		return fmt.Errorf("trim: %w", errClosed)
	}
	for _, topic := range slices.Sorted(maps.Keys(b.cfg.Retention)) {
		if err := b.trimTopic(ctx, topic, b.cfg.Retention[topic]); err != nil {
			return fmt.Errorf("trim %s: %w", topic, err)
		}
	}
	return nil
}

func (b *Broker) trimTopic(ctx context.Context, topic string, r Retention) error {
	limits := b.consumed(topic, r.Group)
	if len(limits) == 0 {
		return nil
	}
	now := time.Now()
	since := now.Add(-r.Age).UnixMilli()
	young, err := b.admin.ListOffsetsAfterMilli(ctx, since, topic)
	if err == nil {
		err = young.Error()
	}
	if err != nil {
		return fmt.Errorf("find the records older than %v: %w", r.Age, err)
	}
	for _, p := range b.cluster.PartitionInfos(topic) {
		limit, ok := limits[p.Partition]
		if !ok {
			continue
		}
		// ListOffsetsAfterMilli answers the end of the log when all is old.
		first, ok := young.Lookup(topic, p.Partition)
		if !ok {
			continue
		}
		if first.Timestamp > now.UnixMilli() {
			// Written while the clock was ahead, perhaps by years, for which nothing behind
			// it would ever go.
			before, err := b.before(topic, p.Partition, since)
			if err != nil {
				return fmt.Errorf("partition %d: %w", p.Partition, err)
			}
			first.Offset = max(first.Offset, before)
		}
		to := min(limit, first.Offset)
		if to <= p.LogStartOffset {
			continue
		}
		if err := b.cluster.DeleteRecords(topic, p.Partition, to); err != nil {
			return fmt.Errorf("partition %d up to offset %d: %w", p.Partition, to, err)
		}
		b.stats.trimmed.Add(uint64(to - p.LogStartOffset))
	}
	return nil
}

// before returns an offset, the first of a segment, whose record is older than since, and
// with it all that lies before, whatever their own timestamps say; 0 when there is none.
func (b *Broker) before(topic string, partition int32, since int64) (int64, error) {
	dir := b.partitionDir(topic, partition)
	bases, err := segmentBases(dir)
	if err != nil {
		return 0, err
	}
	for _, base := range slices.Backward(bases) {
		at, err := firstTime(segmentPath(dir, base))
		if err != nil {
			return 0, err
		}
		if at < since {
			return base, nil
		}
	}
	return 0, nil
}

// firstTime returns the latest timestamp of a segment's first batch, in Unix milliseconds;
// the end of time when there is no batch yet.
func firstTime(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var head [batchHeader]byte
	switch _, err := f.ReadAt(head[:], 0); {
	case errors.Is(err, io.EOF):
		return math.MaxInt64, nil
	case err != nil:
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(head[35:])), nil
}

// consumed returns, for the partitions with something to trim, the offset
// below which every record was consumed and is not the last.
func (b *Broker) consumed(topic, group string) map[int32]int64 {
	commits := b.commits(group)
	limits := make(map[int32]int64)
	for _, p := range b.cluster.PartitionInfos(topic) {
		if limit := min(p.HighWatermark-1, commits[topic][p.Partition].At); limit > p.LogStartOffset {
			limits[p.Partition] = limit
		}
	}
	return limits
}

// commits returns what group has committed, also while it has no member.
func (b *Broker) commits(group string) kadm.Offsets {
	info := b.cluster.GroupInfo(group)
	if info == nil {
		return nil
	}
	var os kadm.Offsets
	for topic, ps := range info.Commits {
		for p, c := range ps {
			os.Add(kadm.Offset{Topic: topic, Partition: p, At: c.Offset, LeaderEpoch: c.LeaderEpoch, Metadata: c.Metadata})
		}
	}
	return os
}
