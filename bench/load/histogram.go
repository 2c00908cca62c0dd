package load

import (
	"math"
	"math/bits"
	"time"
)

// Histogram counts durations in buckets that are at most 1/128 wide of what
// they hold, so a quantile is off by less than a percent however long the tail.
// Adding is two shifts and an increment; nothing is sampled or dropped.
type Histogram struct {
	counts [buckets]uint64
	n      uint64
	max    time.Duration
}

const (
	subBits = 7
	buckets = (64 - subBits + 1) << subBits
)

// bucket is exact below 2^subBits ns; above, the leading subBits+1 bits say
// which.
func bucket(v uint64) int {
	if v < 1<<subBits {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return (shift+1)<<subBits + int(v>>shift) - 1<<subBits
}

// floor is the least value of a bucket.
func floor(b int) uint64 {
	if b < 1<<subBits {
		return uint64(b)
	}
	shift := b>>subBits - 1
	return uint64(b&(1<<subBits-1)+1<<subBits) << shift
}

// Add counts d; below zero counts as zero.
func (h *Histogram) Add(d time.Duration) {
	d = max(d, 0)
	h.counts[bucket(uint64(d))]++
	h.n++
	h.max = max(h.max, d)
}

// Count is how many durations were added.
func (h *Histogram) Count() uint64 { return h.n }

// Max is the longest.
func (h *Histogram) Max() time.Duration { return h.max }

// Quantile is the least bucket limit that at least the part q of all durations
// stays under: never better than the truth, at most 1/128 worse.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	rank := max(uint64(math.Ceil(q*float64(h.n))), 1)
	var seen uint64
	for b, n := range h.counts {
		if seen += n; seen >= rank {
			if b+1 == buckets {
				return h.max
			}
			return min(time.Duration(floor(b+1)-1), h.max)
		}
	}
	return h.max
}
