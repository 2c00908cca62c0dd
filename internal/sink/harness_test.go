package sink

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/clickhouse"
	"edge/internal/codec"
	"edge/internal/kafka"
	"edge/migrations"
)

const (
	topic  = "events"
	letter = "events.dlq"
	group  = "edge"
)

// lab is a log in memory, a real engine with a database of its own, and a
// ledger of what was put into the log.
type lab struct {
	t          testing.TB
	cluster    *kfake.Cluster
	kafka      kafka.Options
	producer   *kgo.Client
	admin      *kadm.Client
	engine     ch.Dialer
	clickhouse clickhouse.Options // straight to the engine
	pool       *clickhouse.Pool
	partitions int32

	mu      sync.Mutex
	ledger  map[place]row // what events must hold
	seq     int
	running []*process
	worst   time.Duration // that settled has waited
}

type place struct {
	partition int32
	offset    int64
}

// row is what the ledger knows of an event.
type row struct {
	name, channel, user string
	ms                  int64
}

// newLab starts a lab on the shared engine.
func newLab(t testing.TB, partitions int32) *lab { return newLabOn(t, needEngine(t), partitions) }

var databases struct {
	sync.Mutex
	n int
}

func newLabOn(t testing.TB, child ch.Dialer, partitions int32, opts ...kfake.Opt) *lab {
	t.Helper()
	databases.Lock()
	databases.n++
	database := fmt.Sprintf("t%d", databases.n)
	databases.Unlock()
	l := &lab{t: t, engine: child, partitions: partitions, ledger: make(map[place]row)}
	var err error
	l.cluster, err = kfake.NewCluster(append(opts, kfake.NumBrokers(1), kfake.SeedTopics(partitions, topic), kfake.SeedTopics(1, letter),
		kfake.GroupMinSessionTimeout(time.Second))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.cluster.Close)
	l.kafka = kafka.Options{Brokers: l.cluster.ListenAddrs(), Logger: l.log("kafka"), Errors: new(kafka.Errors)}
	if l.producer, err = l.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DefaultProduceTopic(topic)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.producer.Close)
	l.admin = kadm.NewClient(l.producer)

	l.clickhouse = clickhouse.Options{Addr: "embedded", Database: database, Username: "default", Dialer: child}
	if err := clickhouse.Migrate(t.Context(), l.clickhouse, clickhouse.MigrateOptions{Files: migrations.FS, Exclusive: true, Logger: l.log("schema")}); err != nil {
		t.Fatal(err)
	}
	if l.pool, err = clickhouse.Open(l.clickhouse); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.pool.Close)
	t.Cleanup(func() {
		for _, p := range l.running {
			p.stop()
		}
	})
	return l
}

func (l *lab) log(component string) *slog.Logger {
	level := slog.LevelError
	if os.Getenv("EDGE_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(l.t.Output(), &slog.HandlerOptions{Level: level})).With("component", component)
}

// config is small and quick, so that a test passes every state often; an interval
// that is longer than restLead lets sinks rest.
func (l *lab) config() Config {
	return Config{
		Topic: topic, DeadLetterTopic: letter, Group: group,
		FlushInterval: 25 * time.Millisecond, FlushRows: 500, FlushBytes: 1 << 20, Inserts: 2,
		InsertTimeout: 10 * time.Second, RevokeTimeout: 5 * time.Second, SessionTimeout: 15 * time.Second,
		DedupIDs: 100_000, DedupAge: time.Hour,
	}
}

// records makes n events, spread over the partitions.
func (l *lab) records(n int, change ...func(i int, ev *codec.Event)) []*kgo.Record {
	records := make([]*kgo.Record, n)
	for i := range records {
		l.mu.Lock()
		l.seq++
		seq := l.seq
		l.mu.Unlock()
		ev := &codec.Event{
			Name: fmt.Appendf(nil, "name%d", seq%7), Channel: []byte([]string{"web", "mobile", ""}[seq%3]),
			UserID: fmt.Appendf(nil, "user%d", seq%97), EventID: fmt.Appendf(nil, "id-%d", seq),
			Timestamp: 1_700_000_000_000 + int64(seq)*977, ReceivedAt: time.Now().UnixMilli(),
		}
		for _, f := range change {
			f(i, ev)
		}
		records[i] = &kgo.Record{Partition: int32(seq) % l.partitions, Value: codec.AppendRecord(nil, ev), Context: context.WithValue(context.Background(), eventKey{}, ev)}
	}
	return records
}

// eventKey is where a record's context has the event it was made from.
type eventKey struct{}

// produce appends n events and enters them in the ledger.
func (l *lab) produce(n int, change ...func(i int, ev *codec.Event)) {
	l.t.Helper()
	records := l.records(n, change...)
	l.append(records)
	l.enter(records)
}

// history is batches of n events, stored one after the other by a sink that has stopped.
func (l *lab) history(batches, n int, change ...func(i int, ev *codec.Event)) {
	l.t.Helper()
	s := l.start()
	for range batches {
		l.produce(n, change...)
		l.settled()
	}
	s.stop()
}

// enter puts records into the ledger.
func (l *lab) enter(records []*kgo.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range records {
		ev := r.Context.Value(eventKey{}).(*codec.Event)
		l.ledger[place{r.Partition, r.Offset}] = row{string(ev.Name), string(ev.Channel), string(ev.UserID), ev.Timestamp}
	}
}

// append puts records into the log as they are.
func (l *lab) append(records []*kgo.Record) {
	l.t.Helper()
	if err := l.producer.ProduceSync(context.Background(), records...).FirstErr(); err != nil {
		l.t.Fatal(err)
	}
}

// eventually repeats f until it is content; the deadline is for a broken sink.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	eventuallyWithin(t, 30*time.Second, what, f)
}

