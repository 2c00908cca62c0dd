package producer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/codec"
	"edge/internal/stat"
)

// Partitions with full batches share a request only up to its bound; the others
// go with the next.
func TestRequestIsBounded(t *testing.T) {
	const count = 40
	p := newProducer(Config{Shards: 1, RingBatches: 1, RingBytes: 1}, nil)
	defer p.cancel()
	s := p.shards[0]
	p.metadata.view.Store(&view{leaders: make([]int32, count)})
	s.look()
	s.adopt(identity{id: 1})
	noise := make([]byte, 900_000) // which no codec makes smaller
	random := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	for i := range s.parts {
		s.parts[i].last(len(noise), time.Now(), gatherFor).append(noise, 0, false)
	}
	sent := 0
	for sent < count {
		for i := range s.parts {
			if pt := &s.parts[i]; s.may(pt) {
				s.load(pt)
			}
		}
		if len(s.open) != 1 {
			t.Fatalf("%d requests to one leader", len(s.open))
		}
		r := s.open[0]
		if n := len(r.AppendTo(nil)); n > maxRequestBytes+1000 || n < maxRequestBytes/2 && sent+len(r.partitions()) < count {
			t.Errorf("a request of %d bytes; the bound is %d", n, maxRequestBytes)
		}
		for _, sp := range r.partitions() {
			pt := &s.parts[sp.Partition]
			pt.flight = nil
			pt.take(0).free()
			sent++
		}
		s.open = s.open[:0]
	}
}

// Small requests gather in one shard until it is behind, by whatever measure; large ones
// never do.
func TestSmallRequestsShareAShard(t *testing.T) {
	const shards, room = 4, 64
	pool := codec.NewPool(codec.Rules{})
	used := func(requests, events int, ringBytes, waiting int64) (lens []int) {
		p := newProducer(Config{Shards: shards, RingBatches: room, RingBytes: ringBytes, MaxInflight: shards * 1000, Ack: AckMemory}, nil)
		defer p.cancel()
		p.shards[0].waiting.Store(waiting)
		for i := range requests {
			ids := make([]string, events)
			for j := range ids {
				ids[j] = fmt.Sprintf("%d of %d", j, i)
			}
			b := batchOf(t, pool, ids...)
			if err := p.Publish(b); err != nil {
				t.Fatalf("request %d of %d events: %v", i, events, err)
			}
		}
		for _, s := range p.shards {
			lens = append(lens, s.ring.Len())
		}
		return lens
	}
	const bytes = 1 << 30
	if got := used(room/2, 1, bytes, 249); !slices.Equal(got, []int{room / 2, 0, 0, 0}) {
		t.Errorf("small requests stand in rings as %v", got)
	}
	spread := func(what string, most int, got []int) {
		t.Helper()
		if slices.Contains(got, 0) || slices.Max(got) > most {
			t.Errorf("%s stand in rings as %v", what, got)
		}
	}
	spread("small requests of a shard that is behind", room-1, used(2*room, 1, bytes, 0))
	spread("small requests of a shard whose ring has many bytes", room/2, used(room, 1, 8<<10, 0))
	spread("small requests of a shard that waits for the broker", room/2, used(room, 1, bytes, 250))
	spread("large requests", room/2, used(room, 50, bytes, 0))
}

// Brokers older than topic ids, or some of them, do not make it another topic.
func TestTopicIsAnother(t *testing.T) {
	none, a, b := [16]byte{}, [16]byte{1}, [16]byte{2}
	f := func(want int, ids ...[16]byte) {
		t.Helper()
		changes := stat.Counter{}
		m := &metadata{changed: changes.Inc}
		for _, id := range ids {
			m.take(&kmsg.MetadataResponseTopic{TopicID: id, Partitions: []kmsg.MetadataResponseTopicPartition{{Partition: 0, Leader: 7}}})
		}
		if v := m.view.Load(); v.topics != want || m.recreated.Load() != (want > 0) || changes.Load() != uint64(len(ids)) {
			t.Errorf("ids %v: %d topics before this, recreated %t, %d changes; want %d", ids, v.topics, m.recreated.Load(), changes.Load(), want)
		}
	}
	f(0, a)
	f(0, a, a)
	f(0, none, none)
	f(0, none, a)
	f(0, a, none, a)
	f(1, a, b)
	f(1, a, none, b)
	f(2, a, b, a)
}

func TestLeadersOfAView(t *testing.T) {
	m := &metadata{changed: func() {}}
	m.take(&kmsg.MetadataResponseTopic{}) // not yet
	if m.view.Load() != nil {
		t.Error("a topic without partitions is taken")
	}
	m.take(&kmsg.MetadataResponseTopic{Partitions: []kmsg.MetadataResponseTopicPartition{
		{Partition: 2, Leader: 5}, {Partition: 0, Leader: 4}, {Partition: 9, Leader: 3}, {Partition: -1, Leader: 3},
	}})
	got := m.view.Load().leaders
	want := []int32{4, -1, 5, -1}
	for i := range want {
		if len(got) != len(want) || got[i] != want[i] {
			t.Fatalf("got leaders %v; want %v", got, want)
		}
	}
}
