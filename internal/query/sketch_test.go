package query

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// Whatever is merged, in whatever order, the figure is the server's: states of each form,
// of sizes at which one form becomes another and one estimate the next, and every union.
func TestSketchCountsAsTheServer(t *testing.T) {
	pool := openDatabase(t, "sketch")
	const states = `(SELECT size, uniqCombined64State(14)(concat('u', toString(size * 1000000 + number))) AS s
		FROM numbers(300000) ARRAY JOIN [1, 16, 17, 400, 512, 513, 8600, 30000, 300001] AS size WHERE number < size GROUP BY size)`
	var (
		all    [][]byte
		merged []uint64
		state  proto.ColStr
		mask   proto.ColUInt64
		users  proto.ColUInt64
	)
	err := pool.Do(t.Context(), ch.Query{
		Body:   "SELECT toString(s) AS state FROM " + states + " ORDER BY size",
		Result: proto.Results{{Name: "state", Data: &state}},
		OnResult: func(_ context.Context, b proto.Block) error {
			for i := range b.Rows {
				all = append(all, slices.Clone(state.RowBytes(i)))
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	subsets := 1 << len(all)
	merged = make([]uint64, subsets)
	err = pool.Do(t.Context(), ch.Query{
		Body: "SELECT toUInt64(subset) AS mask, uniqCombined64Merge(14)(s) AS users FROM (SELECT s, rank FROM (SELECT groupArray(s) AS every FROM (SELECT s FROM " + states +
			" ORDER BY size)) ARRAY JOIN every AS s, arrayEnumerate(every) AS rank) ARRAY JOIN range(" + num(int64(subsets)) +
			") AS subset WHERE bitTest(subset, rank - 1) GROUP BY subset",
		Result: proto.Results{{Name: "mask", Data: &mask}, {Name: "users", Data: &users}},
		OnResult: func(_ context.Context, b proto.Block) error {
			for i := range b.Rows {
				merged[mask.Row(i)] = users.Row(i)
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 9 || len(all[8]) != 1+sketchState || merged[1] != 1 || merged[1<<4] != sketchExact {
		t.Fatalf("%d states, the last of %d bytes; of 1 and 512 users %d and %d", len(all), len(all[8]), merged[1], merged[1<<4])
	}
	rng := rand.New(rand.NewPCG(14, 64))
	for mask := range subsets {
		var one, left, right sketch
		for _, i := range rng.Perm(len(all)) {
			if mask>>i&1 == 0 {
				continue
			}
			half := &left
			if rng.IntN(2) == 0 {
				half = &right
			}
			for _, s := range []*sketch{&one, half, half} { // twice is as once
				if err := s.merge(all[i]); err != nil {
					t.Fatal(err)
				}
			}
		}
		left.union(&right)
		if got, again := one.count(), left.count(); got != merged[mask] || again != merged[mask] {
			t.Errorf("states %09b: %d users, and %d by way of two halves; the server has %d", mask, got, again, merged[mask])
		}
	}
}

// What is no state is an error, and no cut of a state is one.
func TestMergeRefuses(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{0, 1, 16, 400, 20_000} {
		state := stateOf(rng, n)
		for end := range state {
			if err := new(sketch).merge(state[:end]); err == nil {
				t.Fatalf("%d of %d bytes of a state of %d users were taken", end, len(state), n)
			}
		}
		if err := new(sketch).merge(append(state, 0)); err == nil {
			t.Errorf("a state of %d users with one byte more was taken", n)
		}
		if err := new(sketch).merge(state); err != nil {
			t.Errorf("a state of %d users: %v", n, err)
		}
	}
	for _, state := range []string{"\x00\x00", "\x04", "\x02\x81\x04", "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
		if err := new(sketch).merge([]byte(state)); err == nil {
			t.Errorf("%q was taken", state)
		}
	}
}

func FuzzMerge(f *testing.F) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, n := range []int{0, 1, 16, 400, 20_000} {
		f.Add(stateOf(rng, n))
	}
	f.Fuzz(func(t *testing.T, state []byte) {
		var s sketch
		if s.merge(state) == nil {
			s.count()
		}
	})
}
