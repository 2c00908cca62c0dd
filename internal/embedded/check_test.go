package embedded

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func commit(t testing.TB, b *Broker, at int64, metadata string) {
	t.Helper()
	var os kadm.Offsets
	os.Add(kadm.Offset{Topic: topic, At: at, LeaderEpoch: -1, Metadata: metadata})
	if err := b.admin.CommitAllOffsets(testContext(t), group, os); err != nil {
		t.Fatal(err)
	}
}

// halve cuts the newest segment of dir in the middle, as a power cut does to
// a file that was never synced.
func halve(t testing.TB, dir string) {
	t.Helper()
	all := segments(t, dir)
	path := all[len(all)-1]
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, st.Size()/2); err != nil {
		t.Fatal(err)
	}
}

// declared reads each commit's metadata as that of batches that end before end.
func declared(end int64) func(int64, string) int64 { return func(int64, string) int64 { return end } }

func TestLogLostItsTail(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir()})
	produce(t, newClient(t, b), 0, 100, 20)
	commit(t, b, 90, "v1;src;99;10")
	dir := crash(t, b)
	halve(t, dir)

	var logged bytes.Buffer
	b = start(t, BrokerConfig{Dir: dir, Logger: slog.New(slog.NewJSONHandler(&logged, nil))})
	end := b.Partitions(topic)[0].HighWatermark
	if end >= 90 || end == 0 {
		t.Fatalf("the log ends at %d; the test wants it between 0 and 90", end)
	}
	if b.stats.cutBytes.Load() == 0 {
		t.Error("the torn batch was not counted")
	}
	if err := b.Check(testContext(t), group, topic, 0, map[int32]int64{0: 99}, declared(100)); err != nil {
		t.Fatal(err)
	}
	if got := b.stats.regressions.Load(); got != 1 || b.Incarnation() != 2 {
		t.Errorf("counted %d regressions, incarnation %d; want 1 and 2", got, b.Incarnation())
	}
	if got := b.commits(group)[topic][0]; got.At != end || got.Metadata != "" {
		t.Errorf("the group is at %d with %q; want %d and no plan", got.At, got.Metadata, end)
	}
	until := map[uint32]map[int32]int64{1: {0: end}}
	if got := b.Until(topic); !reflect.DeepEqual(got, until) {
		t.Errorf("the first incarnation ended at %v; want %v", got, until)
	}
	for _, want := range []string{`"log_ends_at":` + strconv.FormatInt(end, 10), `"committed":90`, `"stored":99`, `"new_incarnation":2`} {
		if !strings.Contains(logged.String(), want) {
			t.Errorf("%s is not logged", want)
		}
	}

	// New events are consumed although their offsets were committed once.
	cl := newClient(t, b, kgo.ConsumeTopics(topic), kgo.ConsumerGroup(group))
	produce(t, cl, 1000, 5, 1)
	for i, r := range consume(t, cl, 5) {
		if want := end + int64(i); r.Offset != want {
			t.Errorf("consumed offset %d; want %d", r.Offset, want)
		}
	}
	cl.LeaveGroup()

	dir = crash(t, b)
	b = start(t, BrokerConfig{Dir: dir})
	if got := b.Until(topic); b.Incarnation() != 2 || !reflect.DeepEqual(got, until) {
		t.Errorf("incarnation %d, the first ended at %v after a kill; want 2 and %v", b.Incarnation(), got, until)
	}
}

func TestCheck(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir()})
	produce(t, newClient(t, b), 0, 10, 1)
	var end int64
	f := func(name string, stored int64, regressions uint64, incarnation uint32) {
		t.Helper()
		highest := make(map[int32]int64)
		if stored >= 0 {
			highest[0] = stored
		}
		before := b.stats.regressions.Load()
		if err := b.Check(testContext(t), group, topic, 0, highest, declared(end)); err != nil {
			t.Fatal(err)
		}
		if got := b.stats.regressions.Load() - before; got != regressions || b.Incarnation() != incarnation {
			t.Errorf("%s: %d regressions, incarnation %d; want %d, %d", name, got, b.Incarnation(), regressions, incarnation)
		}
	}
	f("nothing committed, nothing stored", -1, 0, 1)
	f("the last record stored", 9, 0, 1)
	commit(t, b, 10, "")
	f("everything committed", 9, 0, 1)
	f("one more stored than the log has", 10, 1, 2)
	f("the new incarnation has nothing stored", -1, 0, 2)
	stands := func(at int64) {
		t.Helper()
		if got := b.commits(group)[topic][0]; got.At != at || got.Metadata != "" {
			t.Errorf("the group is at %d with %q; want %d and no plan", got.At, got.Metadata, at)
		}
	}
	end = 10
	commit(t, b, 5, "a plan")
	f("declared up to the end", -1, 0, 2)
	end = 15
	f("declared beyond it", -1, 1, 3)
	stands(5)
	commit(t, b, 4, "")
	f("the second of two declared batches stored", 12, 1, 4)
	stands(4) // the first may not be
	if err := b.Check(testContext(t), group, topic, 4, nil, declared(0)); err != nil || b.Incarnation() != 4 {
		t.Errorf("%v, incarnation %d; want 4, that has stored something", err, b.Incarnation())
	}
	if err := b.Check(testContext(t), group, topic, 6, nil, declared(0)); err != nil || b.Incarnation() != 7 || b.Until(topic)[4] == nil || b.Until(topic)[5] != nil || b.Until(topic)[6] != nil {
		t.Errorf("%v, incarnation %d, ends %v; want 7, and nothing of 5 and 6", err, b.Incarnation(), b.Until(topic))
	}
	stands(4)
}