func eventuallyWithin(t testing.TB, limit time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("%s: still not so after %s: %v", what, limit, err)
		case <-tick.C:
		}
	}
}

// settled waits until the group has committed to the end of the log.
func (l *lab) settled() {
	l.t.Helper()
	l.settledWithin(time.Minute)
}

func (l *lab) settledWithin(limit time.Duration) {
	l.t.Helper()
	started := time.Now()
	eventuallyWithin(l.t, limit, "the group stands at the end of the log", l.atEnd)
	l.worst = max(l.worst, time.Since(started))
}

// settled is that of the lab, and the sink has counted what it stored: the group hears of
// a flight first.
func (p *process) settled() {
	p.l.t.Helper()
	p.l.settled()
	eventually(p.l.t, "the sink has counted its flights", func() error {
		p.sink.state.mu.Lock()
		defer p.sink.state.mu.Unlock()
		for id, at := range p.sink.state.partitions {
			if end := p.l.cluster.PartitionInfo(topic, id).HighWatermark; at.stored != end {
				return fmt.Errorf("partition %d up to %d of %d", id, at.stored, end)
			}
		}
		return nil
	})
}

func (l *lab) atEnd() error {
	info := l.cluster.GroupInfo(group)
	for _, p := range l.cluster.PartitionInfos(topic) {
		var at kfake.GroupCommit
		if info != nil {
			at = info.Commits[topic][p.Partition]
		}
		if at.Offset != p.HighWatermark || at.Metadata != "" {
			return fmt.Errorf("partition %d at %d %q, log ends at %d", p.Partition, at.Offset, at.Metadata, p.HighWatermark)
		}
	}
	return nil
}

func (l *lab) exec(sql string) {
	l.t.Helper()
	if err := l.pool.Exec(context.Background(), sql); err != nil {
		l.t.Fatalf("%s: %v", sql, err)
	}
}

// value is the one value a query answers.
func (l *lab) value(sql string) string {
	l.t.Helper()
	got, err := l.pool.Strings(context.Background(), "SELECT ifNull(toString(("+sql+")), '')")
	if err != nil {
		l.t.Fatalf("%s: %v", sql, err)
	}
	return strings.Join(got, ",")
}

// letters returns the dead letters, by the offset they came from.
func (l *lab) letters() map[place][]*kgo.Record {
	l.t.Helper()
	client, err := l.kafka.Client(kgo.ConsumeTopics(letter), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		l.t.Fatal(err)
	}
	defer client.Close()
	out := make(map[place][]*kgo.Record)
	end := l.cluster.PartitionInfo(letter, 0).HighWatermark
	for at := int64(0); at < end; {
		fetches := client.PollFetches(l.t.Context())
		if err := fetches.Err(); err != nil {
			l.t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			at = r.Offset + 1
			var from place
			for _, h := range r.Headers {
				switch h.Key {
				case HeaderPartition:
					fmt.Sscan(string(h.Value), &from.partition)
				case HeaderOffset:
					fmt.Sscan(string(h.Value), &from.offset)
				}
			}
			out[from] = append(out[from], r)
		})
	}
	return out
}

// commit moves the group by hand; no sink may be running.
func (l *lab) commit(partition int32, at int64, metadata string) {
	l.t.Helper()
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: topic, Partition: partition, At: at, LeaderEpoch: -1, Metadata: metadata})
	if err := l.admin.CommitAllOffsets(context.Background(), group, offsets); err != nil {
		l.t.Fatal(err)
	}
}

// src is the number of the lab's log.
func (l *lab) src() uint32 {
	l.t.Helper()
	meta, err := l.admin.Metadata(context.Background(), topic)
	if err != nil {
		l.t.Fatal(err)
	}
	return SourceID(meta.Cluster, meta.Topics[topic].ID, 0)
}

// forget takes what can not be stored any more out of the ledger.
func (l *lab) forget(gone func(place) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.ledger, func(p place, _ row) bool { return gone(p) })
}

// stored is how many rows events has of an offset.
func (l *lab) stored(p place) int {
	n, err := strconv.Atoi(l.value(fmt.Sprintf("SELECT ifNull(count(), 0) FROM events WHERE _part = %d AND _offset = %d", p.partition, p.offset)))
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}
