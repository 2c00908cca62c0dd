package rival

import (
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	clickhousego "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"

	"edge/bench/child"
	"edge/internal/clickhouse"
	"edge/internal/codec"
	"edge/internal/sink"
)

// An op is a million rows, in blocks as large as the sink's fullest. In ops of one block
// of ten thousand, runs differed by a third: by which of them a merge fell into.
const insertRows, insertBlocks = 100_000, 10

// BenchmarkInsert puts events into their table and all its rollups. The limit is a block
// that was made, and encoded, before the clock started. All others start from the same
// decoded events, each in the form that it takes: edge from codec's into the sink's
// columns, clickhouse-go and JSON from a struct with strings. The lines of JSONEachRow
// travel inside a native statement, because the engine has no HTTP interface. What they
// send is not quite the same: edge and the limit also fill the eight columns by which the
// sink is exactly-once, the others leave them to their defaults.
//
// cpu-ns/row is this process, the client. engine-cpu-ns/row is the engine, with the
// merges that fall into the run.
func BenchmarkInsert(b *testing.B) {
	pool, server := engine(b)
	records := made(b)
	run := func(name string, one func() error) {
		b.Run(name, func(b *testing.B) { insert(b, pool, server.Pid(), one) })
	}
	ready := readyInput(b, records)
	run("limit-ready-block", func() error { return pool.Do(b.Context(), ch.Query{Body: ready.Into("events"), Input: ready}) })

	events, columns := decoded(b, records), sink.NewColumns()
	run("edge", func() error {
		columns.Reset()
		for i := range events {
			columns.Append(&events[i], 0, int64(i))
		}
		input := columns.Input(1)
		return pool.Do(b.Context(), ch.Query{Body: input.Into("events"), Input: input})
	})

	rows := asRows(b, records)
	conn, err := clickhousego.Open(&clickhousego.Options{
		Addr: []string{"(embedded)"}, Auth: clickhousego.Auth{Database: database, Username: "default"},
		DialContext: func(ctx context.Context, addr string) (net.Conn, error) { return server.DialContext(ctx, "tcp", addr) },
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	run("clickhouse-go-rows", func() error {
		batch, err := conn.PrepareBatch(b.Context(), "INSERT INTO events ("+rowColumns+")")
		if err != nil {
			return err
		}
		for i := range rows {
			r := &rows[i]
			if err := batch.Append(time.UnixMilli(r.Timestamp), r.EventName, r.Channel, r.CampaignID, r.UserID, r.Tags, string(r.Metadata), r.EventID, time.UnixMilli(r.ReceivedAt)); err != nil {
				return err
			}
		}
		return batch.Send()
	})

	size := 0
	run("json-each-row", func() error {
		var lines strings.Builder // whose text is no copy of what it holds
		lines.Grow(size)
		lines.WriteString("INSERT INTO events (" + rowColumns + ") FORMAT JSONEachRow\n")
		if err := jsonLines(&lines, rows); err != nil {
			return err
		}
		size = lines.Len()
		return pool.Exec(b.Context(), lines.String())
	})
}

// rowColumns are those that are an event's own.
const rowColumns = "ts, event_name, channel, campaign_id, user_id, tags, metadata, event_id, received_at"

// made are records as they lie on the topic.
func made(b *testing.B) (records [][]byte) {
	const request = 10_000
	pool, random := codec.NewPool(codec.Rules{}), rand.New(rand.NewPCG(1, 2))
	for len(records) < insertRows {
		batch := batchOf(b, pool, random, request)
		b.Cleanup(batch.Release)
		for i := range request {
			records = append(records, batch.Record(i))
		}
	}
	return records
}

func readyInput(b *testing.B, records [][]byte) proto.Input {
	block := NewBlock()
	var d codec.Decoder
	for _, r := range records {
		if err := block.Append(r, &d); err != nil {
			b.Fatal(err)
		}
	}
	input, err := block.Input()
	if err != nil {
		b.Fatal(err)
	}
	return input
}

// decoded are the events of records. A decoder reuses what it has unescaped and the
// tags, so each event has one of its own.
func decoded(b *testing.B, records [][]byte) []codec.Event {
	events := make([]codec.Event, len(records))
	for i, r := range records {
		var d codec.Decoder
		if err := d.DecodeRecord(r, &events[i]); err != nil {
			b.Fatal(string(err.AppendText(nil)))
		}
	}
	return events
}

type row struct {
	event
	EventID    uuid.UUID `json:"event_id"`
	ReceivedAt int64     `json:"received_at"`
}

func asRows(b *testing.B, records [][]byte) []row {
	rows := make([]row, len(records))
	for i, r := range records {
		if err := json.Unmarshal(r, &rows[i]); err != nil {
			b.Fatal(err)
		}
	}
	return rows
}

// line is a row of events in JSON, where metadata is a string.
type line struct {
	Time       string    `json:"ts"`
	EventName  string    `json:"event_name"`
	Channel    string    `json:"channel"`
	CampaignID string    `json:"campaign_id"`
	UserID     string    `json:"user_id"`
	Tags       []string  `json:"tags"`
	Metadata   string    `json:"metadata"`
	EventID    uuid.UUID `json:"event_id"`
	ReceivedAt string    `json:"received_at"`
}

func jsonLines(out io.Writer, rows []row) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	for i := range rows {
		r := &rows[i]
		if err := enc.Encode(&line{dateTime(r.Timestamp), r.EventName, r.Channel, r.CampaignID, r.UserID, r.Tags, string(r.Metadata), r.EventID, dateTime(r.ReceivedAt)}); err != nil {
			return err
		}
	}
	return nil
}

// insert starts with empty tables, so that nobody pays for merging what others have
// inserted, and checks after the clock has stopped that every row is there and in every
// rollup.
func insert(b *testing.B, pool *clickhouse.Pool, server int, one func() error) {
	for _, t := range []string{"events", "events_1m", "events_users"} {
		if err := pool.Exec(b.Context(), "TRUNCATE TABLE "+t); err != nil {
			b.Fatal(err)
		}
	}
	blocks := func(n int) {
		for range n {
			if err := one(); err != nil {
				b.Fatal(err)
			}
		}
	}
	blocks(1) // memory grows
	used, engine := processorTime(b), child.CPU(server)
	b.ReportAllocs()
	b.ResetTimer()
	blocks(b.N * insertBlocks)
	b.StopTimer()
	used, engine = processorTime(b)-used, child.CPU(server)-engine
	want := int64(b.N*insertBlocks+1) * insertRows
	if got := countRows(b, pool); len(got) != 4 || slices.Min(got) != want || slices.Max(got) != want {
		b.Fatalf("the rows, and as its rollups count them: %d; want four times %d", got, want)
	}
	rows := float64(b.N * insertBlocks * insertRows)
	b.ReportMetric(float64(used.Nanoseconds())/rows, "cpu-ns/row")
	b.ReportMetric(float64(engine.Nanoseconds())/rows, "engine-cpu-ns/row")
	b.ReportMetric(rows/b.Elapsed().Seconds(), "rows/s")
}

// countRows is how many rows events has, and how many each of its rollups counts.
func countRows(b *testing.B, pool *clickhouse.Pool) (all []int64) {
	const body = `SELECT toInt64(count()) AS n FROM events
		UNION ALL SELECT sum(n) AS n FROM events_1m
		UNION ALL SELECT sum(n) AS n FROM events_users WHERE by_channel = 0 AND width = 300
		UNION ALL SELECT sum(n) AS n FROM events_users WHERE by_channel = 1 AND width = 1382400`
	var n proto.ColInt64
	err := pool.Do(b.Context(), ch.Query{Body: body, Result: proto.Results{{Name: "n", Data: &n}}, OnResult: func(context.Context, proto.Block) error {
		all = append(all, n...)
		return nil
	}})
	if err != nil {
		b.Fatal(err)
	}
	return all
}

func dateTime(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02 15:04:05.000") }
