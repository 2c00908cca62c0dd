package query

import (
	"fmt"
	"testing"
)

// One sum is kept for ranges of about the same length, of no more channels than there is
// room for.
func TestWhichSumsAreKept(t *testing.T) {
	c := stateCache{limit: 4 * 8 * sketchRegisters}
	channels := func(number uint64, n int) (all []*bucket) {
		for i := range n {
			all = append(all, &bucket{number: number, cells: []bucketCell{{0, fmt.Sprint("channel ", i), 1, []byte{1, 0}}}})
		}
		return all
	}
	r := Request{EventName: "view", From: 0, To: 700, GroupBy: "channel"}
	other := r
	other.To = 1700
	if !c.summable(channels(1, 4)) || c.summable(channels(1, 5)) {
		t.Error("five channels are summed, or four are not")
	}
	keep := func(r *Request, number uint64) *stateSum {
		t.Helper()
		sum, err := addUp(channels(number, 4))
		if err != nil {
			t.Fatal(err)
		}
		c.keepSum(sumKey(r), sum)
		bounded(t, &c)
		return sum
	}
	has := func(r *Request, number uint64, want *stateSum) {
		t.Helper()
		if got := c.sum(sumKey(r), numbers(channels(number, 4))); got != want {
			t.Errorf("of %d: got %p; want %p", number, got, want)
		}
	}
	has(&r, 1, nil)
	first, second := keep(&r, 1), keep(&other, 2)
	has(&r, 1, first)
	has(&other, 2, second)
	has(&r, 2, nil)
	r.To += 200
	has(&r, 1, first)
	third := keep(&r, 3)
	r.To -= 200
	has(&r, 1, nil)
	has(&r, 3, third)
	if c.used.Len() != 2 {
		t.Errorf("%d sums are kept; want 2", c.used.Len())
	}
}
