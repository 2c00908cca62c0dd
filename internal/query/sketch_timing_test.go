package query

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// stateOf is the state of n random users as the server would serialize it.
func stateOf(rng *rand.Rand, n int) []byte {
	s := new(sketch)
	for range n {
		s.add(rng.Uint64())
	}
	if s.registers == nil {
		state := binary.AppendUvarint([]byte{2}, uint64(s.n))
		s.each(func(h uint64) { state = binary.LittleEndian.AppendUint64(state, h) })
		return state
	}
	state := make([]byte, 1+sketchState)
	state[0] = 3
	for i := range sketchRegisters {
		r := s.registers[i/8] >> (i % 8 * 8) & 63
		at := 6 * i
		word := state[1+at/8:]
		binary.LittleEndian.PutUint16(word, binary.LittleEndian.Uint16(word)|uint16(r)<<(at%8))
	}
	return state
}

// BenchmarkSketch is what a state costs here: of hashes, and of registers, added to a
// sketch of the same; and the number of users at the end.
func BenchmarkSketch(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, bench := range []struct {
		name  string
		users int
	}{{"hashes", 400}, {"registers", 20_000}} {
		state := stateOf(rng, bench.users)
		b.Run("merge/"+bench.name, func(b *testing.B) {
			s := new(sketch)
			for b.Loop() {
				if err := s.merge(state); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	s := new(sketch)
	if err := s.merge(stateOf(rng, 20_000)); err != nil {
		b.Fatal(err)
	}
	b.Run("first", func(b *testing.B) {
		state := stateOf(rng, 20_000)
		for b.Loop() {
			if err := new(sketch).merge(state); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("union", func(b *testing.B) {
		var whole sketch
		for b.Loop() {
			whole.union(s)
		}
	})
	b.Run("count", func(b *testing.B) {
		for b.Loop() {
			s.count()
		}
	})
}
