package kafka

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"go.uber.org/goleak"

	"edge/internal/stat"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func startCluster(t *testing.T, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func open(t *testing.T, o Options) *kgo.Client {
	t.Helper()
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	cl, err := o.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestEnsureTopics(t *testing.T) {
	c := startCluster(t, kfake.SeedTopics(7, "there"))
	cl := open(t, Options{Brokers: c.ListenAddrs()})
	topics := []Topic{
		{Name: "there", Partitions: 2, Replicas: -1},
		{Name: "new", Partitions: 3, Replicas: -1, Config: map[string]string{"retention.ms": "86400000"}},
	}
	for range 2 {
		if err := EnsureTopics(testContext(t), cl, topics...); err != nil {
			t.Fatal(err)
		}
		if there, made := len(c.PartitionInfos("there")), len(c.PartitionInfos("new")); there != 7 || made != 3 {
			t.Errorf("got %d and %d partitions; want 7 and 3", there, made)
		}
	}
	if v := c.TopicInfo("new").Configs["retention.ms"]; v == nil || *v != "86400000" {
		t.Errorf("retention.ms of the new topic is %v", v)
	}
}

func TestEnsureTopicsFromManyProcesses(t *testing.T) {
	c := startCluster(t)
	var wg sync.WaitGroup
	for range 8 {
		cl := open(t, Options{Brokers: c.ListenAddrs()})
		wg.Go(func() {
			if err := EnsureTopics(testContext(t), cl, Topic{Name: "events", Partitions: 5, Replicas: -1}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(c.PartitionInfos("events")); n != 5 {
		t.Errorf("got %d partitions; want 5", n)
	}
}

func TestEnsureTopicsErrors(t *testing.T) {
	f := func(fault kfake.Fault, want string) {
		t.Helper()
		c := startCluster(t, kfake.SeedTopics(2, "there"))
		fault.Count = -1
		c.Fault(fault)
		err := EnsureTopics(testContext(t), open(t, Options{Brokers: c.ListenAddrs()}), Topic{Name: "there"}, Topic{Name: "new", Partitions: 1, Replicas: -1})
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v; want %s", err, want)
		}
	}
	f(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Topic: "new", Err: kerr.TopicAuthorizationFailed}, "create topic new: TOPIC_AUTHORIZATION_FAILED")
	f(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "there", Err: kerr.TopicAuthorizationFailed}, "list topics: TOPIC_AUTHORIZATION_FAILED")
	f(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "there", Partitions: []int32{1}, Err: kerr.LeaderNotAvailable}, "topic there, partition 1: LEADER_NOT_AVAILABLE")
}

// A topic that exists needs no right to create topics.
func TestEnsureTopicsWithoutTheRightToCreate(t *testing.T) {
	c := startCluster(t, kfake.SeedTopics(2, "there"))
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: kerr.TopicAuthorizationFailed, Count: -1})
	if err := EnsureTopics(testContext(t), open(t, Options{Brokers: c.ListenAddrs()}), Topic{Name: "there", Partitions: 1}); err != nil {
		t.Error(err)
	}
}

func TestPartitionWithoutLeader(t *testing.T) {
	c := startCluster(t, kfake.SeedTopics(1, "events"))
	c.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		resp := req.ResponseKind().(*kmsg.MetadataResponse)
		p := kmsg.NewMetadataResponseTopicPartition()
		p.Leader = -1
		topic := kmsg.NewMetadataResponseTopic()
		topic.Topic, topic.Partitions = kmsg.StringPtr("events"), []kmsg.MetadataResponseTopicPartition{p}
		resp.Topics = append(resp.Topics, topic)
		return resp, nil, true
	})
	err := CheckTopics(testContext(t), open(t, Options{Brokers: c.ListenAddrs()}), "events")
	if !errors.Is(err, errNoLeader) || err.Error() != "topic events, partition 0: has no leader" {
		t.Errorf("got %v", err)
	}
}

func TestCheckOfNoTopic(t *testing.T) {
	c := startCluster(t)
	err := CheckTopics(testContext(t), open(t, Options{Brokers: c.ListenAddrs()}), "absent")
	if !errors.Is(err, kerr.UnknownTopicOrPartition) || !strings.Contains(err.Error(), "absent") {
		t.Errorf("got %v", err)
	}
}

