package embedded

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestTornAtEveryByte cuts the last batch at each of its bytes: what is left
// must be readable, and what is appended later must be found again, now and
// after another start.
func TestTornAtEveryByte(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir(), NoSync: true})
	produce(t, newClient(t, b), 0, 3, 3)
	path := segments(t, b.dir)[0]
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	stop(t, b) // with a clean snapshot, that the cut contradicts
	w, err := walkSegment(path, nil)
	if err != nil || w.size != int64(len(whole)) || len(w.runs) != 1 || w.runs[0] != (run{0, 3}) {
		t.Fatalf("walked %+v, %v; want one run of 3 in %d bytes", w, err, len(whole))
	}
	second := int64(len(whole)) / 3 * 2 // three batches of the same size
	for n := second; n < int64(len(whole)); n++ {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := walkSegment(path, nil)
		if err != nil || w.size != second || w.runs[0] != (run{0, 2}) {
			t.Fatalf("cut at %d: walked %+v, %v; want 2 records in %d bytes", n, w, err, second)
		}
	}
	for bit := second * 8; bit < int64(len(whole))*8; bit += 7 {
		flipped := append([]byte{}, whole...)
		flipped[bit/8] ^= 1 << (bit % 8)
		if err := os.WriteFile(path, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		// The first offset (8 bytes), and the leader epoch and magic (5 bytes
		// behind the length) are not under the checksum.
		if at := bit/8 - second; at < 8 || at >= 12 && at < 17 {
			continue
		}
		if w, err := walkSegment(path, nil); err != nil || w.size != second {
			t.Fatalf("bit %d flipped: walked %+v, %v; want %d bytes", bit, w, err, second)
		}
	}

	for n, cfg := 0, b.cfg; n < 2; n++ {
		b := start(t, BrokerConfig{Dir: cfg.Dir})
		if hwm := b.Partitions(topic)[0].HighWatermark; hwm != int64(2+2*n) {
			t.Fatalf("start %d: high watermark %d; want %d", n, hwm, 2+2*n)
		}
		cl := newClient(t, b, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		produce(t, cl, 10, 2, 2)
		consume(t, cl, 4+2*n)
		cl.Close()
		stop(t, b)
	}
}

func TestHoleInTheLog(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir(), SegmentBytes: 1000})
	produceAt(t, newClient(t, b), 40, time.Now())
	dir := crash(t, b)
	all, err := segmentBases(filepath.Join(dir, "kafka", "partitions", topic+"-0"))
	if err != nil || len(all) < 3 {
		t.Fatalf("segments %v, %v; want a few", all, err)
	}
	if err := os.Truncate(filepath.Join(dir, "kafka", "partitions", topic+"-0", "0.dat"), 10); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second start finds the first segment empty, the hole unchanged
		r, err := recoverLog(filepath.Join(dir, "kafka"))
		if want := []hole{{topic, 0, 0, all[1] - 1}}; err != nil || !slices.Equal(r.holes, want) {
			t.Fatalf("got holes %v, %v; want %v", r.holes, err, want)
		}
		b = start(t, BrokerConfig{Dir: dir})
		if err := b.Check(testContext(t), group, topic, 0, nil, declared(0)); err != nil {
			t.Fatal(err)
		}
		if n := b.stats.holes.Load(); n != 1 || b.Incarnation() != 1 {
			t.Errorf("counted %d holes, incarnation %d; want 1 and 1", n, b.Incarnation())
		}
		if p := b.Partitions(topic)[0]; p.HighWatermark != 40 {
			t.Errorf("high watermark %d; want 40", p.HighWatermark)
		}
		stop(t, b)
	}
}

// TestEmptiedSegmentKeepsTheOffset loses every batch of the only segment left
// after a trim: its name still says which offset comes next.
func TestEmptiedSegmentKeepsTheOffset(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir(), SegmentBytes: 1000, Retention: map[string]Retention{topic: {Group: group}}})
	produceAt(t, newClient(t, b), 40, time.Now().Add(-time.Hour))
	commit(t, b, 40, "")
	if err := b.Trim(testContext(t)); err != nil {
		t.Fatal(err)
	}
	dir := crash(t, b)
	left := segments(t, dir)
	if len(left) != 1 {
		t.Fatalf("%d segments left; want 1", len(left))
	}
	if err := os.Truncate(left[0], 5); err != nil {
		t.Fatal(err)
	}
	base, err := segmentBases(filepath.Dir(left[0]))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		b = start(t, BrokerConfig{Dir: dir})
		if p := b.Partitions(topic)[0]; p.HighWatermark != base[0] {
			t.Errorf("high watermark %d; want %d", p.HighWatermark, base[0])
		}
		stop(t, b)
	}
}

// TestEmptiedLastSegment loses the newest segment's content: the log goes on
// where the one before ends, and stays readable over two starts.
func TestEmptiedLastSegment(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir(), SegmentBytes: 1000})
	produceAt(t, newClient(t, b), 40, time.Now())
	dir := crash(t, b)
	partition := filepath.Join(dir, "kafka", "partitions", topic+"-0")
	bases, err := segmentBases(partition)
	if err != nil || len(bases) < 2 {
		t.Fatalf("segments %v, %v; want at least two", bases, err)
	}
	last := bases[len(bases)-1]
	if err := os.Truncate(filepath.Join(partition, strconv.FormatInt(last, 10)+".dat"), 9); err != nil {
		t.Fatal(err)
	}
	for i := range int64(2) {
		b = start(t, BrokerConfig{Dir: dir, SegmentBytes: 1 << 20})
		if p := b.Partitions(topic)[0]; p.HighWatermark != last+i {
			t.Fatalf("start %d: high watermark %d; want %d", i, p.HighWatermark, last+i)
		}
		cl := newClient(t, b, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		produce(t, cl, 0, 1, 1)
		consume(t, cl, int(last+i+1))
		cl.Close()
		stop(t, b)
	}
}

func FuzzWholeEntries(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		n := wholeEntries(b)
		if n < 0 || n > len(b) || wholeEntries(b[:n]) != n {
			t.Fatalf("%d of %d bytes whole, %d of those", n, len(b), wholeEntries(b[:n]))
		}
	})
}
