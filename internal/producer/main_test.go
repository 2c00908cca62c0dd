package producer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"edge/internal/codec"
	"edge/internal/kafka"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(brokerEnv); kind != "" {
		serveBroker(kind)
		return
	}
	goleak.VerifyTestMain(m)
}

const topic = "events"

// sim is a producer and the broker it produces to, in one process and on one
// virtual clock: an hour of outage takes a blink, and synctest.Wait says that
// nothing more happens until the clock moves.
type sim struct {
	t       *testing.T
	net     network
	cluster *kfake.Cluster
	pool    *codec.Pool
	errs    kafka.Errors
	p       *Producer
}

const partitions = 4

// simulate runs f against a producer with small bounds, as changed by change.
// f must leave the producer in a state that a minute of Close can drain.
func simulate(t *testing.T, change func(*Config), f func(*sim)) {
	t.Helper()
	simulateOn(t, nil, change, f)
}

func simulateOn(t *testing.T, opts []kfake.Opt, change func(*Config), f func(*sim)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t: t, pool: codec.NewPool(codec.Rules{})}
		opts := append([]kfake.Opt{kfake.NumBrokers(2), kfake.SeedTopics(partitions, topic),
			kfake.ListenFn(s.net.Listen), kfake.Ports(9092, 9093)}, opts...)
		var err error
		if s.cluster, err = kfake.NewCluster(opts...); err != nil {
			t.Fatal(err)
		}
		defer s.cluster.Close()
		s.watch()
		cfg := Config{
			Kafka: s.kafka(), Topic: topic, AckTimeout: 2 * time.Second,
			Shards: 2, RingBatches: 16, RingBytes: 1 << 20,
			MaxInflight: 100, MaxInflightBytes: 1 << 20,
		}
		if change != nil {
			change(&cfg)
		}
		if s.p, err = New(cfg); err != nil {
			t.Fatal(err)
		}
		s.p.small = 0 // every shard takes part in what goes wrong
		defer s.close()
		f(s)
	})
}

func (s *sim) kafka() kafka.Options {
	return kafka.Options{
		Brokers: []string{"localhost:9092", "localhost:9093"}, Dial: s.net.dial, Errors: &s.errs,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

func (s *sim) close() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	if err := s.p.Close(ctx); err != nil {
		s.t.Errorf("close: %v", err)
	}
	s.settled()
}

// pass lets d of virtual time go by, and all that happens meanwhile happen.
func (s *sim) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// settled checks that nothing is held once everything has an outcome.
func (s *sim) settled() {
	s.t.Helper()
	synctest.Wait()
	if n := s.p.inflight.Load(); n != 0 {
		s.t.Errorf("%d records in flight after Close", n)
	}
	if n := s.p.buffered.Load(); n != 0 {
		s.t.Errorf("%d bytes in batches after Close", n)
	}
	if n := s.p.held.Load(); n != 0 {
		s.t.Errorf("%d bytes of requests are held after Close", n)
	}
}

// batch returns a decoded request of one event per id; an empty id leaves it
// to the server.
func (s *sim) batch(ids ...string) *codec.Batch {
	return batchOf(s.t, s.pool, ids...)
}

func batchOf(t testing.TB, pool *codec.Pool, ids ...string) *codec.Batch {
	t.Helper()
	var body strings.Builder
	for i, id := range ids {
		fmt.Fprintf(&body, `%c{"event_name":"click","user_id":"u","timestamp":946684800000,"event_id":%q}`, "[,"[min(i, 1)], id)
	}
	body.WriteByte(']')
	b := pool.Get()
	if err := b.DecodeArray([]byte(body.String()), time.UnixMilli(946684800000)); err != nil {
		t.Fatal(err)
	}
	if b.Len() != len(ids) {
		t.Fatalf("%d of %d events were kept: %v", b.Len(), len(ids), b.Rejected())
	}
	return b
}

// publish is one request from its arrival to its answer; it returns copies of
// the records it published.
func (s *sim) publish(ids ...string) ([]string, error) {
	b := s.batch(ids...)
	records := make([]string, b.Len())
	for i := range records {
		records[i] = string(b.Record(i))
	}
	return records, s.p.Publish(b)
}

// expect publishes and wants the error, nil included.
func (s *sim) expect(want error, ids ...string) []string {
	s.t.Helper()
	records, err := s.publish(ids...)
	if !errors.Is(err, want) {
		s.t.Fatalf("publish %q: got %v; want %v", ids, err, want)
	}
	return records
}

// log reads the topic from start to end.
func (s *sim) log() []*kgo.Record {
	s.t.Helper()
	return s.logOf(topic)
}

func (s *sim) logOf(topic string) []*kgo.Record {
	s.t.Helper()
	var want int64
	for _, p := range s.cluster.PartitionInfos(topic) {
		want += p.HighWatermark
	}
	if want == 0 {
		return nil
	}
	cl, err := s.kafka().Client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	var out []*kgo.Record
	for int64(len(out)) < want {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			s.t.Fatalf("read the log, %d of %d records: %v", len(out), want, err)
		}
		out = append(out, fetches.Records()...)
	}
	return out
}

