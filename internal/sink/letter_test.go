package sink

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/codec"
)

// poison are values that are no events.
var poison = []string{
	"",
	"{",
	"not JSON",
	"\x00\xff\xfe",
	`[]`,
	`{}`,
	`{"event_name":"a"}`,
	`{"event_name":"a","user_id":"u","timestamp":"soon","event_id":"x","received_at":1}`,
	`{"event_name":7,"user_id":"u","timestamp":1,"event_id":"x","received_at":1}`,
	`{"event_name":"a","user_id":"u","timestamp":1708732800000,"event_id":"x","received_at":1} trailing`,
	`{"event_name":"a","user_id":"u","timestamp":1708732800000,"event_id":"x","received_at":`, // cut off
	`{"version":2,"event":{"name":"a","user":"u"}}`,                                           // of an edge to come
	strings.Repeat("[", 1000),
	strings.Repeat("garbage", 70_000),
}

// TestPoisonMessage mixes values that are no events among good
// ones, and a stretch of nothing else.
func TestPoisonMessage(t *testing.T) {
	l := newLab(t, 2)
	s := l.start()
	want := make(map[place]string)
	bad := func(partition int32, values ...string) {
		t.Helper()
		for _, v := range values {
			r := &kgo.Record{Partition: partition, Key: []byte("key"), Value: []byte(v)}
			l.append([]*kgo.Record{r})
			want[place{partition, r.Offset}] = v
		}
	}
	for _, v := range poison {
		l.produce(7)
		bad(0, v)
	}
	l.settled()
	bad(1, poison...)
	l.settled()
	l.produce(20)
	l.settled()
	l.exact()

	counted := uint64(0)
	for _, n := range s.sink.stats.deadLetters {
		counted += n
	}
	if counted != uint64(len(want)) {
		t.Errorf("%d dead letters counted; want %d", counted, len(want))
	}
	got := l.letters()
	for at, value := range want {
		if len(got[at]) != 1 {
			t.Errorf("%v %.20q: %d letters; want 1", at, value, len(got[at]))
			continue
		}
		r := got[at][0]
		headers := make(map[string]string)
		for _, h := range r.Headers {
			headers[h.Key] = string(h.Value)
		}
		if string(r.Value) != value || string(r.Key) != "key" {
			t.Errorf("%v: letter %.20q with key %q; want %.20q", at, r.Value, r.Key, value)
		}
		if headers[HeaderTopic] != topic || headers[HeaderReason] == "" || headers[HeaderError] == "" {
			t.Errorf("%v: headers %v", at, headers)
		}
		delete(got, at)
	}
	if len(got) > 0 {
		t.Errorf("%d letters nobody wrote", len(got))
	}
}

