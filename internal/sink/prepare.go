package sink

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/twmb/franz-go/pkg/kadm"

	"edge/internal/clickhouse"
)

// source is the log this sink reads and how its inserts must be made.
type source struct {
	logNumbers          // its _src
	topic      [16]byte // its id
	before     []string // the numbers of logs that the topic's name was for in this cluster
	partitions int
	settings   [][2]string // of every insert
}

// SchemaError says that the database is not what this binary writes to. No
// retry mends it.
type SchemaError struct{ Problem string }

func (e *SchemaError) Error() string { return "schema: " + e.Problem }

// prepare names the log and asserts, before anything is consumed, that the
// server will treat an insert as the recovery expects.
func (s *Sink) prepare(ctx context.Context) (source, error) {
	if err := s.checkSchema(ctx); err != nil {
		return source{}, err
	}
	settings, err := s.checkSettings(ctx)
	if err != nil {
		return source{}, err
	}
	src, err := s.register(ctx)
	src.settings = settings
	return src, err
}

// views maps each rollup to the view that fills it.
var views = map[string]string{"events_1m": "events_1m_mv", "events_users": "events_users_mv"}

func (s *Sink) checkSchema(ctx context.Context) error {
	have, err := s.cfg.ClickHouse.Strings(ctx, "SELECT concat(table, '.', name) AS s FROM system.columns WHERE database = currentDatabase() AND table = 'events'")
	if err != nil {
		return fmt.Errorf("read the columns of events: %w", err)
	}
	for _, c := range newBlock().input() {
		if !slices.Contains(have, "events."+c.Name) {
			return &SchemaError{fmt.Sprintf("table events has no column %s; run edge migrate", c.Name)}
		}
	}
	engines, err := s.cfg.ClickHouse.Strings(ctx, "SELECT concat(name, ' ', engine) AS s FROM system.tables WHERE database = currentDatabase()")
	if err != nil {
		return fmt.Errorf("read the tables: %w", err)
	}
	has := func(table, engine string) bool {
		return slices.ContainsFunc(engines, func(e string) bool { return e == table+" "+engine || e == table+" Replicated"+engine })
	}
	if !has("events", "MergeTree") {
		return &SchemaError{"table events is not a MergeTree: another engine may drop or merge rows"}
	}
	for rollup, view := range views {
		if !has(rollup, "AggregatingMergeTree") {
			return &SchemaError{"table " + rollup + " is not an AggregatingMergeTree"}
		}
		if !has(view, "MaterializedView") {
			return &SchemaError{"view " + view + " is missing: " + rollup + " would stop counting"}
		}
	}
	return nil
}

// checkSettings returns the settings of every insert, refusing a server that
// does not know one or has pinned it to something else.
func (s *Sink) checkSettings(ctx context.Context) ([][2]string, error) {
	want := [][2]string{
		{"async_insert", "0"}, // an answer must mean that the rows are in
		// One block, one part per month: what recovery relies on.
		{"max_insert_block_size", "1048449"},
		{"min_insert_block_size_rows", "1048449"},
		{"min_insert_block_size_bytes", "536870912"},
		{"max_partitions_per_insert_block", "0"}, // a batch may carry any mix of times
		// The view of events_users leaves equal keys to it.
		{"optimize_on_insert", "1"},
		// A rollup that failed must fail the insert.
		{"materialized_views_ignore_errors", "0"},
		// No deduplication by the server, see the package comment. The second
		// name replaced the first in 26.2.
		{"insert_deduplicate", "0"},
		{"deduplicate_insert", "disable"},
		{"deduplicate_blocks_in_dependent_materialized_views", "0"},
	}
	optional := []string{"insert_deduplicate", "deduplicate_insert"}
	var name proto.ColStr
	var value proto.ColStr
	var pinned proto.ColUInt8
	type known struct {
		value  string
		pinned bool
	}
	server := make(map[string]known)
	err := s.cfg.ClickHouse.Do(ctx, ch.Query{
		Body:   "SELECT name, value, readonly FROM system.settings WHERE name IN ('" + strings.Join(names(want), "','") + "')",
		Result: proto.Results{{Name: "name", Data: &name}, {Name: "value", Data: &value}, {Name: "readonly", Data: &pinned}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range name.Rows() {
				server[name.Row(i)] = known{value.Row(i), pinned[i] != 0}
			}
			return nil
		},
	})
	if err != nil {
		return nil, fmt.Errorf("read the server's settings: %w", err)
	}
	var out [][2]string
	for _, w := range want {
		k, ok := server[w[0]]
		switch {
		case !ok && slices.Contains(optional, w[0]):
		case !ok:
			return nil, &SchemaError{"the server has no setting " + w[0] + ", which every insert needs"}
		case k.pinned && k.value != w[1]:
			return nil, &SchemaError{fmt.Sprintf("the user's profile pins %s to %s; inserts need %s", w[0], k.value, w[1])}
		default:
			out = append(out, w)
		}
	}
	return out, nil
}

func names(settings [][2]string) []string {
	out := make([]string, len(settings))
	for i, s := range settings {
		out[i] = s[0]
	}
	return out
}

