package embedded

import (
	"cmp"
	"context"
	"fmt"
	"maps"

	"github.com/twmb/franz-go/pkg/kadm"
)

// Check compares the end of topic's partitions with what group has committed and with
// stored: per partition the last offset that ClickHouse has taken of this log, as a row or
// not, and no entry for none. declared returns the offset behind what a commit says is about to
// be stored: that was in the log, and perhaps is stored already. known is the highest
// incarnation that has stored anything: one above that of now says that the log is an older
// copy of itself, and that number and those between are other records'. Call it after StartBroker
// and before anything produces or consumes; the group must have no member.
//
// A log that ends earlier has lost its tail (an unsynced power cut, a file
// system repair, a restored backup), and two things would go wrong in
// silence: the group would skip new records up to its old offset, and new
// records would carry the identity of stored ones. So Check opens a new
// incarnation, then moves the group to the end of what is left, if it stands beyond: what it
// has not passed may not be stored. In that order:
// a crash in between finds the same regression again and opens one more.
//
// Of an insert that was under way when the tail was lost nothing in the log says so any more,
// and an older copy says nothing of the power cut for which it was put back: what is stored is
// to be compared with the log, see Unscanned.
//
// What was lost and never stored cannot be brought back; the log says which offsets
// those are.
func (b *Broker) Check(ctx context.Context, group, topic string, known uint32, stored map[int32]int64, declared func(at int64, metadata string) int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return fmt.Errorf("check the log: %w", errClosed)
	}
	id := b.id
	lost := known > id.Incarnation
	if lost {
		b.stats.regressions.Inc()
		b.cfg.Logger.Error("the embedded log is an older copy of itself", "topic", topic, "incarnation", id.Incarnation, "known", known)
	}
	id.Incarnation = max(id.Incarnation, known) + 1
	committed := b.commits(group)[topic]
	var moved kadm.Offsets // of the partitions that lost their tail
	for _, p := range b.cluster.PartitionInfos(topic) {
		highest, ok := stored[p.Partition]
		if !ok {
			highest = -1
		}
		at, some := committed[p.Partition]
		commit := at.At
		var plans int64
		if some && at.Metadata != "" {
			plans = declared(commit, at.Metadata)
		}
		if max(commit, plans, highest+1) <= p.HighWatermark {
			continue
		}
		lost = true
		b.stats.regressions.Inc()
		b.cfg.Logger.Error("the embedded log lost its tail", "topic", topic, "partition", p.Partition,
			"log_ends_at", p.HighWatermark, "committed", commit, "declared", plans, "stored", highest, "new_incarnation", id.Incarnation)
		if some {
			moved.Add(kadm.Offset{Topic: topic, Partition: p.Partition, At: min(commit, p.HighWatermark), LeaderEpoch: -1})
		}
	}
	if !lost {
		return nil
	}
	// The number is that of all topics, and another may be the one that is stored later on.
	ends, err := b.admin.ListEndOffsets(ctx)
	if err = cmp.Or(err, ends.Error()); err != nil {
		return fmt.Errorf("check the log: list where it ends: %w", err)
	}
	until := make(map[string]map[int32]int64)
	ends.Each(func(o kadm.ListedOffset) {
		if until[o.Topic] == nil {
			until[o.Topic] = make(map[int32]int64)
		}
		until[o.Topic][o.Partition] = o.Offset
	})
	id.Until = maps.Clone(id.Until)
	if id.Until == nil {
		id.Until = make(map[uint32]map[string]map[int32]int64)
	}
	id.Until[b.id.Incarnation] = until
	id.Unscanned = true
	if err := id.save(b.dir); err != nil {
		return fmt.Errorf("check the log: open incarnation %d: %w", id.Incarnation, err)
	}
	b.id = id
	if len(moved) == 0 {
		return nil
	}
	if err := b.admin.CommitAllOffsets(ctx, group, moved); err != nil {
		return fmt.Errorf("check the log: move group %s to its end: %w", group, err)
	}
	return nil
}
