package query

import (
	"encoding/binary"
	"errors"
	"math"
	"math/bits"
)

// sketch counts distinct users as ClickHouse's uniqCombined64(14) does: it holds the
// 64-bit hashes of users while they are few, and beyond that HyperLogLog registers, of
// which either is the union of what it was merged of. The zero value is empty.
//
// States come here and are merged here because it costs less: some ten µs for a state
// that is full and as many to tell how many users that is (BenchmarkSketch), a word of
// eight registers at a time, where the server unpacks, compares and counts each register.
// The figures are the server's to the digit, with one exception: the server leaves the set for registers when a 513th
// hash arrives, be it one of the 512 that are there. Here it has to be another. So what it
// makes of rows that are 512 users depends on how it reads them; merged here they are 512.
type sketch struct {
	set       []uint64                     // open addressing, a power of two of slots, 0 is an empty one
	n         int                          // hashes in set
	registers *[sketchRegisters / 8]uint64 // a byte each; nil while the set says it all
}

const (
	sketchBits      = 14 // of a hash, that choose its register: the precision in the schema
	sketchRegisters = 1 << sketchBits
	sketchExact     = 1 << (sketchBits - 5) // hashes that are kept as they are
	sketchPacked    = sketchRegisters * 6 / 8
	sketchMaxRank   = 64 - sketchBits + 1
	// After its registers a state has how many there are of each rank, in four bytes
	// each, and how many are zero, in two.
	sketchState = sketchPacked + 4*(sketchMaxRank+1) + 2
)

var errState = errors.New("a state of distinct users is not of the form that uniqCombined64(14) has")

// merge adds the users of a state as the server serializes it: a byte that says how it
// holds them; then their number as a varint and the hashes, or the registers in six
// bits each. All numbers are little-endian.
func (s *sketch) merge(state []byte) error {
	if len(state) == 0 {
		return errState
	}
	kind, state := state[0], state[1:]
	switch kind {
	case 1, 2: // a list, or a hash table without its gaps
		n, size := binary.Uvarint(state)
		if size <= 0 || n > sketchExact || len(state)-size != int(n)*8 {
			return errState
		}
		for state = state[size:]; len(state) > 0; state = state[8:] {
			s.add(binary.LittleEndian.Uint64(state))
		}
	case 3:
		if len(state) != sketchState {
			return errState
		}
		s.spill()
		for i, have := range s.registers {
			// Two bytes more are read than are unpacked, which the state has.
			s.registers[i] = greater(have, unpack(binary.LittleEndian.Uint64(state[6*i:])))
		}
	default:
		return errState
	}
	return nil
}

// union adds the users of t.
func (s *sketch) union(t *sketch) {
	if t.registers != nil {
		s.spill()
		for i, have := range s.registers {
			s.registers[i] = greater(have, t.registers[i])
		}
		return
	}
	t.each(s.add)
}

// unpack spreads the eight registers of the lower 48 bits over eight bytes.
func unpack(w uint64) uint64 {
	w = w&0x0000_0000_00ff_ffff | w&0x0000_ffff_ff00_0000<<8
	w = w&0x0000_0fff_0000_0fff | w&0x00ff_f000_00ff_f000<<4
	return w&0x003f_003f_003f_003f | w&0x0fc0_0fc0_0fc0_0fc0<<2
}

// greater is the greater one of each two bytes, which are at most 127.
func greater(x, y uint64) uint64 {
	const high = 0x8080_8080_8080_8080
	atLeast := (x | high - y) & high // a byte's high bit stays where x is not less
	mask := atLeast - atLeast>>7     // and makes seven ones below it
	return x&mask | y&^mask
}

// add adds the user whose hash is h.
func (s *sketch) add(h uint64) {
	if s.registers != nil {
		s.rank(h)
		return
	}
	if h == 0 { // one in 2^64 is taken for another
		h = 1 << 63
	}
	if 2*s.n >= len(s.set) {
		s.grow()
	}
	if !s.insert(h) {
		return
	}
	if s.n++; s.n > sketchExact {
		s.spill()
	}
}

// insert tells whether h was not there. There is room.
func (s *sketch) insert(h uint64) bool {
	mask := uint64(len(s.set) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		switch s.set[i] {
		case 0:
			s.set[i] = h
			return true
		case h:
			return false
		}
	}
}

func (s *sketch) grow() {
	old := s.set
	s.set = make([]uint64, max(32, 2*len(old)))
	for _, h := range old {
		if h != 0 {
			s.insert(h)
		}
	}
}

// each calls f with every hash of the set.
func (s *sketch) each(f func(h uint64)) {
	for _, h := range s.set {
		if h != 0 {
			f(h)
		}
	}
}

// spill leaves the set for registers.
func (s *sketch) spill() {
	if s.registers != nil {
		return
	}
	s.registers = new([sketchRegisters / 8]uint64)
	s.each(s.rank)
	s.set = nil
}

// bytes is how much memory s has beside itself.
func (s *sketch) bytes() int {
	n := 8 * len(s.set)
	if s.registers != nil {
		n += sketchRegisters
	}
	return n
}

// rank raises the register of h to the number of zeros, and one, at which the rest of h ends.
func (s *sketch) rank(h uint64) {
	rank := min(bits.TrailingZeros64(h>>sketchBits)+1, sketchMaxRank)
	i, at := h%sketchRegisters/8, h%8*8
	s.registers[i] = greater(s.registers[i], uint64(rank)<<at)
}

// count is the number of users: exact while there is a set, else HyperLogLog's estimate,
// or of few that of linear counting.
func (s *sketch) count() uint64 {
	if s.registers == nil {
		return uint64(s.n)
	}
	const m = sketchRegisters
	// Most are of a few ranks: counters of one would wait for each other.
	var of [8][64]int
	for _, w := range s.registers {
		of[0][w&63]++
		of[1][w>>8&63]++
		of[2][w>>16&63]++
		of[3][w>>24&63]++
		of[4][w>>32&63]++
		of[5][w>>40&63]++
		of[6][w>>48&63]++
		of[7][w>>56&63]++
	}
	var zeros int
	var sum float64 // of 2^-rank over all registers
	for rank := 63; rank >= 0; rank-- {
		zeros = 0
		for i := range of {
			zeros += of[i][rank]
		}
		sum = sum/2 + float64(zeros)
	}
	estimate := 0.7213 / (1 + 1.079/m) * m * m / sum
	if estimate <= 2.5*m && zeros != 0 {
		estimate = m * (math.Log(m) - math.Log(float64(zeros)))
	}
	return uint64(estimate + 0.5)
}