func TestErrorsAreCountedByCode(t *testing.T) {
	var e Errors
	f := func(err error, code string) {
		t.Helper()
		before := e.counts[[2]string{"op", code}]
		e.Count("op", err)
		if got := e.counts[[2]string{"op", code}]; got != before+1 {
			t.Errorf("%v was not counted as %s: %v", err, code, e.counts)
		}
	}
	f(kerr.NotLeaderForPartition, "NOT_LEADER_FOR_PARTITION")
	f(fmt.Errorf("produce: %w", kerr.MessageTooLarge), "MESSAGE_TOO_LARGE")
	f(context.DeadlineExceeded, "deadline")
	f(fmt.Errorf("fetch: %w", context.Canceled), "deadline")
	f(kgo.ErrRecordTimeout, "deadline")
	f(&net.OpError{Op: "dial", Err: errors.New("refused")}, "network")
	f(net.ErrClosed, "network")
	f(io.EOF, "network")
	f(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, "tls")
	f(&net.OpError{Op: "remote error", Err: tls.AlertError(42)}, "tls")
	f(kgo.ErrClientClosed, "client")

	e.Count("nothing", nil)
	if _, ok := e.counts[[2]string{"nothing", "client"}]; ok {
		t.Error("nil was counted")
	}
	var none *Errors
	none.Count("op", io.EOF) // a client without a count
}

func TestBrokenConnectionsAndRequestsAreCounted(t *testing.T) {
	var e Errors
	c := startCluster(t)
	cl := open(t, Options{Brokers: c.ListenAddrs(), Errors: &e})
	if err := cl.Ping(testContext(t)); err != nil {
		t.Fatal(err)
	}
	c.ControlKey(int16(kmsg.CreateTopics), func(kmsg.Request) (kmsg.Response, error, bool) {
		return nil, errors.New("cut"), true // once
	})
	if err := EnsureTopics(testContext(t), cl, Topic{Name: "events", Partitions: 1, Replicas: -1}); err == nil {
		t.Error("the connection was cut and nobody noticed")
	}
	down := open(t, Options{Brokers: []string{"broker:9092"}, Errors: &e, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: errors.New("refused")}
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := down.Ping(ctx); err == nil {
		t.Error("pinged a broker that is not there")
	}

	var set stat.Set
	e.Describe(&set)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(&set)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range families {
		if n := len(f.Metric); n < len(known) || n > len(known)+20 {
			t.Errorf("got %d series; want the %d known ones and few others", n, len(known))
		}
		for _, m := range f.Metric {
			got[m.Label[1].GetValue()+" "+m.Label[0].GetValue()] = m.Counter.GetValue() > 0
		}
	}
	for _, want := range []string{"CreateTopics network", "connect network"} {
		if !got[want] {
			t.Errorf("%s was not counted: %v", want, got)
		}
	}
}

func TestErrorsStartAtZero(t *testing.T) {
	var set stat.Set
	new(Errors).Describe(&set)
	registry := prometheus.NewPedanticRegistry() // refuses a pair that comes twice
	registry.MustRegister(&set)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if got := len(families[0].Metric); got != len(known) {
		t.Errorf("got %d series; want %d", got, len(known))
	}
	for _, m := range families[0].Metric {
		if m.Counter.GetValue() != 0 {
			t.Errorf("got %v; want 0", m)
		}
	}
}

func TestExplain(t *testing.T) {
	f := func(o Options, err error, want string) {
		t.Helper()
		if got := fmt.Sprint(o.Explain(err)); got != want {
			t.Errorf("got %s; want %s", got, want)
		}
	}
	login := Options{SASL: plain.Auth{User: "u", Pass: "p"}.AsMechanism()}
	f(login, nil, "<nil>")
	f(login, kerr.SaslAuthenticationFailed, kerr.SaslAuthenticationFailed.Error())
	f(Options{}, io.EOF, "EOF")
	f(login, fmt.Errorf("list topics: %w", io.EOF),
		"list topics: EOF: the broker closed the connection, as some do when user, password or mechanism (PLAIN) is wrong")
}

func TestLogger(t *testing.T) {
	f := func(level slog.Level, wantLevel kgo.LogLevel, want string) {
		t.Helper()
		var out bytes.Buffer
		l := logger{slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))}
		if got := l.Level(); got != wantLevel {
			t.Errorf("%v: got level %v; want %v", level, got, wantLevel)
		}
		l.Log(kgo.LogLevelError, "e", "k", 1, "backoff", 100*time.Millisecond)
		l.Log(kgo.LogLevelWarn, "w")
		l.Log(kgo.LogLevelInfo, "i")
		if got := strings.ReplaceAll(strings.TrimSpace(out.String()), "\n", "; "); got != want {
			t.Errorf("%v: got %s; want %s", level, got, want)
		}
	}
	f(slog.LevelDebug, kgo.LogLevelInfo, `{"level":"ERROR","msg":"e","k":1,"backoff":"100ms"}; {"level":"WARN","msg":"w"}; {"level":"DEBUG","msg":"i"}`)
	f(slog.LevelInfo, kgo.LogLevelWarn, `{"level":"ERROR","msg":"e","k":1,"backoff":"100ms"}; {"level":"WARN","msg":"w"}`)
	f(slog.LevelError, kgo.LogLevelWarn, `{"level":"ERROR","msg":"e","k":1,"backoff":"100ms"}`)
}

