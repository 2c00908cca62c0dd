package naive

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A batch of Sink: so many rows, or what has come by so long after its first.
const (
	batchRows = 100_000
	batchAge  = time.Second
)

// Sink copies n records of a topic into events as a team would, or what comes until ctx
// ends if n is below zero: encoding/json into the struct, clickhouse-go's rows, a batch
// of a hundred thousand or of a second, and the insert before the next poll. It keeps no
// account of what it has stored.
func Sink(ctx context.Context, cfg Config, addr, database string, n int) (time.Duration, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.ConsumeTopics(cfg.Topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return 0, err
	}
	defer client.Close()
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: []string{addr}, Auth: clickhouse.Auth{Database: database, Username: "default"}})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	began := time.Now()
	for done := 0; done != n && ctx.Err() == nil; {
		batch, err := conn.PrepareBatch(ctx, "INSERT INTO events (ts, event_name, channel, campaign_id, user_id, tags, metadata, event_id, received_at)")
		if err != nil && ctx.Err() != nil {
			break
		}
		if err != nil {
			return 0, err
		}
		size, until, cancel := 0, ctx, func() {}
		for size < batchRows && done != n && until.Err() == nil {
			most := batchRows - size
			if n >= 0 {
				most = min(most, n-done)
			}
			fetches := client.PollRecords(until, most)
			if err := fetches.Err(); err != nil && until.Err() == nil {
				cancel()
				return 0, err
			}
			for _, r := range fetches.Records() {
				if size == 0 {
					until, cancel = context.WithTimeout(ctx, batchAge)
				}
				if err := add(batch, r); err != nil {
					cancel()
					return 0, err
				}
				size++
				done++
			}
		}
		cancel()
		if err := batch.Send(); err != nil && ctx.Err() == nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

func add(to interface{ Append(...any) error }, r *kgo.Record) error {
	var e event
	if err := json.Unmarshal(r.Value, &e); err != nil {
		return fmt.Errorf("record %d: %w", r.Offset, err)
	}
	metadata, err := json.Marshal(e.Metadata)
	if err != nil {
		return err
	}
	return to.Append(time.UnixMilli(e.Timestamp), e.EventName, e.Channel, e.CampaignID, e.UserID, e.Tags,
		string(metadata), uuid.New(), time.UnixMilli(e.ReceivedAt))
}
