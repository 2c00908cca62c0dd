package clickhouse

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// TestEventsAndRollups runs the shape of edge's own schema: a raw table, a view
// with an aggregate state, deduplicated inserts over several days, a killed
// engine, and exact totals after it.
func TestEventsAndRollups(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	child := startChild(t, dir)
	c := dial(t, child)
	do(t, c, `CREATE TABLE events (event_name LowCardinality(String), timestamp DateTime64(3, 'UTC'), user_id String,
		tags Array(LowCardinality(String)), metadata String CODEC(ZSTD(1)), event_id UUID)
		ENGINE=MergeTree PARTITION BY toDate(timestamp) ORDER BY (event_name, timestamp)
		SETTINGS non_replicated_deduplication_window=1000, fsync_after_insert=1, fsync_part_directory=1`)
	do(t, c, `CREATE TABLE daily (day Date, event_name LowCardinality(String), n SimpleAggregateFunction(sum, Int64),
		users AggregateFunction(uniqCombined64, String))
		ENGINE=AggregatingMergeTree ORDER BY (event_name, day) SETTINGS non_replicated_deduplication_window=1000`)
	do(t, c, `CREATE MATERIALIZED VIEW daily_mv TO daily AS SELECT toDate(timestamp) AS day, event_name,
		toInt64(count()) AS n, uniqCombined64State(user_id) AS users FROM events GROUP BY day, event_name`)
	const batches, rows = 4, 5000
	insert := func(c *ch.Client, batch int) {
		t.Helper()
		err := c.Do(t.Context(), ch.Query{Body: "INSERT INTO events (event_name, timestamp, user_id, tags, metadata, event_id) VALUES",
			Input: events(rows, batch), Settings: []ch.Setting{
				{Key: "insert_deduplication_token", Value: fmt.Sprint("batch-", batch), Important: true},
				{Key: "deduplicate_blocks_in_dependent_materialized_views", Value: "1", Important: true},
				{Key: "async_insert", Value: "0", Important: true},
			}})
		if err != nil {
			t.Fatal(err)
		}
	}
	for b := range batches {
		insert(c, b)
	}
	if err := syscall.Kill(child.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c = dial(t, child)
	insert(c, 0) // again: deduplicated in both tables
	f := func(sql, want string) {
		t.Helper()
		if got := value(t, c, sql); got != want {
			t.Errorf("%s: got %s; want %s", sql, got, want)
		}
	}
	total := fmt.Sprint(batches * rows)
	f("(SELECT count() FROM events)", total)
	f("(SELECT sum(n) FROM daily)", total)
	f("(SELECT uniqCombined64Merge(users) FROM daily)", value(t, c, "(SELECT uniqCombined64(user_id) FROM events)"))
	f("(SELECT uniqExact(day) FROM daily)", "2")

	// The rollup's columns arrive typed as clients expect them.
	var day proto.ColDate
	n := new(proto.ColInt64)
	var users proto.ColUInt64
	err := c.Do(t.Context(), ch.Query{
		Body: "SELECT day, n, uniqCombined64Merge(users) AS users FROM daily FINAL GROUP BY day, n ORDER BY day, n LIMIT 1",
		Result: proto.Results{{Name: "day", Data: &day}, {Name: "n", Data: proto.Alias(n, "SimpleAggregateFunction(sum, Int64)")},
			{Name: "users", Data: &users}}})
	if err != nil {
		t.Fatal(err)
	}
	if day.Rows() != 1 || !day.Row(0).Equal(time.Date(2024, 5, 1, 0, 0, 0, 0, time.UTC)) || users[0] == 0 {
		t.Errorf("got %v, %v, %v", day, *n, users)
	}
}

// events makes one batch, a pure function of its number.
func events(rows, batch int) proto.Input {
	name := new(proto.ColStr).LowCardinality()
	at := new(proto.ColDateTime64).WithPrecision(proto.PrecisionMilli).WithLocation(time.UTC)
	tags := proto.NewArray(new(proto.ColStr).LowCardinality())
	var user, meta proto.ColStr
	var id proto.ColUUID
	start := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	for i := range rows {
		name.Append([]string{"view", "click", "buy"}[i%3])
		at.Append(start.Add(time.Duration(i%2) * 24 * time.Hour).Add(time.Duration(i) * time.Millisecond))
		user.Append(fmt.Sprint("user-", (i*7+batch*1000)%3000))
		tags.Append([]string{"web", "mobile"}[:i%3%2+1])
		meta.Append(`{"plan":"pro","n":1}`)
		id.Append([16]byte{byte(batch), byte(i), byte(i >> 8)})
	}
	return proto.Input{{Name: "event_name", Data: name}, {Name: "timestamp", Data: at}, {Name: "user_id", Data: &user},
		{Name: "tags", Data: tags}, {Name: "metadata", Data: &meta}, {Name: "event_id", Data: &id}}
}

// TestPartsAreCompressedBySize: what is merged soon in haste, what stays with care.
func TestPartsAreCompressedBySize(t *testing.T) {
	child := startChild(t, filepath.Join(t.TempDir(), "data"))
	c := dial(t, child)
	codec := func(want string) {
		t.Helper()
		const sql = "SELECT arrayStringConcat(groupUniqArray(default_compression_codec)) FROM system.parts WHERE active AND table = 'texts'"
		if got := value(t, c, "("+sql+")"); got != want {
			t.Errorf("the parts are compressed with %s, want %s", got, want)
		}
	}
	do(t, c, "CREATE TABLE texts (s String) ENGINE = MergeTree ORDER BY ()")
	do(t, c, "SYSTEM STOP MERGES texts")
	for range 2 {
		do(t, c, "INSERT INTO texts SELECT randomString(1048576) FROM numbers(140)")
	}
	codec("LZ4")
	do(t, c, "SYSTEM START MERGES texts")
	do(t, c, "OPTIMIZE TABLE texts FINAL")
	codec("ZSTD(1)")
}

// TestServerAndEngineCompressAlike: the rule stands in two files.
func TestServerAndEngineCompressAlike(t *testing.T) {
	server, err := os.ReadFile("../../../deploy/clickhouse/config.xml")
	if err != nil {
		t.Fatal(err)
	}
	rule := func(config string) string {
		_, after, _ := strings.Cut(config, "<compression>")
		rule, _, ok := strings.Cut(after, "</compression>")
		if !ok {
			t.Fatal("a configuration without a rule")
		}
		return strings.Join(strings.Fields(rule), "")
	}
	if engine, server := rule(engineConfig(new(Config))), rule(string(server)); engine != server {
		t.Errorf("the engine compresses by %s, a server by %s", engine, server)
	}
}
