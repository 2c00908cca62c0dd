package embedded

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// eventSize is what an event takes on the topic, give or take its metadata.
const eventSize = 250

func event(i int) *kgo.Record {
	v := fmt.Appendf(nil, `{"event_name":"product_view","user_id":"user_%d","timestamp":%d,"metadata":{"page":"/products/%d"}}`, i, i, i*7919)
	return kgo.SliceRecord(append(v, bytes.Repeat([]byte{byte('a' + i%26)}, max(0, eventSize-len(v)))...))
}

// BenchmarkProduceOne is the latency of one acknowledged record.
func BenchmarkProduceOne(b *testing.B) {
	for _, mode := range []struct {
		name   string
		noSync bool
	}{{"fsync", false}, {"nosync", true}} {
		b.Run(mode.name, func(b *testing.B) {
			cl := newClient(b, start(b, BrokerConfig{Dir: b.TempDir(), NoSync: mode.noSync}), kgo.ProducerLinger(0))
			r := event(1)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if err := cl.ProduceSync(context.Background(), r).FirstErr(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// produceAll acknowledges n events and fails unless all are.
func produceAll(tb testing.TB, cl *kgo.Client, n int) {
	tb.Helper()
	var wg sync.WaitGroup
	wg.Add(n)
	for i := range n {
		cl.Produce(context.Background(), event(i), func(_ *kgo.Record, err error) {
			if err != nil {
				tb.Error(err)
			}
			wg.Done()
		})
	}
	wg.Wait()
}

// BenchmarkProduceMany is acknowledged records per second, in batches as the
// producer forms them, through the gate and without it.
func BenchmarkProduceMany(b *testing.B) {
	f := func(name string, dial func(context.Context, string, string) (net.Conn, error)) {
		b.Run(name, func(b *testing.B) {
			cl, err := kgo.NewClient(kgo.SeedBrokers(insideAddr{}.String()), kgo.Dialer(dial), kgo.DefaultProduceTopic(topic),
				kgo.ProducerBatchCompression(kgo.NoCompression()))
			if err != nil {
				b.Fatal(err)
			}
			defer cl.Close()
			b.SetBytes(eventSize)
			b.ResetTimer()
			produceAll(b, cl, b.N)
		})
	}
	f("gate", start(b, BrokerConfig{Dir: b.TempDir()}).Dial)
	f("gate/nosync", start(b, BrokerConfig{Dir: b.TempDir(), NoSync: true}).Dial)
	f("plain", plainBroker(b, BrokerConfig{Dir: b.TempDir(), Topics: map[string]int32{topic: 1}}))
	f("plain/nosync", plainBroker(b, BrokerConfig{Dir: b.TempDir(), Topics: map[string]int32{topic: 1}, NoSync: true}))
}

// ungated hands kfake the connections without their gates.
type ungated struct{ *door }

func (u ungated) Accept() (net.Conn, error) {
	c, err := u.door.Accept()
	if err != nil {
		return nil, err
	}
	return c.(*gate).Conn, nil
}

// plainBroker is kfake with the broker's settings and no gate.
func plainBroker(tb testing.TB, cfg BrokerConfig) func(context.Context, string, string) (net.Conn, error) {
	tb.Helper()
	cfg, err := cfg.withDefaults()
	if err != nil {
		tb.Fatal(err)
	}
	b := &Broker{cfg: cfg, dir: filepath.Join(cfg.Dir, "kafka"), id: identity{ClusterID: "plain"}}
	b.log = &kfakeLog{log: cfg.Logger, dir: b.dir, stats: &b.stats}
	if b.door, err = openDoor("", cfg.MaxRequestBytes, cfg.Logger); err != nil {
		tb.Fatal(err)
	}
	listen := kfake.ListenFn(func(string, string) (net.Listener, error) { return ungated{b.door}, nil })
	if b.cluster, err = kfake.NewCluster(append(b.clusterOpts(), listen)...); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(b.cluster.Close)
	if err := b.openTopics(); err != nil {
		tb.Fatal(err)
	}
	return b.Dial
}

// BenchmarkStart is the time and the memory to open a log of a million events.
func BenchmarkStart(b *testing.B) {
	const events = 1_000_000
	first := start(b, BrokerConfig{Dir: b.TempDir(), NoSync: true})
	produceAll(b, newClient(b, first), events)
	killed := crash(b, first)
	stop(b, first)
	f := func(name, dir string) {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				br := start(b, BrokerConfig{Dir: dir})
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/(1<<20), "MiB-allocated")
				b.StopTimer()
				if got := br.Partitions(topic)[0].HighWatermark; got != events {
					b.Fatalf("high watermark %d; want %d", got, events)
				}
				stop(b, br)
				b.StartTimer()
			}
		})
	}
	f("closed", first.cfg.Dir)
	f("killed", killed)
}

// BenchmarkCommit is the latency of one durable offset commit.
func BenchmarkCommit(b *testing.B) {
	br := start(b, BrokerConfig{Dir: b.TempDir()})
	for i := range b.N {
		commit(b, br, int64(i), "v1;src;last;rows")
	}
}

// BenchmarkFetchWakes is the time from producing one record to having it,
// with a fetch already waiting at the broker.
func BenchmarkFetchWakes(b *testing.B) {
	br := start(b, BrokerConfig{Dir: b.TempDir()})
	producer := newClient(b, br, kgo.ProducerLinger(0))
	reader := newClient(b, br, kgo.ConsumeTopics(topic), kgo.FetchMaxWait(5*time.Second), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	for b.Loop() {
		if err := producer.ProduceSync(context.Background(), event(1)).FirstErr(); err != nil {
			b.Fatal(err)
		}
		consume(b, reader, 1)
	}
}

// BenchmarkJoin is the time from making a group consumer to its first record.
func BenchmarkJoin(b *testing.B) {
	br := start(b, BrokerConfig{Dir: b.TempDir()})
	produce(b, newClient(b, br), 0, 1, 1)
	for b.Loop() {
		cl := newClient(b, br, kgo.ConsumeTopics(topic), kgo.ConsumerGroup(group), kgo.DisableAutoCommit(),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		consume(b, cl, 1)
		b.StopTimer()
		cl.LeaveGroup()
		cl.Close()
		b.StartTimer()
	}
}
