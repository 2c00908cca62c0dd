package rival

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	clickhousego "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"

	"edge/internal/clickhouse"
	"edge/internal/codec"
)

const insertRows = 10_000

// BenchmarkInsert puts ten thousand rows into events and all its rollups, as
// ready columns by ch-go, as rows by clickhouse-go, and as JSON lines that the
// engine parses. It has no HTTP interface, so the lines travel inside the
// statement. cpu-ns/row is this process: the client.
func BenchmarkInsert(b *testing.B) {
	pool, child := engine(b)
	records, block := made(b)
	input, err := block.Input()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("ch-go-columns", func(b *testing.B) {
		insert(b, pool, func() error { return pool.Do(b.Context(), ch.Query{Body: input.Into("events"), Input: input}) })
	})
	conn, err := clickhousego.Open(&clickhousego.Options{
		Addr: []string{"(embedded)"}, Auth: clickhousego.Auth{Database: database, Username: "default"},
		DialContext: func(ctx context.Context, addr string) (net.Conn, error) { return child.DialContext(ctx, "tcp", addr) },
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	b.Run("clickhouse-go-rows", func(b *testing.B) {
		insert(b, pool, func() error {
			batch, err := conn.PrepareBatch(b.Context(), "INSERT INTO events (ts, event_name, channel, campaign_id, user_id, tags, metadata, event_id, received_at)")
			if err != nil {
				return err
			}
			for _, r := range records {
				if err := appendRow(batch.Append, r); err != nil {
					return err
				}
			}
			return batch.Send()
		})
	})
	lines := jsonEachRow(b, records)
	b.Run("json-each-row", func(b *testing.B) {
		insert(b, pool, func() error { return pool.Exec(b.Context(), lines) })
	})
}

// made are records as they lie on the topic, and the same as a block.
func made(b *testing.B) (records [][]byte, block *Block) {
	batch := batchOf(b, codec.NewPool(codec.Rules{}), rand.New(rand.NewPCG(1, 2)), insertRows)
	b.Cleanup(batch.Release)
	block = NewBlock()
	var d codec.Decoder
	for i := range insertRows {
		records = append(records, batch.Record(i))
		if err := block.Append(batch.Record(i), &d); err != nil {
			b.Fatal(err)
		}
	}
	return records, block
}

type row struct {
	event
	EventID    string `json:"event_id"`
	ReceivedAt int64  `json:"received_at"`
}

func appendRow(add func(...any) error, record []byte) error {
	var r row
	if err := json.Unmarshal(record, &r); err != nil {
		return err
	}
	id, err := uuid.Parse(r.EventID)
	if err != nil {
		return err
	}
	return add(time.UnixMilli(r.Timestamp), r.EventName, r.Channel, r.CampaignID, r.UserID, r.Tags, string(r.Metadata), id, time.UnixMilli(r.ReceivedAt))
}

func jsonEachRow(b *testing.B, records [][]byte) string {
	var lines strings.Builder
	for _, record := range records {
		var r row
		if err := json.Unmarshal(record, &r); err != nil {
			b.Fatal(err)
		}
		text, err := json.Marshal(map[string]any{
			"ts": dateTime(r.Timestamp), "event_name": r.EventName, "channel": r.Channel, "campaign_id": r.CampaignID, "user_id": r.UserID,
			"tags": r.Tags, "metadata": string(r.Metadata), "event_id": r.EventID, "received_at": dateTime(r.ReceivedAt),
		})
		if err != nil {
			b.Fatal(err)
		}
		lines.Write(append(text, '\n'))
	}
	const columns = "ts DateTime64(3, 'UTC'), event_name String, channel String, campaign_id String, user_id String, tags Array(String), metadata String, event_id UUID, received_at DateTime64(3, 'UTC')"
	return "INSERT INTO events (ts, event_name, channel, campaign_id, user_id, tags, metadata, event_id, received_at) SELECT * FROM format(JSONEachRow, " +
		clickhouse.Quote(columns) + ", " + clickhouse.Quote(lines.String()) + ") SETTINGS max_query_size = 100000000"
}

// insert checks after the clock has stopped that every row is there.
func insert(b *testing.B, pool *clickhouse.Pool, one func() error) {
	before := countRows(b, pool)
	b.ReportAllocs()
	used := processorTime(b)
	b.ResetTimer()
	for range b.N {
		if err := one(); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	used = processorTime(b) - used
	if got, want := countRows(b, pool)-before, int64(b.N)*insertRows; got != want {
		b.Fatalf("%d rows are stored; want %d", got, want)
	}
	rows := float64(b.N * insertRows)
	b.ReportMetric(float64(used.Nanoseconds())/rows, "cpu-ns/row")
	b.ReportMetric(rows/b.Elapsed().Seconds(), "rows/s")
}

func countRows(b *testing.B, pool *clickhouse.Pool) int64 {
	var n proto.ColUInt64
	if err := pool.Do(b.Context(), ch.Query{Body: "SELECT count() AS n FROM events", Result: proto.Results{{Name: "n", Data: &n}}}); err != nil {
		b.Fatal(err)
	}
	return int64(n.Row(0))
}

func dateTime(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02 15:04:05.000") }
