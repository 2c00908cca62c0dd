package embedded

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"
)

const (
	topic = "events"
	group = "sink"

	// childEnv turns the test binary into a process that produces for ever.
	childEnv = "EDGE_BROKER_CHILD"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		os.Exit(produceForEver(dir))
	}
	goleak.VerifyTestMain(m)
}

// produceForEver acknowledges records in a directory until it is killed, and
// writes "partition offset value" for each acknowledgement, unbuffered, so
// that what the parent has read was acknowledged before the kill. A refused
// record is a line that starts with "refused".
func produceForEver(dir string) int {
	ctx := context.Background()
	b, err := StartBroker(ctx, BrokerConfig{Dir: dir, Topics: map[string]int32{topic: 2}, SegmentBytes: 64 << 10})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Seeds()...), kgo.Dialer(b.Dial), kgo.DefaultProduceTopic(topic))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	acked := make(chan *kgo.Record, 1024)
	go func() {
		w := bufio.NewWriter(os.Stdout)
		for r := range acked {
			fmt.Fprintf(w, "%d %d %s\n", r.Partition, r.Offset, r.Value)
			if len(acked) == 0 {
				w.Flush()
			}
		}
	}()
	pid := os.Getpid()
	for i := 0; ; i++ {
		cl.Produce(ctx, &kgo.Record{Value: fmt.Appendf(nil, "%d-%d-%064d", pid, i, i)}, func(r *kgo.Record, err error) {
			if err == nil {
				acked <- r
			} else {
				fmt.Println("refused", err)
			}
		})
	}
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// start opens a broker with one partition of topic unless cfg says otherwise.
func start(t testing.TB, cfg BrokerConfig) *Broker {
	t.Helper()
	if cfg.Topics == nil {
		cfg.Topics = map[string]int32{topic: 1}
	}
	b, err := StartBroker(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, b) })
	return b
}

func stop(t testing.TB, b *Broker) {
	t.Helper()
	if err := b.Close(testContext(t)); err != nil {
		t.Error(err)
	}
}

func newClient(t testing.TB, b *Broker, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(b.Seeds()...), kgo.Dialer(b.Dial), kgo.DefaultProduceTopic(topic),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.CloseAllowingRebalance)
	return cl
}

// produce acknowledges n records named from first on, in order, in as many
// batches as asked.
func produce(t testing.TB, cl *kgo.Client, first, n int, batches int) {
	t.Helper()
	for ; batches > 0; batches-- {
		size := n / batches
		var rs []*kgo.Record
		for i := range size {
			rs = append(rs, kgo.StringRecord(fmt.Sprintf("event-%d", first+i)))
		}
		if err := cl.ProduceSync(testContext(t), rs...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		first, n = first+size, n-size
	}
}

// consume reads until it has n records.
func consume(t testing.TB, cl *kgo.Client, n int) []*kgo.Record {
	t.Helper()
	ctx := testContext(t)
	var rs []*kgo.Record
	for len(rs) < n {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			t.Fatalf("after %d of %d records: %v", len(rs), n, err)
		}
		rs = append(rs, fs.Records()...)
	}
	return rs
}

// crash copies what a kill would leave of b's directory: kfake writes with
// write(2) and buffers nothing, so the files are what the next start finds.
func crash(t testing.TB, b *Broker) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "kafka"), os.DirFS(b.dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// segments returns the segment files under dir, oldest first within a partition.
func segments(t testing.TB, dir string) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if filepath.Ext(p) == ".dat" {
			paths = append(paths, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}
