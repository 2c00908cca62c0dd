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

// Sink copies n records of a topic into events as a team would: encoding/json
// into the struct, clickhouse-go's rows, a batch of a hundred thousand, and the
// insert before the next poll. It keeps no account of what it has stored.
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
	const rows = 100_000
	began := time.Now()
	for done := 0; done < n; {
		batch, err := conn.PrepareBatch(ctx, "INSERT INTO events (ts, event_name, channel, campaign_id, user_id, tags, metadata, event_id, received_at)")
		if err != nil {
			return 0, err
		}
		size := 0
		for size < rows && done < n {
			fetches := client.PollRecords(ctx, min(rows-size, n-done))
			if err := fetches.Err(); err != nil {
				return 0, err
			}
			for _, r := range fetches.Records() {
				var e event
				if err := json.Unmarshal(r.Value, &e); err != nil {
					return 0, fmt.Errorf("record %d: %w", r.Offset, err)
				}
				metadata, err := json.Marshal(e.Metadata)
				if err != nil {
					return 0, err
				}
				err = batch.Append(time.UnixMilli(e.Timestamp), e.EventName, e.Channel, e.CampaignID, e.UserID, e.Tags,
					string(metadata), uuid.New(), time.UnixMilli(e.ReceivedAt))
				if err != nil {
					return 0, err
				}
				size++
				done++
			}
		}
		if err := batch.Send(); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}
