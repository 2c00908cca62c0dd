package query

import (
	"math/bits"
	"slices"
)

// stateSum is what buckets hold together, by channel. Merging their states is half of what
// an answer takes here, and ranges that move on by seconds have the same ones.
type stateSum struct {
	of    []uint64 // their numbers
	cells map[string]*cell
}

// sumKey is that of the sum of a range's buckets.
func sumKey(r *Request) bucketKey {
	return bucketKey{scopeOf(r), span{at: int64(bits.Len64(uint64(r.To - r.From)))}}
}

// numbers tell buckets apart from all others.
func numbers(buckets []*bucket) (of []uint64) {
	for _, b := range buckets {
		of = append(of, b.number)
	}
	return of
}

// sum is the one that is kept, if it is of those buckets.
func (c *stateCache) sum(key bucketKey, of []uint64) *stateSum {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byKey[key]
	if e == nil || !slices.Equal(e.Value.(*bucket).sum.of, of) {
		return nil
	}
	c.used.MoveToFront(e)
	return e.Value.(*bucket).sum
}

// keepSum keeps s in place of the one before it.
func (c *stateCache) keepSum(key bucketKey, s *stateSum) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byKey[key]; e != nil {
		c.remove(e)
	}
	c.add(&bucket{key: key, sum: s, bytes: bucketBytes + len(key.event) + len(key.channel) + s.bytes()})
}

// maxSumChannels bounds a sum to an eighth of what may be kept: 16 kB for each channel.
func (c *stateCache) maxSumChannels() int { return c.limit / 8 / sketchRegisters }

// summable tells whether buckets have few enough channels for a sum.
func (c *stateCache) summable(buckets []*bucket) bool {
	channels := make(map[string]struct{})
	for _, b := range buckets {
		cells, _ := b.all()
		for _, part := range cells {
			channels[part.name] = struct{}{}
		}
	}
	return len(channels) <= c.maxSumChannels()
}

// addUp makes the sum of buckets.
func addUp(buckets []*bucket) (*stateSum, error) {
	sum := &stateSum{numbers(buckets), make(map[string]*cell)}
	for _, b := range buckets {
		cells, _ := b.all()
		for _, part := range cells {
			g := sum.cells[part.name]
			if g == nil {
				g = new(cell)
				sum.cells[part.name] = g
			}
			if err := g.add(part.events, part.state); err != nil {
				return nil, err
			}
		}
	}
	return sum, nil
}

func (s *stateSum) bytes() int {
	n := 8 * len(s.of)
	for name, c := range s.cells {
		n += cellBytes + len(name)
		if c.sketch != nil {
			n += c.sketch.bytes()
		}
	}
	return n
}