func TestBackoff(t *testing.T) {
	f := func(tries int, want time.Duration) {
		t.Helper()
		if got := Backoff(tries); got != want {
			t.Errorf("Backoff(%d): got %v; want %v", tries, got, want)
		}
	}
	f(1, 100*time.Millisecond)
	f(2, 200*time.Millisecond)
	f(5, 1600*time.Millisecond)
	f(6, 2*time.Second)
	f(1000, 2*time.Second)
}

func TestHasAssignedID(t *testing.T) {
	f := func(want bool, headers ...kgo.RecordHeader) {
		t.Helper()
		if got := HasAssignedID(&kgo.Record{Headers: headers}); got != want {
			t.Errorf("%v: got %t; want %t", headers, got, want)
		}
	}
	f(true, AssignedID...)
	f(true, kgo.RecordHeader{Key: "traceparent"}, AssignedID[0])
	f(false)
	f(false, kgo.RecordHeader{Key: "edge-id", Value: []byte("given")})
}

// Every bit pattern of a hash is a partition, and a key's partition is fixed.
func TestHashPartition(t *testing.T) {
	f := func(hash uint64, want int) {
		t.Helper()
		p := ByHash{}.ForTopic("events")
		if got := p.Partition(&kgo.Record{Partition: HashPartition(hash)}, 4); got != want {
			t.Errorf("%#x: got partition %d; want %d", hash, got, want)
		}
		if !p.RequiresConsistency(nil) {
			t.Error("a partition without leader would send its events elsewhere")
		}
	}
	f(0, 0)
	f(1<<33, 1)
	f(5<<33, 1)
	f(1<<64-1, 3)
	f(1<<33-1, 0)
}

func TestTopicCleanup(t *testing.T) {
	const week = 7 * 24 * time.Hour
	f := func(config map[string]string, age time.Duration, want string) {
		t.Helper()
		c := startCluster(t)
		cl := open(t, Options{Brokers: c.ListenAddrs()})
		if err := EnsureTopics(testContext(t), cl, Topic{Name: "events", Partitions: 1, Replicas: -1, Config: config}); err != nil {
			t.Fatal(err)
		}
		cleanup, err := TopicCleanup(testContext(t), cl, "events")
		if err != nil {
			t.Fatal(err)
		}
		if got := cleanup.Shorter(age); got != want {
			t.Errorf("%v within %s: got %q; want %q", config, age, got, want)
		}
	}
	f(nil, week, "") // Kafka's default is a week
	f(nil, 0, "retention.ms=604800000")
	f(map[string]string{"retention.ms": "-1"}, 0, "")
	f(map[string]string{"retention.ms": "9223372036854775807"}, week, "")
	f(map[string]string{"retention.ms": "86400000"}, week, "retention.ms=86400000")
	f(map[string]string{"retention.bytes": "1000000", "cleanup.policy": "compact"}, week, "retention.bytes=1000000, cleanup.policy=compact")

	cl := open(t, Options{Brokers: startCluster(t).ListenAddrs()})
	if _, err := TopicCleanup(testContext(t), cl, "absent"); err == nil {
		t.Error("no error of a topic that is not there")
	}
}
