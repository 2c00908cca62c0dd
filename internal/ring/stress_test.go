package ring

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// yielding makes n of 256 steps of the protocol yield in race builds and
// returns what undoes it.
func yielding(n uint32) func() {
	setDisturbance(n)
	return func() { setDisturbance(0) }
}

// within fails the test when do takes longer than the limit, with every
// goroutine's stack: a lost wake-up is a hang, and its place is the evidence.
func within(t *testing.T, limit time.Duration, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(limit):
		stacks := make([]byte, 1<<20)
		t.Fatalf("not done after %s\n%s", limit, stacks[:runtime.Stack(stacks, true)])
	}
}

// TestStress moves items of many writers and checks that each arrives exactly
// once, in its writer's order, and that the bounds hold at every moment.
func TestStress(t *testing.T) {
	defer yielding(20)()
	f := func(procs, writers, capacity int, at struct{ pos, bytes uint32 }) {
		t.Helper()
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
		const maxBytes = 1000
		each := scaled(*stressOps) / writers
		r := newAt[uint64](capacity, maxBytes, at.pos, at.bytes)
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(5, uint64(w)))
				for n := 0; n < each; {
					if r.Push(uint64(w)<<32|uint64(n), random.IntN(maxBytes/2)) != nil {
						runtime.Gosched()
						continue
					}
					n++
				}
			})
		}
		go func() {
			wg.Wait()
			r.Close()
		}()
		within(t, 5*time.Minute, func() {
			next := make([]int, writers)
			dst := make([]uint64, 5)
			for r.Wait(nil) {
				if items, bytes := r.inside(); items < 0 || items > r.Cap() || bytes < 0 || bytes > maxBytes {
					t.Errorf("%d items and %d bytes inside a ring of %d and %d", items, bytes, r.Cap(), maxBytes)
				}
				for _, v := range dst[:r.Pop(dst)] {
					w, n := int(v>>32), int(uint32(v))
					if next[w] != n {
						t.Errorf("writer %d: got item %d; want %d", w, n, next[w])
					}
					next[w] = n + 1
				}
				if t.Failed() {
					break
				}
			}
			for w, n := range next {
				if n != each {
					t.Errorf("writer %d: %d items arrived; want %d", w, n, each)
				}
			}
		})
		if r.Len() != 0 || r.Bytes() != 0 {
			t.Errorf("drained, yet Len %d, Bytes %d", r.Len(), r.Bytes())
		}
	}
	for _, procs := range []int{1, 2, 8} {
		f(procs, 8, 4, starts[3])
		f(procs, 8, 256, starts[0])
	}
}

// TestNoLostWakeUp pushes at every phase of the reader going to sleep.
func TestNoLostWakeUp(t *testing.T) {
	defer yielding(30)()
	rounds := scaled(1_000_000)
	r := newAt[int](2, 100, posMask-1000, maxWeight-1000)
	var taken atomic.Int64
	within(t, time.Minute, func() {
		var wg sync.WaitGroup
		wg.Go(func() {
			random := rand.New(rand.NewPCG(6, 6))
			spun := 0
			for i := range rounds {
				// The reader must take every single item before the next: a
				// wake-up lost once hangs here, nothing later repairs it.
				for taken.Load() != int64(i) {
					runtime.Gosched()
				}
				for range random.IntN(64) { // let the reader get this far towards sleep
					spun++
				}
				if err := r.Push(i, 1); err != nil {
					t.Errorf("round %d: %v", i, err)
					break
				}
			}
			r.Close()
			runtime.KeepAlive(spun)
		})
		dst := make([]int, 2)
		for r.Wait(nil) {
			taken.Add(int64(r.Pop(dst)))
		}
		wg.Wait()
	})
	if got := taken.Load(); got != int64(rounds) {
		t.Errorf("%d items arrived; want %d", got, rounds)
	}
}

// TestNoLostWakeUpOfMany has the reader gather a few items, which the writers bring
// at every phase of its going to sleep.
func TestNoLostWakeUpOfMany(t *testing.T) {
	defer yielding(30)()
	const writers, capacity = 3, 16
	rounds := scaled(300_000)
	r := newAt[int](capacity, 1<<20, posMask-1000, maxWeight-1000)
	var due atomic.Int64 // items asked for so far
	within(t, time.Minute, func() {
		var wg sync.WaitGroup
		var pushed atomic.Int64
		for range writers {
			wg.Go(func() {
				for {
					n := pushed.Add(1)
					for due.Load() < n {
						if due.Load() < 0 {
							return
						}
						runtime.Gosched()
					}
					if err := r.Push(0, 1); err != nil {
						t.Errorf("item %d: %v", n, err)
						return
					}
				}
			})
		}
		random := rand.New(rand.NewPCG(7, 7))
		dst := make([]int, capacity)
		for i := range rounds {
			n := 1 + random.IntN(capacity/2)
			due.Add(int64(n)) // exactly as many come: one wake-up lost hangs here
			for left := n; left > 0; {
				if !r.Gather(left, nil) {
					t.Fatalf("round %d: the ring is not closed", i)
				}
				left -= r.Pop(dst)
			}
		}
		due.Store(-1 << 62)
		wg.Wait()
	})
	if r.Len() != 0 {
		t.Errorf("%d items more than were asked for", r.Len())
	}
}

// TestCloseRaces closes while writers push and the reader sleeps: what Push
// accepted arrives, what it refused does not, and the reader always ends.
func TestCloseRaces(t *testing.T) {
	defer yielding(60)()
	within(t, time.Minute, func() {
		for round := range scaled(50_000) {
			r := New[int](2, 100)
			var accepted atomic.Int64
			var wg sync.WaitGroup
			for w := range 2 {
				wg.Go(func() {
					for k := range 2 {
						if r.Push(w*2+k, 1) == nil {
							accepted.Add(1)
						}
					}
				})
			}
			wg.Go(r.Close)
			arrived := 0
			dst := make([]int, 2)
			for r.Wait(nil) {
				arrived += r.Pop(dst)
			}
			wg.Wait()
			if int64(arrived) != accepted.Load() || r.Len() != 0 {
				t.Fatalf("round %d: %d arrived of %d accepted, %d left", round, arrived, accepted.Load(), r.Len())
			}
		}
	})
}
