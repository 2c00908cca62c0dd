package embedded

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
)

// CheckConfig says what the log must at least contain.
type CheckConfig struct {
	// Group is the sink's consumer group, which must have no member yet.
	// Empty: compare with Stored alone.
	Group string
	// Topics are the topics it consumes.
	Topics []string
	// Stored is, per topic and partition, the highest offset whose record is
	// in ClickHouse under the current Incarnation; no entry means none.
	Stored map[string]map[int32]int64
}

// Regression is a partition whose log ends before records that were already
// committed or stored. Its lost offsets will be given to other records.
type Regression struct {
	Topic         string
	Partition     int32
	HighWatermark int64  // where the log ends now
	Committed     int64  // the group's offset before Check, -1 for none
	Metadata      string // of that commit: a plan may have been open
	Stored        int64  // -1 for none
}

// CheckResult is what Check found and did.
type CheckResult struct {
	Regressions []Regression
	// Holes were found when the log was opened. Records in them that were not
	// stored are lost; no offset is used twice because of them.
	Holes       []Hole
	Incarnation uint32
}

// Check compares the end of every partition with what was committed and
// stored. Call it after StartBroker and before anything produces or consumes.
//
// A log that ends earlier has lost its tail (an unsynced power cut, a file
// system repair, a restored backup), and two things would go wrong in
// silence: the group would skip new records up to its old offset, and new
// records would carry the identity of stored ones. So Check opens a new
// incarnation, then moves the group to the end of what is left. In that order:
// a crash in between finds the same regression again and opens one more.
//
// What was lost and never stored cannot be brought back; the Regressions say
// which offsets those are.
func (b *Broker) Check(ctx context.Context, cfg CheckConfig) (CheckResult, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return CheckResult{}, fmt.Errorf("check the log: %w", errClosed)
	}
	found := b.regressions(cfg)
	if len(found) == 0 {
		return CheckResult{Holes: b.holes, Incarnation: b.id.Incarnation}, nil
	}
	b.stats.regressions.Add(uint64(len(found)))
	for _, r := range found {
		b.cfg.Logger.Error("the embedded log lost its tail", "topic", r.Topic, "partition", r.Partition,
			"log_ends_at", r.HighWatermark, "committed", r.Committed, "stored", r.Stored, "new_incarnation", b.id.Incarnation+1)
	}
	id := b.id
	id.Incarnation++
	if err := id.save(b.dir); err != nil {
		return CheckResult{}, fmt.Errorf("check the log: open incarnation %d: %w", id.Incarnation, err)
	}
	b.id = id
	if cfg.Group != "" {
		if err := b.moveGroup(ctx, cfg.Group, found); err != nil {
			return CheckResult{}, fmt.Errorf("check the log: %w", err)
		}
	}
	return CheckResult{Regressions: found, Holes: b.holes, Incarnation: id.Incarnation}, nil
}

func (b *Broker) regressions(cfg CheckConfig) []Regression {
	commits := b.commits(cfg.Group)
	var found []Regression
	for _, topic := range cfg.Topics {
		for _, p := range b.cluster.PartitionInfos(topic) {
			r := Regression{Topic: topic, Partition: p.Partition, HighWatermark: p.HighWatermark, Committed: -1, Stored: -1}
			if c, ok := commits[topic][p.Partition]; ok {
				r.Committed, r.Metadata = c.At, c.Metadata
			}
			if s, ok := cfg.Stored[topic][p.Partition]; ok {
				r.Stored = s
			}
			if max(r.Committed, r.Stored+1) > p.HighWatermark {
				found = append(found, r)
			}
		}
	}
	return found
}

func (b *Broker) moveGroup(ctx context.Context, group string, found []Regression) error {
	var to kadm.Offsets
	for _, r := range found {
		to.Add(kadm.Offset{Topic: r.Topic, Partition: r.Partition, At: r.HighWatermark, LeaderEpoch: -1})
	}
	if err := b.admin.CommitAllOffsets(ctx, group, to); err != nil {
		return fmt.Errorf("move group %s to the end of the log: %w", group, err)
	}
	return nil
}
