package sink

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"edge/internal/codec"
)

// model is the rule of window in its own words: a record is a duplicate when the
// last stored record with its id lies less than size before it and was received
// less than age before it.
type model struct {
	size, ageMs int64
	stored      []stored
}

type stored struct {
	id               [16]byte
	offset, received int64
}

func (m *model) seen(id [16]byte, offset, received int64) bool {
	for _, s := range slices.Backward(m.stored) {
		if s.id == id {
			// Receive times are remembered in whole seconds, rounded up.
			if offset-s.offset < m.size && received-(s.received+999)/1000*1000 < m.ageMs {
				return true
			}
			break
		}
	}
	m.stored = append(m.stored, stored{id, offset, received})
	return false
}

func testID(n int) (id [16]byte) {
	binary.BigEndian.PutUint64(id[8:], uint64(n))
	return id
}

// TestWindowIsItsRule runs window against the rule, with offsets that jump and
// times that go back, and with rows that another rule let in, and rebuilds it from
// what is stored on the way: the decisions are the same ever after.
func TestWindowIsItsRule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.OneOf(rapid.Int64Range(1, 40), rapid.SampledFrom([]int64{stretchSlots - 1, stretchSlots, stretchSlots + 1, 5 * stretchSlots / 2})).Draw(t, "size")
		m := &model{size: size, ageMs: rapid.Int64Range(1, 60_000).Draw(t, "age")}
		w := newWindow(m.size, m.ageMs)
		offset, now := rapid.Int64Range(0, 100).Draw(t, "start"), int64(1_700_000_000_000)
		for range rapid.IntRange(1, 300).Draw(t, "records") {
			if rapid.IntRange(0, 20).Draw(t, "rebuild") == 0 {
				w = newWindow(m.size, m.ageMs)
				for _, s := range m.stored {
					if s.offset >= offset-m.size {
						w.store(s.id, s.offset, s.received)
					}
				}
			}
			id := testID(rapid.IntRange(0, 15).Draw(t, "id"))
			if rapid.IntRange(0, 20).Draw(t, "stored anyway") == 0 {
				w.store(id, offset, now)
				m.stored = append(m.stored, stored{id, offset, now})
			} else if got, want := w.seen(id, offset, now), m.seen(id, offset, now); got != want {
				t.Fatalf("offset %d: duplicate %t; want %t", offset, got, want)
			}
			ids, seconds := w.span()
			if ids == 0 || seconds < 0 || ids > int(m.size) {
				t.Fatalf("span %d ids, %d seconds", ids, seconds)
			}
			offset += rapid.SampledFrom([]int64{1, 1, 1, 1, 2, 7, m.size - 1, m.size, m.size + 1, 10 * m.size}).Filter(func(n int64) bool { return n > 0 }).Draw(t, "step")
			now += rapid.Int64Range(-3000, 9000).Draw(t, "ms")
		}
	})
}

// TestWindowIsRebuilt has receive times of edges whose clocks are hours apart, and of
// records from elsewhere, which may say any time. Which record is a duplicate is the
// same without a restart of the sink and with several.
func TestWindowIsRebuilt(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			l := newLab(t, 1)
			small := func(c *Config) { c.DedupIDs = 100 }
			m := &model{size: 100, ageMs: time.Hour.Milliseconds()}
			rng := rand.New(rand.NewPCG(1, 2))
			now := time.Now().UnixMilli()
			s := l.start(small)
			for range 6 {
				records := l.records(60, func(_ int, ev *codec.Event) {
					ev.EventID = fmt.Appendf(nil, "of %d", rng.IntN(40))
					ev.ReceivedAt = []int64{now, now, now, now - 7_200_000, now + 3_000_000, now + 7_200_000, 1, 4_294_967_000_000}[rng.IntN(8)]
				})
				l.append(records)
				for i, r := range records {
					ev := r.Context.Value(eventKey{}).(*codec.Event)
					var id [16]byte
					copy(id[:], ev.EventID)
					if !m.seen(id, r.Offset, ev.ReceivedAt) {
						l.enter(records[i : i+1])
					}
				}
				l.settled()
				l.exact()
				if restart {
					s.stop()
					s = l.start(small)
				}
			}
		})
	}
}

// TestWindowSpan holds few ids far apart in a ring that is hardly allocated:
// most records carry an assigned id, which no window remembers.
func TestWindowSpan(t *testing.T) {
	w := newWindow(1<<16, 60_000)
	w.seen(testID(1), 10, 1000)
	w.seen(testID(2), 1<<16+5, 2000)
	w.seen(testID(3), 1<<16+11, 3000) // forgets the first
	if ids, seconds := w.span(); ids != 2 || seconds != 1 {
		t.Errorf("span %d ids, %d seconds; want 2 and 1", ids, seconds)
	}
}

// TestWindowJump skips more offsets than anybody could count one by one.
func TestWindowJump(t *testing.T) {
	w := newWindow(1000, 60_000)
	w.seen(testID(1), 10, 1000)
	if w.seen(testID(1), 1<<50, 1000) {
		t.Error("an id from far outside the window is a duplicate")
	}
	if !w.seen(testID(1), 1<<50+999, 1000) {
		t.Error("an id inside the window is no duplicate")
	}
	if w.seen(testID(1), 1<<50+1000, 1000) {
		t.Error("an id just outside the window is a duplicate")
	}
}
