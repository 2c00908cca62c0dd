package codec

import (
	"bytes"
	"fmt"
	"math/bits"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// newIDs returns the ids of n events that came without, having compared each with
// what its format promises.
func newIDs(pool *Pool, n int, at time.Time) (ids []uuid.UUID, err error) {
	var d Decoder
	var ev Event
	b := pool.Get()
	defer b.Release()
	var refused *Error
	if n == 1 {
		refused = b.DecodeOne([]byte(one("a")), at)
	} else {
		refused = b.DecodeLines([]byte(strings.Repeat(one("a")+"\n", n)), at)
	}
	if refused != nil || b.Len() != n {
		return nil, fmt.Errorf("%d records of %d: %v", b.Len(), n, refused)
	}
	for i := range b.Len() {
		if refused := d.DecodeRecord(b.Record(i), &ev); refused != nil {
			return nil, refused
		}
		id, err := uuid.ParseBytes(ev.EventID)
		if err != nil || id.Version() != 7 || id.Variant() != uuid.RFC4122 {
			return nil, fmt.Errorf("%s: version %d, variant %s, %v", ev.EventID, id.Version(), id.Variant(), err)
		}
		if sec, nsec := id.Time().UnixTime(); sec*1000+nsec/1e6 != at.UnixMilli() || ev.ReceivedAt != at.UnixMilli() {
			return nil, fmt.Errorf("%s: time %d.%d, received_at %d; want %d", id, sec, nsec, ev.ReceivedAt, at.UnixMilli())
		}
		if !b.Assigned(i) || b.Hash(i) != PartitionHash(id) {
			return nil, fmt.Errorf("record %d: assigned %t, hash %x; want that of %s", i, b.Assigned(i), b.Hash(i), id)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func newID(t *testing.T, pool *Pool, at time.Time) uuid.UUID {
	t.Helper()
	ids, err := newIDs(pool, 1, at)
	if err != nil {
		t.Fatal(err)
	}
	return ids[0]
}

// TestAssignedIDs: within one millisecond, on many goroutines whose batches come and
// go, in requests shorter than a run of ids and longer, none is assigned twice.
func TestAssignedIDs(t *testing.T) {
	pool := NewPool(Rules{})
	var mu sync.Mutex
	seen := map[uuid.UUID]bool{}
	var posters sync.WaitGroup
	for range 8 {
		posters.Go(func() {
			for round := range 60 {
				ids, err := newIDs(pool, []int{1, 3, idRun, 100, 5*idRun + 1}[round%5], now)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for i, id := range ids {
					if seen[id] {
						t.Errorf("%s assigned twice", id)
					}
					if i > 0 && bytes.Compare(ids[i-1][:], id[:]) >= 0 {
						t.Errorf("%s behind %s in one request", id, ids[i-1])
					}
					seen[id] = true
				}
				mu.Unlock()
			}
		})
	}
	posters.Wait()
	if want := 8 * 12 * (1 + 3 + idRun + 100 + 5*idRun + 1); len(seen) != want {
		t.Errorf("%d ids; want %d", len(seen), want)
	}
}

// TestAssignedIDsWrap: behind the last number comes the first, and no digit of the
// version or of the variant is touched.
func TestAssignedIDsWrap(t *testing.T) {
	f := func(next uint64) {
		t.Helper()
		pool := NewPool(Rules{})
		pool.ids.next.Store(next)
		seen := map[uuid.UUID]bool{}
		for range 5 {
			ids, err := newIDs(pool, 50, now)
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range ids {
				seen[id] = true
			}
		}
		if len(seen) != 250 {
			t.Errorf("from %#x: %d ids are %d", next, 250, len(seen))
		}
	}
	f(1<<62 - 100)
	f(1<<63 - 100)
	f(1<<64 - 100)
	f(0)
}

// TestAssignedIDsOfPoolsDiffer: bases are 74 random bits, each of which comes up both ways.
func TestAssignedIDsOfPoolsDiffer(t *testing.T) {
	var ones [16]byte
	zeros := ones
	for range 64 { // a bit is the same in all with probability 2^-63
		id := newID(t, NewPool(Rules{}), now)
		for i := range id {
			ones[i] |= id[i]
			zeros[i] |= ^id[i]
		}
	}
	free := 0
	for i := range ones {
		free += bits.OnesCount8(ones[i] & zeros[i])
	}
	if free != 74 {
		t.Errorf("%d bits differ between pools; want 74", free)
	}
}

// TestAssignedIDsFollowTheClock: a batch that has ids left uses them for its next
// request under that one's time.
func TestAssignedIDsFollowTheClock(t *testing.T) {
	pool := NewPool(Rules{})
	last := newID(t, pool, now)
	for i := range 3 * idRun {
		id := newID(t, pool, now.Add(time.Duration(i+1)*time.Millisecond))
		if bytes.Compare(last[:], id[:]) >= 0 {
			t.Fatalf("%s came after %s", id, last)
		}
		last = id
	}
}
