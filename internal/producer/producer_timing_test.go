package producer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/codec"
	"edge/internal/kafka"
)

// BenchmarkPublish compares a request through ring and shard with a handler
// that calls kgo itself. Both wait for the acknowledgement; an operation is one
// request. The broker is another process, so that ns/record of CPU are the
// client's: one broker stores what it gets, the other answers and is the limit.
func BenchmarkPublish(b *testing.B) {
	for _, broker := range []string{"stores", "null"} {
		for _, events := range []int{1, 100} {
			b.Run(fmt.Sprintf("broker=%s/events=%d/via=producer", broker, events), func(b *testing.B) {
				p := benchProducer(b, startBroker(b, broker))
				benchmark(b, events, func(batch *codec.Batch) error { // which is published again
					batch.Retain()
					return p.Publish(batch)
				})
				if ok := p.ok.Load(); ok != uint64((b.N+1)*events) {
					b.Fatalf("%d records acknowledged; want %d", ok, (b.N+1)*events)
				}
			})
			b.Run(fmt.Sprintf("broker=%s/events=%d/via=kgo", broker, events), func(b *testing.B) {
				benchmark(b, events, plainKgo(b, startBroker(b, broker)))
			})
		}
	}
}

func benchProducer(b *testing.B, addr string) *Producer {
	p, err := New(Config{
		Kafka: benchOptions(addr), Topic: topic, AckTimeout: 10 * time.Second, Shards: 2,
		RingBatches: 16384, RingBytes: 32 << 20, MaxInflight: 200_000, MaxInflightBytes: 64 << 20,
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

func benchOptions(addr string) kafka.Options {
	return kafka.Options{Brokers: []string{addr}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

// plainKgo is the rival: records with the settings the producer would need of
// kgo, given to it by the goroutine of the request.
func plainKgo(b *testing.B, addr string) func(*codec.Batch) error {
	cl := reference(b, benchOptions(addr), kgo.MaxBufferedRecords(200_000), kgo.MaxBufferedBytes(64<<20))
	b.Cleanup(cl.Close)
	return func(batch *codec.Batch) error {
		var (
			wg    sync.WaitGroup
			mu    sync.Mutex
			first error
		)
		records := make([]kgo.Record, batch.Len())
		now := time.Now()
		wg.Add(batch.Len())
		for i := range records {
			records[i] = kgo.Record{Value: batch.Record(i), Timestamp: now, Partition: kafka.HashPartition(batch.Hash(i))}
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

// reference is a kgo client that produces as the producer does.
func reference(tb testing.TB, o kafka.Options, opts ...kgo.Opt) *kgo.Client {
	tb.Helper()
	cl, err := o.Client(append([]kgo.Opt{kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kafka.ByHash{}), kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytes(maxBatchBytes), kgo.ProducerBatchCompression(kgo.SnappyCompression())}, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	return cl
}

func benchmark(b *testing.B, events int, publish func(*codec.Batch) error) {
	// As many as do not look alike to a compressor.
	batches := make([]*codec.Batch, 1+10_000/events)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range batches {
		batches[i] = benchBatch(b, events, random)
		defer batches[i].Release()
	}
	if err := publish(batches[0]); err != nil { // the client learns the topic
		b.Fatal(err)
	}
	b.SetParallelism(64) // requests that wait at once, per core
	b.SetBytes(int64(batches[0].Size()))
	b.ReportAllocs()
	b.ResetTimer()
	var turn atomic.Int64
	before := cpu()
	b.RunParallel(func(pb *testing.PB) {
		for i := int(turn.Add(1)) * 37; pb.Next(); i++ {
			if err := publish(batches[i%len(batches)]); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(b.N*events)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(cpu()-before)/float64(b.N*events), "cpu-ns/record")
}

// benchBatch is a request of events that are as large and as alike as those of
// a shop.
func benchBatch(b *testing.B, events int, random *rand.Rand) *codec.Batch {
	var body bytes.Buffer
	for i := range events {
		fmt.Fprintf(&body, `{"event_name":"product_view","channel":"web","user_id":"user_%d","timestamp":%d,"event_id":"%016x","metadata":{"page":"/products/%d","session":"%016x","price":%d.%02d,"country":"DE"}}`+"\n",
			random.IntN(100_000), 946684800000+i, random.Uint64(), random.IntN(5000), random.Uint64(), random.IntN(500), random.IntN(100))
	}
	batch := codec.NewPool(codec.Rules{}).Get()
	if err := batch.DecodeLines(body.Bytes(), time.UnixMilli(946684800000)); err != nil || batch.Len() != events {
		b.Fatal(batch.Rejected(), err)
	}
	return batch
}

// cpu is what this process has used so far.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// startBroker starts a broker process and returns its address.
func startBroker(b *testing.B, kind string) string {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), brokerEnv+"="+kind)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe() // its end is the child's
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close(); cmd.Wait() })
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(addr)
}

const brokerEnv = "EDGE_BENCH_BROKER"

// serveBroker is the main of a broker process; it ends with its standard input.
func serveBroker(kind string) {
	addr := ""
	switch kind {
	case "null":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		go nullBroker(l)
		addr = l.Addr().String()
	default:
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, topic))
		if err != nil {
			panic(err)
		}
		defer cluster.Close()
		addr = cluster.ListenAddrs()[0]
	}
	fmt.Println(addr)
	io.Copy(io.Discard, os.Stdin)
}

// nullBroker answers what a producer asks and looks at nothing.
func nullBroker(l net.Listener) {
	port := int32(l.Addr().(*net.TCPAddr).Port)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			r := bufio.NewReaderSize(c, 1<<16)
			var body []byte
			for {
				var head [4]byte
				if _, err := io.ReadFull(r, head[:]); err != nil {
					return
				}
				n := int(binary.BigEndian.Uint32(head[:]))
				if cap(body) < n {
					body = make([]byte, n)
				}
				if _, err := io.ReadFull(r, body[:n]); err != nil {
					return
				}
				if _, err := c.Write(answerOf(body[:n], port)); err != nil {
					return
				}
			}
		}()
	}
}

func answerOf(body []byte, port int32) []byte {
	key, version := int16(binary.BigEndian.Uint16(body)), int16(binary.BigEndian.Uint16(body[2:]))
	correlation, client := body[4:8], int(int16(binary.BigEndian.Uint16(body[8:])))
	req := kmsg.RequestForKey(key)
	req.SetVersion(version)
	rest := body[10+max(client, 0):]
	if req.IsFlexible() {
		rest = rest[1:] // no tags
	}
	if err := req.(interface{ UnsafeReadFrom([]byte) error }).UnsafeReadFrom(rest); err != nil {
		panic(err)
	}
	out := append([]byte{0, 0, 0, 0}, correlation...)
	if req.IsFlexible() && key != int16(kmsg.ApiVersions) {
		out = append(out, 0)
	}
	resp := req.ResponseKind()
	switch req := req.(type) {
	case *kmsg.ApiVersionsRequest:
		for key, max := range map[kmsg.Key]int16{kmsg.Produce: 11, kmsg.Metadata: 12, kmsg.ApiVersions: 3, kmsg.InitProducerID: 4} {
			resp := resp.(*kmsg.ApiVersionsResponse)
			resp.ApiKeys = append(resp.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: int16(key), MaxVersion: max})
		}
	case *kmsg.MetadataRequest:
		resp := resp.(*kmsg.MetadataResponse)
		resp.Brokers = []kmsg.MetadataResponseBroker{{NodeID: 0, Host: "127.0.0.1", Port: port}}
		for _, rt := range req.Topics {
			t := kmsg.MetadataResponseTopic{Topic: rt.Topic, TopicID: [16]byte{1}}
			for p := range int32(partitions) {
				t.Partitions = append(t.Partitions, kmsg.MetadataResponseTopicPartition{Partition: p, Replicas: []int32{0}, ISR: []int32{0}})
			}
			resp.Topics = append(resp.Topics, t)
		}
	case *kmsg.InitProducerIDRequest:
		resp.(*kmsg.InitProducerIDResponse).ProducerID = 1
	case *kmsg.ProduceRequest:
		for _, rt := range req.Topics {
			t := kmsg.ProduceResponseTopic{Topic: rt.Topic, TopicID: rt.TopicID}
			for _, rp := range rt.Partitions {
				p := kmsg.NewProduceResponseTopicPartition()
				p.Partition = rp.Partition
				t.Partitions = append(t.Partitions, p)
			}
			resp := resp.(*kmsg.ProduceResponse)
			resp.Topics = append(resp.Topics, t)
		}
	}
	out = resp.AppendTo(out)
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out
}
