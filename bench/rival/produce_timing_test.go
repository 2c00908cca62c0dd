package rival

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/codec"
	"edge/internal/kafka"
	"edge/internal/producer"
)

// BenchmarkProduce sends requests of one and of a hundred events and waits for
// their acknowledgement, through edge's producer and through kgo.Produce as a
// handler would call it. The limit sends batches that are ready. cpu-ns/record is this
// process, which is the client.
func BenchmarkProduce(b *testing.B) {
	addr := nullBroker(b)
	for _, events := range []int{1, 100} {
		name := map[int]string{1: "1-event", 100: "100-events"}[events]
		b.Run("limit-ready-batches/"+name, func(b *testing.B) { sendReady(b, events, addr) })
		b.Run("edge/"+name, func(b *testing.B) { produce(b, events, edgeProducer(b, addr)) })
		b.Run("kgo/"+name, func(b *testing.B) { produce(b, events, plainKgo(b, addr)) })
	}
}

func edgeProducer(b *testing.B, addr string) func(*codec.Batch) error {
	p, err := producer.New(producer.Config{
		Kafka: kafka.Options{Brokers: []string{addr}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))},
		Topic: topic, AckTimeout: 10 * time.Second, Shards: 2, RingBatches: 16384, RingBytes: 32 << 20,
		MaxInflight: 200_000, MaxInflightBytes: 64 << 20,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			b.Error(err)
		}
	})
	return func(batch *codec.Batch) error { // which is published again
		batch.Retain()
		return p.Publish(batch)
	}
}

// plainKgo keys each record by the hash of its event_id, idempotent and with
// acks from all, as is kgo's default.
func plainKgo(b *testing.B, addr string) func(*codec.Batch) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.DefaultProduceTopic(topic), kgo.ProducerLinger(0), kgo.MaxBufferedRecords(200_000))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(cl.Close)
	return func(batch *codec.Batch) error {
		var (
			wg   sync.WaitGroup
			mu   sync.Mutex
			errs error
		)
		records := make([]kgo.Record, batch.Len())
		keys := make([]byte, 8*batch.Len())
		wg.Add(batch.Len())
		for i := range records {
			key := keys[8*i : 8*i+8]
			binary.BigEndian.PutUint64(key, batch.Hash(i))
			records[i] = kgo.Record{Key: key, Value: batch.Record(i)}
			cl.Produce(context.Background(), &records[i], func(_ *kgo.Record, err error) {
				if err != nil {
					mu.Lock()
					errs = errors.Join(errs, err)
					mu.Unlock()
				}
				wg.Done()
			})
		}
		wg.Wait()
		return errs
	}
}

func produce(b *testing.B, events int, publish func(*codec.Batch) error) {
	// As many as do not look alike to a compressor.
	batches := make([]*codec.Batch, 1+10_000/events)
	pool, random := codec.NewPool(codec.Rules{}), rand.New(rand.NewPCG(1, 2))
	for i := range batches {
		batches[i] = batchOf(b, pool, random, events)
		defer batches[i].Release()
	}
	if err := publish(batches[0]); err != nil { // the client learns the topic
		b.Fatal(err)
	}
	b.SetParallelism(waiting)
	var turn atomic.Int64
	timedProduce(b, func() int {
		b.RunParallel(func(pb *testing.PB) {
			for i := int(turn.Add(1)) * 37; pb.Next(); i++ {
				if err := publish(batches[i%len(batches)]); err != nil {
					b.Error(err)
					return
				}
			}
		})
		return b.N * events
	})
}

// waiting is how many requests wait at once, per core.
const waiting = 64

// timedProduce reports what run took for a record; it returns how many there were.
func timedProduce(b *testing.B, run func() int) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	used := processorTime(b)
	b.ResetTimer()
	records := float64(run())
	b.StopTimer()
	used = processorTime(b) - used
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(used.Nanoseconds())/records, "cpu-ns/record")
	b.ReportMetric(records/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/records, "allocs/record")
}

// batchOf is a request of n events as a shop's SDKs send them: each with an id of its
// own, of a hundred thousand users, five thousand products and twenty names in an hour.
func batchOf(b *testing.B, pool *codec.Pool, random *rand.Rand, n int) *codec.Batch {
	b.Helper()
	now := time.Now()
	var body bytes.Buffer
	for range n {
		fmt.Fprintf(&body, `{"event_name":"event_%d","channel":"web","campaign_id":"summer_sale_2024","user_id":"user_%d","timestamp":%d,`+
			`"tags":["electronics","featured"],"metadata":{"page_url":"/products/%d","session":"%016x"},"event_id":"%s"}`+"\n",
			random.IntN(20), random.IntN(100_000), now.UnixMilli()-random.Int64N(3_600_000), random.IntN(5000), random.Uint64(), uuid.Must(uuid.NewV7()))
	}
	batch := pool.Get()
	if err := batch.DecodeLines(body.Bytes(), now); err != nil || batch.Len() != n {
		b.Fatal(err, batch.Len(), batch.Rejected())
	}
	return batch
}
