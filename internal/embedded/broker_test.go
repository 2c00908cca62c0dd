package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"edge/internal/stat"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestProduceConsume(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir(), Topics: map[string]int32{topic: 3}})
	cl := newClient(t, b, kgo.ConsumeTopics(topic), kgo.ConsumerGroup(group), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	produce(t, cl, 0, 1000, 10)
	got := make(map[string]int)
	for _, r := range consume(t, cl, 1000) {
		got[string(r.Value)]++
	}
	for i := range 1000 {
		if n := got[fmt.Sprintf("event-%d", i)]; n != 1 {
			t.Fatalf("event %d consumed %d times; want 1", i, n)
		}
	}
	if b.door.tcp != nil {
		t.Error("a TCP port is open although none was asked for")
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	b := start(t, BrokerConfig{Dir: dir, Topics: map[string]int32{topic: 2, "dead": 1}})
	cl := newClient(t, b)
	produce(t, cl, 0, 100, 5)
	commitPlan := kadm.Offsets{}
	commitPlan.Add(kadm.Offset{Topic: topic, Partition: 1, At: 7, LeaderEpoch: -1, Metadata: "v1;src;41;8"})
	if err := b.admin.CommitAllOffsets(testContext(t), group, commitPlan); err != nil {
		t.Fatal(err)
	}
	id := b.TopicID(topic)
	want := b.Partitions(topic)
	cl.Close()

	f := func(name, dir string, unclean bool) {
		t.Helper()
		b := start(t, BrokerConfig{Dir: dir, Topics: map[string]int32{topic: 9}})
		defer stop(t, b)
		if b.uncleanStart != unclean || b.Unscanned() {
			t.Errorf("%s: unclean start %v, unclean boot %v; want %v, false", name, b.uncleanStart, b.Unscanned(), unclean)
		}
		if diff := cmp.Diff(want, b.Partitions(topic)); diff != "" {
			t.Errorf("%s: partitions (-want +got):\n%s", name, diff)
		}
		if got := b.TopicID(topic); got != id || id == [16]byte{} {
			t.Errorf("%s: topic id %x; want %x", name, got, id)
		}
		if got := b.commits(group)[topic][1]; got.At != 7 || got.Metadata != "v1;src;41;8" {
			t.Errorf("%s: commit %d %q; want 7 and the plan", name, got.At, got.Metadata)
		}
		if b.ClusterID() == "" || b.Incarnation() != 1 {
			t.Errorf("%s: cluster %q, incarnation %d", name, b.ClusterID(), b.Incarnation())
		}
	}
	killed := crash(t, b)
	stop(t, b)
	f("after Close", dir, false)
	f("after a kill", killed, true)
	f("after Close again", killed, false)
}

func TestUncleanHostBoot(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir()})
	dir := crash(t, b)
	id, _, err := loadIdentity(filepath.Join(dir, "kafka"))
	if err != nil {
		t.Fatal(err)
	}
	id.BootID = "another boot"
	if err := id.save(filepath.Join(dir, "kafka")); err != nil {
		t.Fatal(err)
	}
	b = start(t, BrokerConfig{Dir: dir})
	if !b.uncleanStart || !b.Unscanned() {
		t.Errorf("unclean start %v, host boot %v; want both", b.uncleanStart, b.Unscanned())
	}
	if n := b.stats.uncleanHostBoots.Load(); n != 1 {
		t.Errorf("counted %d host boots; want 1", n)
	}

	// Neither a kill nor a Close before the scan forgets that it is due.
	dir = crash(t, b)
	stop(t, start(t, BrokerConfig{Dir: dir}))
	b = start(t, BrokerConfig{Dir: dir})
	if !b.Unscanned() {
		t.Error("the scan is forgotten before it was done")
	}
	if err := b.Scanned(); err != nil {
		t.Fatal(err)
	}
	if b = start(t, BrokerConfig{Dir: crash(t, b)}); b.Unscanned() {
		t.Error("the scan is asked for again after it was done")
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	b := start(t, BrokerConfig{Dir: dir})
	_, err := lockDir(dir, 0)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("in use by process %d", os.Getpid())) {
		t.Fatalf("second opener: got %v; want a refusal that names this process", err)
	}
	// A Close that takes too long is still writing.
	b.mu.RLock()
	ended, cancel := context.WithCancel(testContext(t))
	cancel()
	if err := b.Close(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Close that ran out of time: got %v", err)
	}
	if _, err := lockDir(dir, 0); err == nil {
		t.Fatal("the lock was given back before the broker was closed")
	}
	b.mu.RUnlock()
	stop(t, b)
	l, err := lockDir(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestLockWaitsForADyingPredecessor(t *testing.T) {
	dir := t.TempDir()
	first, err := lockDir(dir, lockWait)
	if err != nil {
		t.Fatal(err)
	}
	trying := make(chan error)
	go func() {
		second, err := lockDir(dir, lockWait)
		if err == nil {
			err = second.Close()
		}
		trying <- err
	}()
	first.Close()
	if err := <-trying; err != nil {
		t.Fatal(err)
	}
}

func TestStartRefuses(t *testing.T) {
	f := func(want string, cfg BrokerConfig) {
		t.Helper()
		b, err := StartBroker(testContext(t), cfg)
		if err == nil {
			b.Close(testContext(t))
			t.Fatalf("got a broker; want an error with %q", want)
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q; want %q in it", err, want)
		}
	}
	f("must be an absolute path", BrokerConfig{Dir: "data"})
	f("only on a loopback IP", BrokerConfig{Dir: t.TempDir(), Listen: "0.0.0.0:0"})
	f("only on a loopback IP", BrokerConfig{Dir: t.TempDir(), Listen: ":9092"})
	f("only on a loopback IP", BrokerConfig{Dir: t.TempDir(), Listen: "example.org:9092"})
	f("missing port", BrokerConfig{Dir: t.TempDir(), Listen: "127.0.0.1"})
	f("need 1 to 1024", BrokerConfig{Dir: t.TempDir(), Topics: map[string]int32{topic: 0}})
}

func TestCloseIsFinal(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir()})
	stop(t, b)
	stop(t, b)
	if _, err := b.Dial(context.Background(), "", ""); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial after Close: got %v; want net.ErrClosed", err)
	}
	if ps := b.Partitions(topic); ps != nil {
		t.Errorf("partitions after Close: %v", ps)
	}
	if err := b.Trim(testContext(t)); !errors.Is(err, errClosed) {
		t.Errorf("trim after Close: %v", err)
	}
	if err := b.Check(testContext(t), group, topic, 0, nil, declared(0)); !errors.Is(err, errClosed) {
		t.Errorf("check after Close: %v", err)
	}
}

func TestTCPDoor(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	inside := newClient(t, b)
	outside, err := kgo.NewClient(kgo.SeedBrokers(b.Seeds()...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	produce(t, inside, 0, 10, 1)
	b.Open()
	if got := consume(t, outside, 10); len(got) != 10 {
		t.Errorf("got %d records over TCP; want 10", len(got))
	}
}

func TestDescribe(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir()})
	var set stat.Set
	b.Describe(&set)
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(&set)
	fams, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, f := range fams {
		seen[f.GetName()] = true
	}
	for _, name := range []string{"edge_log_regressions_total", "edge_unclean_starts_total", "edge_disk_free_bytes", "edge_disk_errors_total"} {
		if !seen[name] {
			t.Errorf("%s is missing", name)
		}
	}
}
