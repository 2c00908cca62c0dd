package rival

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/codec"
	"edge/internal/kafka"
	"edge/internal/producer"
)

// BenchmarkProduce sends requests of one and of a hundred events and waits for
// their acknowledgement, through edge's producer and through kgo.Produce as a
// handler would call it. cpu-ns/record is this process, which is the client.
func BenchmarkProduce(b *testing.B) {
	addr := nullBroker(b)
	for _, events := range []int{1, 100} {
		name := map[int]string{1: "1-event", 100: "100-events"}[events]
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
	return p.Publish
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
	batch := codec.NewPool(codec.Rules{}).Get()
	defer batch.Release()
	if err := batch.DecodeLines([]byte(strings.Repeat(sample+"\n", events)), time.Now()); err != nil || batch.Len() != events {
		b.Fatal(err, batch.Len())
	}
	if err := publish(batch); err != nil { // the client learns the topic
		b.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.SetParallelism(64) // requests that wait at once, per core
	used := processorTime(b)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := publish(batch); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.StopTimer()
	used = processorTime(b) - used
	runtime.ReadMemStats(&after)
	records := float64(b.N * events)
	b.ReportMetric(float64(used.Nanoseconds())/records, "cpu-ns/record")
	b.ReportMetric(records/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/records, "allocs/record")
}
