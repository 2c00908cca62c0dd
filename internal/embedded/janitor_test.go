package embedded

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// produceAt acknowledges n batches of one record with the given timestamp.
func produceAt(t testing.TB, cl *kgo.Client, n int, at time.Time) {
	t.Helper()
	for i := range n {
		r := kgo.StringRecord(fmt.Sprintf("event-%d-%0200d", i, i))
		r.Timestamp = at
		if err := cl.ProduceSync(testContext(t), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTrim(t *testing.T) {
	b := start(t, BrokerConfig{
		Dir: t.TempDir(), SegmentBytes: 1000,
		Retention: map[string]Retention{topic: {Group: group, Age: time.Hour}, "missing": {Group: group}},
	})
	cl := newClient(t, b)
	produceAt(t, cl, 60, time.Now().Add(-2*time.Hour))
	produceAt(t, cl, 40, time.Now())

	f := func(name string, logStart int64) {
		t.Helper()
		if err := b.Trim(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if p := b.cluster.PartitionInfos(topic)[0]; p.LogStartOffset != logStart || p.HighWatermark != 100 {
			t.Errorf("%s: log is [%d,%d); want [%d,100)", name, p.LogStartOffset, p.HighWatermark, logStart)
		}
	}
	f("nothing committed", 0)
	commit(t, b, 30, "")
	f("the commit bounds it", 30)
	commit(t, b, 100, "")
	before := len(segments(t, b.dir))
	f("the age bounds it", 60)
	if after := len(segments(t, b.dir)); after >= before {
		t.Errorf("%d segment files before, %d after; want fewer", before, after)
	}
	if got := b.stats.trimmed.Load(); got != 60 {
		t.Errorf("counted %d trimmed records; want 60", got)
	}
}

// TestTrimBehindAClockAhead: a record of a clock that was a year ahead holds up nothing but
// itself, until one that is old lies behind it.
func TestTrimBehindAClockAhead(t *testing.T) {
	b := start(t, BrokerConfig{
		Dir: t.TempDir(), SegmentBytes: 1000, Retention: map[string]Retention{topic: {Group: group, Age: time.Hour}},
	})
	cl := newClient(t, b)
	f := func(name string, logStart int64) {
		t.Helper()
		end := b.Partitions(topic)[0].HighWatermark
		commit(t, b, end, "")
		if err := b.Trim(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if p := b.cluster.PartitionInfos(topic)[0]; p.LogStartOffset != logStart {
			t.Errorf("%s: log is [%d,%d); want it to start at %d", name, p.LogStartOffset, end, logStart)
		}
	}
	produceAt(t, cl, 20, time.Now().Add(-3*time.Hour))
	produceAt(t, cl, 20, time.Now().Add(365*24*time.Hour))
	f("nothing behind it", 20)
	produceAt(t, cl, 20, time.Now())
	f("young ones behind it", 20)
	// Timestamps do not go back but with the clock; here to make the test short.
	produceAt(t, cl, 60, time.Now().Add(-2*time.Hour))
	bases, err := segmentBases(b.partitionDir(topic, 0))
	if err != nil {
		t.Fatal(err)
	}
	f("old ones behind it", bases[len(bases)-1])
	produceAt(t, cl, 60, time.Now())
	f("nothing of that clock is left", 120)
}

// TestTrimKeepsTheOffsets trims everything it may and stops the broker in both
// ways: the next record must get the next offset, never 0.
func TestTrimKeepsTheOffsets(t *testing.T) {
	cfg := BrokerConfig{Dir: t.TempDir(), SegmentBytes: 1000, Retention: map[string]Retention{topic: {Group: group}}}
	b := start(t, cfg)
	cl := newClient(t, b)
	produceAt(t, cl, 100, time.Now().Add(-time.Hour))
	commit(t, b, 100, "")
	if err := b.Trim(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if p := b.cluster.PartitionInfos(topic)[0]; p.LogStartOffset != 99 {
		t.Fatalf("log start %d; want 99, one record left", p.LogStartOffset)
	}
	cl.Close()
	killed := crash(t, b)
	stop(t, b)
	for name, dir := range map[string]string{"after a kill": killed, "after Close": cfg.Dir} {
		cfg.Dir = dir
		b := start(t, cfg)
		if p := b.Partitions(topic)[0]; p.HighWatermark != 100 {
			t.Errorf("%s: high watermark %d; want 100", name, p.HighWatermark)
		}
		if err := b.Check(testContext(t), group, topic, 0, nil, declared(0)); err != nil || b.Incarnation() != 1 {
			t.Errorf("%s: check opened incarnation %d, %v; want 1", name, b.Incarnation(), err)
		}
		stop(t, b)
	}
}