// TestInflatedPoison has a batch of a few kilobytes that is 10 MiB, in one record
// and in a hundred, in front of good ones.
func TestInflatedPoison(t *testing.T) {
	l := newLab(t, 1)
	client, err := l.kafka.Client(kgo.DefaultProduceTopic(topic), kgo.ProducerBatchMaxBytes(16<<20), kgo.ProducerBatchCompression(kgo.ZstdCompression()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	s := l.start()
	bomb := []*kgo.Record{{Value: make([]byte, 10<<20)}}
	for range 100 {
		bomb = append(bomb, &kgo.Record{Value: bytes.Repeat([]byte(" "), 100<<10)})
	}
	if err := client.ProduceSync(t.Context(), bomb...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	l.produce(50)
	l.settled()
	l.exact()
	if got := len(l.letters()); got != len(bomb) {
		t.Errorf("%d dead letters; want %d", got, len(bomb))
	}
	if s.sink.stats.disowned.Load() > 0 {
		t.Error("the sink lost its partition over it")
	}
}

// TestDLQItselfFails keeps the dead-letter topic from taking anything:
// the sink waits, says so, passes nothing, and goes on by itself.
func TestDLQItselfFails(t *testing.T) {
	l := newLab(t, 1)
	s := l.start()
	l.produce(10)
	l.settled()
	fault := l.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: letter, Err: kerr.NotEnoughReplicas, Count: -1})
	l.append([]*kgo.Record{{Value: []byte("poison")}})
	at := l.cluster.PartitionInfo(topic, 0).HighWatermark - 1
	l.produce(10)
	if err := fault.Wait(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if got := l.cluster.GroupInfo(group).Commits[topic][0].Offset; got > at {
		t.Errorf("the group is at %d, past the poison at %d", got, at)
	}
	eventually(t, "the sink is stuck", func() error {
		if stuck, _ := s.sink.Stuck(); stuck < 50*time.Millisecond {
			return fmt.Errorf("stuck for %s", stuck)
		}
		return nil
	})
	fault.Remove()
	l.settled()
	l.exact()
	if got := len(l.letters()); got != 1 {
		t.Errorf("%d dead letters; want 1", got)
	}
	if err := s.sink.Ready(time.Second); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

// TestLargeDeadLetter has a record larger than the dead-letter topic takes.
func TestLargeDeadLetter(t *testing.T) {
	l := newLab(t, 1)
	fault := l.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: letter, Err: kerr.MessageTooLarge, Count: 1})
	value := bytes.Repeat([]byte("x"), 500_000)
	l.append([]*kgo.Record{{Value: value}})
	l.start()
	l.produce(10)
	l.settled()
	l.exact()
	if fault.Hits() != 1 {
		t.Fatalf("the fault was met %d times", fault.Hits())
	}
	letters := l.letters()[place{0, 0}]
	if len(letters) != 1 {
		t.Fatalf("%d letters; want 1", len(letters))
	}
	r := letters[0]
	if last := r.Headers[len(r.Headers)-1]; last.Key != HeaderTruncated || string(last.Value) != "500000" {
		t.Errorf("last header %s=%s", last.Key, last.Value)
	}
	if !bytes.Equal(r.Value, value[:keptLetterBytes]) {
		t.Errorf("value of %d bytes; want the first %d", len(r.Value), keptLetterBytes)
	}
}

// TestLettersThatDoNotFit has letters of which the key, the value or all together are
// more than the dead-letter topic takes in a batch. What fits alone is not cut.
func TestLettersThatDoNotFit(t *testing.T) {
	random := rand.NewChaCha8([32]byte{}) // nothing that a codec makes smaller
	bytesOf := func(n int) []byte {
		b := make([]byte, n)
		_, _ = random.Read(b)
		return b
	}
	few := make([]*kgo.Record, 40)
	for i := range few {
		few[i] = &kgo.Record{Value: bytesOf(50_000)}
	}
	for _, c := range []struct {
		name       string
		limit      int // of the dead-letter topic
		poison     []*kgo.Record
		key, value int // what is left
	}{
		{"key", 1 << 20, []*kgo.Record{{Key: bytesOf(2 << 20), Value: []byte("poison")}}, keptLetterBytes, 6},
		{"key and value", 1 << 20, []*kgo.Record{{Key: bytesOf(1 << 20), Value: bytesOf(1 << 20)}}, keptLetterBytes, keptLetterBytes},
		{"small topic", 20_000, []*kgo.Record{{Key: bytesOf(2 << 20), Value: bytesOf(5000)}}, keptLetterBytes / 8, 5000},
		{"together", 1 << 20, few, 0, 50_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, 1)
			for name, limit := range map[string]int{topic: 16 << 20, letter: c.limit} {
				value := strconv.Itoa(limit)
				if _, err := l.admin.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &value}}, name); err != nil {
					t.Fatal(err)
				}
			}
			client, err := l.kafka.Client(kgo.DefaultProduceTopic(topic), kgo.ProducerBatchMaxBytes(16<<20), kgo.ProducerLinger(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			for _, r := range c.poison {
				client.Produce(t.Context(), r, nil)
			}
			if err := client.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.produce(10)
			l.start(func(c *Config) { c.FlushBytes = 16 << 20 })
			l.settled()
			l.exact()
			letters := l.letters()
			for i, r := range c.poison {
				got := letters[place{0, int64(i)}]
				if len(got) != 1 {
					t.Fatalf("%d letters of record %d; want 1", len(got), i)
				}
				if !bytes.Equal(got[0].Key, r.Key[:c.key]) || !bytes.Equal(got[0].Value, r.Value[:c.value]) {
					t.Errorf("a key of %d bytes and a value of %d; want the first %d and %d", len(got[0].Key), len(got[0].Value), c.key, c.value)
				}
				said := make(map[string]string)
				for _, h := range got[0].Headers {
					if h.Key == HeaderKeyTruncated || h.Key == HeaderTruncated {
						said[h.Key] += string(h.Value)
					}
				}
				want := make(map[string]string)
				if c.key < len(r.Key) {
					want[HeaderKeyTruncated] = strconv.Itoa(len(r.Key))
				}
				if c.value < len(r.Value) {
					want[HeaderTruncated] = strconv.Itoa(len(r.Value))
				}
				if !maps.Equal(said, want) {
					t.Errorf("headers say %v; want %v", said, want)
				}
			}
		})
	}
}

// withID gives event i of n the id of ids[i].
func withID(ids ...string) func(int, *codec.Event) {
	return func(i int, ev *codec.Event) { ev.EventID = []byte(ids[i%len(ids)]) }
}

// repeat appends events whose ids were stored before: not for the ledger.
func (l *lab) repeat(partition int32, change ...func(i int, ev *codec.Event)) {
	l.t.Helper()
	records := l.records(1, change...)
	records[0].Partition = partition
	l.append(records)
}

func (l *lab) one(partition int32, change ...func(i int, ev *codec.Event)) {
	l.t.Helper()
	records := l.records(1, change...)
	records[0].Partition = partition
	l.append(records)
	l.enter(records)
}

// TestOnlyDuplicatesAndDead has flights without a row: the group passes them
// and the next flight follows on.
func TestOnlyDuplicatesAndDead(t *testing.T) {
	l := newLab(t, 1)
	s := l.start()
	l.one(0, withID("a"))
	l.settled()
	for range 3 {
		l.repeat(0, withID("a"))
		l.settled()
		l.append([]*kgo.Record{{Value: []byte("poison")}})
		l.settled()
	}
	s.stop()
	l.start()
	l.one(0, withID("b"))
	l.settled()
	l.exact()
	if got := l.value("SELECT count() FROM empty_batches"); got == "0" {
		t.Error("batches without rows are not on record")
	}
}