// A life that the log has lost may have ended with an insert that is in events and not yet in
// the rollups, and a copy does not know of the power cut for which it was put back.
func TestLostLivesAreCompared(t *testing.T) {
	f := func(name string, known uint32, stored map[int32]int64, want bool) {
		t.Helper()
		b := start(t, BrokerConfig{Dir: t.TempDir()})
		produce(t, newClient(t, b), 0, 10, 1)
		if err := b.Check(testContext(t), group, topic, known, stored, declared(0)); err != nil || b.Unscanned() != want {
			t.Errorf("%s: %v, to be compared %t; want %t", name, err, b.Unscanned(), want)
		}
	}
	f("whole", 1, map[int32]int64{0: 9}, false)
	f("shorter", 1, map[int32]int64{0: 10}, true)
	f("an older copy", 2, nil, true)
}

// KAFKA_TOPIC may name another topic at one start and the first at the next.
func TestIncarnationOfOtherTopics(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir(), Topics: map[string]int32{topic: 1, "other": 2}})
	produce(t, newClient(t, b), 0, 10, 1)
	if err := b.Check(testContext(t), group, "other", 0, map[int32]int64{1: 3}, declared(0)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]map[int32]int64{topic: {0: 10}, "other": {0: 0, 1: 0}} {
		if got := b.Until(name)[1]; !reflect.DeepEqual(got, want) {
			t.Errorf("the first incarnation of %s ended at %v; want %v", name, got, want)
		}
	}
}

func TestTornCommitDoesNotHideLaterOnes(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir()})
	produce(t, newClient(t, b), 0, 10, 1)
	commit(t, b, 3, "")
	dir := crash(t, b)
	f, err := os.OpenFile(filepath.Join(dir, "kafka", "groups.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte{40, 0, 0, 0, 1, 2, 3}) // an entry of 40 bytes, torn in its checksum
	f.Close()

	b = start(t, BrokerConfig{Dir: dir})
	commit(t, b, 5, "plan")
	b = start(t, BrokerConfig{Dir: crash(t, b)})
	if got := b.commits(group)[topic][0]; got.At != 5 || got.Metadata != "plan" {
		t.Errorf("commit %d %q after a torn one and a kill; want 5 and its plan", got.At, got.Metadata)
	}
}

func TestWholeEntriesOfEveryPrefix(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir()})
	produce(t, newClient(t, b), 0, 1, 1)
	commit(t, b, 1, "")
	path := filepath.Join(b.dir, "groups.log")
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, b, 1, "again")
	both, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := wholeEntries(both); got != len(both) {
		t.Fatalf("%d of %d bytes are whole; want all", got, len(both))
	}
	for n := len(first); n < len(both); n++ {
		if got := wholeEntries(both[:n]); got != len(first) {
			t.Fatalf("prefix of %d bytes: %d are whole; want %d", n, got, len(first))
		}
	}
	both[len(first)+12] ^= 1
	if got := wholeEntries(both); got != len(first) {
		t.Errorf("with a flipped bit %d are whole; want %d", got, len(first))
	}
}

func TestStartRefusesSegmentsWithoutTopics(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir()})
	produce(t, newClient(t, b), 0, 1, 1)
	for _, name := range []string{"meta.json", "topics.json"} {
		dir := crash(t, b)
		if err := os.Remove(filepath.Join(dir, "kafka", name)); err != nil {
			t.Fatal(err)
		}
		if b, err := StartBroker(testContext(t), BrokerConfig{Dir: dir}); err == nil {
			b.Close(testContext(t))
			t.Errorf("started without %s over a log", name)
		}
	}
}