// wantLog checks that the topic holds exactly the records, each once.
func (s *sim) wantLog(want ...[]string) {
	s.t.Helper()
	left := map[string]int{}
	n := 0
	for _, records := range want {
		for _, r := range records {
			left[r]++
			n++
		}
	}
	got := s.log()
	for _, r := range got {
		if left[string(r.Value)]--; left[string(r.Value)] < 0 {
			s.t.Errorf("in the log, but twice or never published: %q", r.Value)
		}
	}
	if len(got) != n {
		s.t.Errorf("the log has %d records; want %d", len(got), n)
	}
}

// block has the broker read produce requests and do nothing about them, until
// release is called. kgo sends them again when its patience ends.
func (s *sim) block() (release func()) {
	var open atomic.Bool
	s.cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		if open.Load() {
			s.cluster.DropControl()
			return nil, nil, false
		}
		s.cluster.KeepControl()
		return nil, nil, true
	})
	return func() { open.Store(true) }
}

// stall has the broker put every produce request off, until release is called:
// kgo encodes and sends the records again and again.
func (s *sim) stall() (release func()) {
	return s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition, Count: -1}).Remove
}

// network is the virtual network with a switch and a tap.
type network struct {
	kfake.VirtualNetwork
	mu    sync.Mutex
	down  bool
	conns []net.Conn
	tap   func(net.Conn)
}

var errUnreachable = errors.New("network is unreachable")

func (n *network) dial(ctx context.Context, proto, addr string) (net.Conn, error) {
	n.mu.Lock()
	down := n.down
	n.mu.Unlock()
	if down {
		return nil, errUnreachable
	}
	c, err := n.DialContext(ctx, proto, addr)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns = append(n.conns, c)
	return conn{c, n}, nil
}

// onAnswer has f called with the next bytes that come from a broker, before
// the client gets them.
func (n *network) onAnswer(f func(net.Conn)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tap = f
}

type conn struct {
	net.Conn
	n *network
}

func (c conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.mu.Lock()
	tap := c.n.tap
	c.n.tap = nil
	c.n.mu.Unlock()
	if tap == nil || err != nil {
		return n, err
	}
	if tap(c.Conn); c.SetReadDeadline(time.Time{}) != nil {
		return 0, net.ErrClosed
	}
	return n, nil
}

// cut ends every connection and refuses new ones until mend.
func (n *network) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = true
	for _, c := range n.conns {
		c.Close()
	}
	n.conns = nil
}

func (n *network) mend() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = false
}

// A request is a publish that goes on in a goroutine of its own.
type request struct {
	t       *testing.T
	records []string
	err     error
	done    chan struct{}
}

// requests starts n requests of one event each, one after the other.
func (s *sim) requests(n int) []*request {
	out := make([]*request, n)
	for i := range out {
		out[i] = s.request(fmt.Sprint("request-", i))
		synctest.Wait()
	}
	return out
}

func (s *sim) request(ids ...string) *request {
	r := &request{t: s.t, done: make(chan struct{})}
	b := s.batch(ids...)
	for i := range b.Len() {
		r.records = append(r.records, string(b.Record(i)))
	}
	go func() {
		defer close(r.done)
		r.err = s.p.Publish(b)
	}()
	return r
}

func (r *request) answered() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// expect waits for the answer and wants the error, nil included.
func (r *request) expect(want error) {
	r.t.Helper()
	<-r.done
	if !errors.Is(r.err, want) {
		r.t.Errorf("publish %.80q: got %v; want %v", r.records[0], r.err, want)
	}
}