// SourceID is the number of a log, the _src of its rows: cluster, topic id and
// incarnation, hashed, so that sinks that start at once agree without talking.
func SourceID(cluster string, topicID [16]byte, incarnation uint32) uint32 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%x/%d", cluster, topicID, incarnation))
	return binary.BigEndian.Uint32(sum[:])
}

// StoredBeyond returns, per partition of a log, the last offset of the batches that reach
// the one given or go beyond it: nothing, when the log is whole. The end of a batch may be
// without rows, or all of it: its records were duplicates or dead, and yet their offsets
// are taken. Asking only for batches that can reach so far is what the index on _offset
// makes cheap. What earlier lives have stored counts: a log may lose what is of an earlier
// one before the life of now has stored anything.
func (l Lives) StoredBeyond(ctx context.Context, pool *clickhouse.Pool, cluster string, topic [16]byte, ends map[int32]int64) (map[int32]int64, error) {
	log := l.numbers(cluster, topic)
	out := make(map[int32]int64)
	for id, end := range ends {
		var last proto.ColUInt64
		err := pool.Do(ctx, ch.Query{
			Body: fmt.Sprintf(`SELECT max(l) AS last FROM (
				SELECT max(%[4]s) AS l FROM events WHERE %[3]s AND _offset >= %[2]d AND %[4]s >= %[1]d HAVING count() > 0
				UNION ALL SELECT %[6]s FROM empty_batches WHERE %[5]s AND %[6]s >= %[1]d
			) HAVING count() > 0`, end, max(end-longest, 0), log.rows(id, ofParts), log.last(id, ofParts), log.rows(id, ofBatches), log.last(id, ofBatches)),
			Result: proto.Results{{Name: "last", Data: &last}},
			OnResult: func(context.Context, proto.Block) error {
				for _, offset := range last {
					out[id] = int64(offset)
				}
				return nil
			},
		})
		if err != nil {
			return nil, fmt.Errorf("read what is stored beyond the end of the log: %w", err)
		}
	}
	return out, nil
}

// KnownIncarnation returns the highest incarnation of a log that sinks have stored under; 0
// when none has.
func KnownIncarnation(ctx context.Context, pool *clickhouse.Pool, cluster string, topic [16]byte) (uint32, error) {
	known, err := pool.Strings(ctx, fmt.Sprintf("SELECT toString(max(incarnation)) AS s FROM sources WHERE cluster_id = %s AND topic_id = %s",
		clickhouse.Quote(cluster), clickhouse.Quote(hex.EncodeToString(topic[:]))))
	if err != nil {
		return 0, fmt.Errorf("read sources: %w", err)
	}
	n, err := strconv.ParseUint(strings.Join(known, ""), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("read sources: %w", err)
	}
	return uint32(n), nil
}

// register records the log in the table of sources and returns its number.
func (s *Sink) register(ctx context.Context) (source, error) {
	client, err := s.cfg.Kafka.Client()
	if err != nil {
		return source{}, err
	}
	defer client.Close()
	meta, err := kadm.NewClient(client).Metadata(ctx, s.cfg.Topic)
	if err != nil {
		return source{}, fmt.Errorf("read topic %s: %w", s.cfg.Topic, err)
	}
	topic := meta.Topics[s.cfg.Topic]
	if topic.Err != nil {
		return source{}, fmt.Errorf("read topic %s: %w", s.cfg.Topic, topic.Err)
	}
	src := source{logNumbers: s.cfg.Lives.numbers(meta.Cluster, topic.ID), topic: topic.ID, partitions: max(len(topic.Partitions), 1)}
	topicID := hex.EncodeToString(topic.ID[:])
	identity := fmt.Sprintf("%s/%s/%d", meta.Cluster, topicID, s.cfg.Lives.Incarnation)
	same, err := s.cfg.ClickHouse.Strings(ctx, fmt.Sprintf(
		"SELECT concat(cluster_id, '/', topic_id, '/', toString(incarnation)) AS s FROM sources FINAL WHERE src = %d", src.now))
	if err != nil {
		return source{}, fmt.Errorf("read sources: %w", err)
	}
	for _, other := range same {
		if other != identity {
			return source{}, &SchemaError{fmt.Sprintf("source number %d is taken by %s; use another database for %s", src.now, other, identity)}
		}
	}
	src.before, err = s.cfg.ClickHouse.Strings(ctx, fmt.Sprintf(
		"SELECT DISTINCT toString(src) AS s FROM sources WHERE cluster_id = %s AND topic = %s AND topic_id != %s",
		clickhouse.Quote(meta.Cluster), clickhouse.Quote(s.cfg.Topic), clickhouse.Quote(topicID)))
	if err != nil {
		return source{}, fmt.Errorf("read sources: %w", err)
	}
	if len(same) > 0 {
		return src, nil
	}
	err = s.cfg.ClickHouse.Exec(ctx, fmt.Sprintf("INSERT INTO sources SELECT %d, %s, %s, %d, %s, now()",
		src.now, clickhouse.Quote(meta.Cluster), clickhouse.Quote(topicID), s.cfg.Lives.Incarnation, clickhouse.Quote(s.cfg.Topic)))
	if err != nil {
		return source{}, fmt.Errorf("record source: %w", err)
	}
	return src, nil
}
