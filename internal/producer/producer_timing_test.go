package producer

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/codec"
	"edge/internal/kafka"
)

// BenchmarkPublish compares a request through ring and shard with a handler
// that calls kgo itself, against a broker that stores and one that throws away.
// Both wait for the acknowledgement; an operation is one request.
func BenchmarkPublish(b *testing.B) {
	for _, broker := range []struct {
		name string
		opts []kfake.Opt
	}{{"stores", nil}, {"discards", []kfake.Opt{kfake.BlackholeProduce()}}} {
		for _, events := range []int{1, 100} {
			b.Run(fmt.Sprintf("broker=%s/events=%d/via=producer", broker.name, events), func(b *testing.B) {
				p := benchProducer(b, broker.opts)
				benchmark(b, events, p.Publish)
				if ok := p.ok.Load(); ok != uint64((b.N+1)*events) {
					b.Fatalf("%d records acknowledged; want %d", ok, (b.N+1)*events)
				}
			})
			b.Run(fmt.Sprintf("broker=%s/events=%d/via=kgo", broker.name, events), func(b *testing.B) {
				benchmark(b, events, plainKgo(benchProducer(b, broker.opts)))
			})
		}
	}
}

func benchProducer(b *testing.B, opts []kfake.Opt) *Producer {
	cluster, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.SeedTopics(partitions, topic)}, opts...)...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(cluster.Close)
	p, err := New(Config{
		Kafka: kafka.Options{Brokers: cluster.ListenAddrs(), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))},
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
	return p
}

// plainKgo is the rival: records keyed by the hash of their event_id, given to
// kgo by the goroutine of the request.
func plainKgo(p *Producer) func(*codec.Batch) error {
	cl := p.client
	return func(batch *codec.Batch) error {
		var (
			wg    sync.WaitGroup
			mu    sync.Mutex
			first error
		)
		records := make([]kgo.Record, batch.Len())
		keys := make([]byte, 8*batch.Len())
		wg.Add(batch.Len())
		for i := range records {
			key := keys[8*i : 8*i+8]
			binary.BigEndian.PutUint64(key, batch.Hash(i))
			records[i] = kgo.Record{Key: key, Value: batch.Record(i), Partition: kafka.HashPartition(batch.Hash(i))}
			cl.Produce(context.Background(), &records[i], func(_ *kgo.Record, err error) {
				if err != nil {
					mu.Lock()
					first = err
					mu.Unlock()
				}
				wg.Done()
			})
		}
		wg.Wait()
		return first
	}
}

func benchmark(b *testing.B, events int, publish func(*codec.Batch) error) {
	batch := batchOf(b, codec.NewPool(codec.Rules{}), ids("event", events)...)
	defer batch.Release()
	if err := publish(batch); err != nil { // the client learns the topic
		b.Fatal(err)
	}
	b.SetParallelism(64) // requests that wait at once, per core
	b.SetBytes(int64(batch.Size()))
	b.ReportAllocs()
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
	b.ReportMetric(float64(b.N*events)/b.Elapsed().Seconds(), "events/s")
}
