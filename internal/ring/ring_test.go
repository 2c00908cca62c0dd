package ring

import (
	"errors"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
)

// starts are counters at rest: from zero, and shortly before each of them wraps.
var starts = []struct{ pos, bytes uint32 }{
	{0, 0}, {posMask - 2, 0}, {0, maxWeight - 10}, {posMask, maxWeight}, {1<<30 - 3, 1<<31 - 7},
}

func TestPushPopInOrder(t *testing.T) {
	for _, at := range starts {
		r := newAt[int](4, 100, at.pos, at.bytes)
		next, got := 0, 0
		dst := make([]int, 3)
		for round := range 100 {
			for range round%4 + 1 {
				if r.Push(next, 7) == nil {
					next++
				}
			}
			before := r.Len()
			if want := next - got; before != want || r.Bytes() != int64(7*want) {
				t.Fatalf("start %v: Len %d, Bytes %d; want %d items of 7", at, before, r.Bytes(), want)
			}
			n := r.Pop(dst)
			if n != min(before, len(dst)) {
				t.Fatalf("start %v: Pop took %d of %d", at, n, before)
			}
			for _, v := range dst[:n] {
				if v != got {
					t.Fatalf("start %v: got %d; want %d", at, v, got)
				}
				got++
			}
		}
		for r.Pop(dst) > 0 {
		}
		if r.Len() != 0 || r.Bytes() != 0 {
			t.Errorf("start %v: drained, yet Len %d, Bytes %d", at, r.Len(), r.Bytes())
		}
	}
}

func TestCapacity(t *testing.T) {
	f := func(capacity, want int) {
		t.Helper()
		if got := New[int](capacity, 1).Cap(); got != want {
			t.Errorf("New(%d): Cap %d; want %d", capacity, got, want)
		}
	}
	f(-1, 1)
	f(0, 1)
	f(1, 1)
	f(2, 2)
	f(3, 4)
	f(1000, 1024)
}

// TestRefusalChangesNothing compares every word and slot around a refused Push.
func TestRefusalChangesNothing(t *testing.T) {
	type state struct {
		claimed, freed uint64
		asleep         uint32
		seqs           []uint32
		values         []int
	}
	look := func(r *Ring[int]) state {
		s := state{claimed: r.claimed.Load(), freed: r.freed.Load(), asleep: r.asleep.Load()}
		for i := range r.slots {
			s.seqs = append(s.seqs, r.slots[i].seq.Load())
			s.values = append(s.values, r.slots[i].value)
		}
		return s
	}
	f := func(title string, r *Ring[int], bytes int, want error) {
		t.Helper()
		before := look(r)
		if err := r.Push(99, bytes); !errors.Is(err, want) {
			t.Errorf("%s: got %v; want %v", title, err, want)
		}
		after := look(r)
		if before.claimed != after.claimed || before.freed != after.freed || before.asleep != after.asleep ||
			!slices.Equal(before.seqs, after.seqs) || !slices.Equal(before.values, after.values) || len(r.wake) != 0 {
			t.Errorf("%s: got %v; want %v", title, after, before)
		}
	}
	for _, at := range starts {
		filled := func(items, bytes int) *Ring[int] {
			r := newAt[int](4, 100, at.pos, at.bytes)
			for range items {
				if err := r.Push(1, bytes); err != nil {
					t.Fatal(err)
				}
			}
			return r
		}
		f("items", filled(4, 1), 1, ErrFull)
		f("items, nothing to weigh", filled(4, 0), 0, ErrFull)
		f("bytes", filled(1, 100), 1, ErrFull)
		f("bytes, by one", filled(3, 30), 11, ErrFull)
		f("heavier than the ring", filled(0, 0), 101, ErrFull)
		f("heavier than any ring", filled(0, 0), 1<<31-1, ErrFull)
		closed := filled(2, 1)
		closed.Close()
		f("closed", closed, 1, ErrClosed)
		full := filled(4, 1)
		full.Close()
		f("full and closed", full, 1, ErrClosed)

		// What is not refused: the last item and the last byte.
		r := filled(3, 30)
		if err := r.Push(5, 10); err != nil || r.Bytes() != 100 {
			t.Errorf("start %v: the last byte: %v, %d bytes", at, err, r.Bytes())
		}
	}
}

func TestLargestWeights(t *testing.T) {
	r := New[int](4, 1<<62) // clamped to 4 GiB
	for range 2 {
		if err := r.Push(1, 1<<31-1); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Push(1, 2); err != ErrFull {
		t.Errorf("over 4 GiB: got %v; want %v", err, ErrFull)
	}
	if err := r.Push(1, 1); err != nil || r.Bytes() != 1<<32-1 {
		t.Errorf("exactly 4 GiB less one: %v, %d bytes", err, r.Bytes())
	}
}

// TestPoppedValuesAreNotKept: a ring must not keep a request's memory alive.
func TestPoppedValuesAreNotKept(t *testing.T) {
	r := New[*[1 << 16]byte](8, 1<<30)
	collected := make(chan struct{})
	func() {
		p := new([1 << 16]byte)
		runtime.AddCleanup(p, func(c chan struct{}) { close(c) }, collected)
		if err := r.Push(p, 1); err != nil {
			t.Fatal(err)
		}
		if r.Pop(make([]*[1 << 16]byte, 1)) != 1 {
			t.Fatal("nothing to pop")
		}
	}()
	for range 100 {
		runtime.GC()
		select {
		case <-collected:
			runtime.KeepAlive(r)
			return
		default:
			runtime.Gosched()
		}
	}
	t.Error("a popped value is still reachable")
}

// TestIdleReaderSleeps: synctest.Wait returns only when the reader blocks on
// the channel for good; a polling one would spin for ever.
func TestIdleReaderSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[int](4, 100)
		var got []int
		done := make(chan struct{})
		go func() {
			defer close(done)
			dst := make([]int, 2)
			for r.Wait(nil) {
				n := r.Pop(dst)
				got = append(got, dst[:n]...)
			}
		}()
		for i := range 5 {
			synctest.Wait()
			if r.asleep.Load() == 0 {
				t.Fatal("the reader does not sleep")
			}
			if err := r.Push(i, 1); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		r.Close()
		<-done
		if want := []int{0, 1, 2, 3, 4}; !slices.Equal(got, want) {
			t.Errorf("got %v; want %v", got, want)
		}
	})
}

func TestWaitStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[int](4, 100)
		stop := make(chan struct{})
		result := make(chan bool)
		go func() { result <- r.Wait(stop) }()
		synctest.Wait()
		close(stop)
		if <-result {
			t.Error("stopped on an empty ring: got true")
		}
		if r.asleep.Load() != 0 {
			t.Error("stopped, yet counted as asleep")
		}
		// An item that is there counts for more than stop.
		if err := r.Push(1, 1); err != nil {
			t.Fatal(err)
		}
		if !r.Wait(stop) {
			t.Error("stopped with an item inside: got false")
		}
	})
}

// TestGather: a gathering reader is woken by the nth item, by a quarter of the bytes, by
// what is refused, by Close and by stop, and by nothing before.
func TestGather(t *testing.T) {
	f := func(title string, n int, want bool, pushes []int, last func(r *Ring[int], stop chan struct{})) {
		t.Helper()
		for _, at := range starts {
			synctest.Test(t, func(t *testing.T) {
				r := newAt[int](8, 100, at.pos, at.bytes)
				stop := make(chan struct{}, 1)
				result := make(chan bool, 1)
				go func() { result <- r.Gather(n, stop) }()
				for i, bytes := range pushes {
					if err := r.Push(i, bytes); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					if r.asleep.Load() == 0 {
						t.Fatalf("%s, start %v: awake after %d items", title, at, i+1)
					}
				}
				last(r, stop)
				synctest.Wait()
				if len(result) == 0 {
					t.Fatalf("%s, start %v: still asleep", title, at)
				}
				if got := <-result; got != want || r.asleep.Load() != 0 {
					t.Errorf("%s, start %v: got %v, asleep %x; want %v", title, at, got, r.asleep.Load(), want)
				}
			})
		}
	}
	push := func(bytes int) func(*Ring[int], chan struct{}) {
		return func(r *Ring[int], _ chan struct{}) { _ = r.Push(99, bytes) }
	}
	f("the first", 1, true, nil, push(1))
	f("the third", 3, true, []int{1, 1}, push(1))
	f("more than half of the slots", 8, true, []int{0, 0, 0}, push(0))
	f("a quarter of the bytes", 4, true, []int{24}, push(1))
	f("a refusal", 4, true, []int{24}, push(77))
	f("closed", 4, false, []int{1}, func(r *Ring[int], _ chan struct{}) { r.Close() })
	f("stopped", 4, false, []int{1}, func(_ *Ring[int], stop chan struct{}) { stop <- struct{}{} })
}

func TestCloseDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New[int](4, 100)
		for i := range 3 {
			if err := r.Push(i, 1); err != nil {
				t.Fatal(err)
			}
		}
		r.Close()
		r.Close()
		dst := make([]int, 2)
		if !r.Wait(nil) || r.Pop(dst) != 2 || !r.Wait(nil) || r.Pop(dst) != 1 || dst[0] != 2 {
			t.Errorf("the rest is not there: %v", dst)
		}
		if r.Wait(nil) {
			t.Error("drained: got true")
		}

		// Close wakes a reader that sleeps.
		r = New[int](4, 100)
		result := make(chan bool)
		go func() { result <- r.Wait(nil) }()
		synctest.Wait()
		r.Close()
		if <-result {
			t.Error("closed while asleep: got true")
		}
	})
}

func TestPushPopDoNotAllocate(t *testing.T) {
	if perturb {
		t.Skip("race builds are instrumented")
	}
	r := New[*int](8, 100)
	v := new(int)
	dst := make([]*int, 8)
	n := testing.AllocsPerRun(1000, func() {
		for range 9 {
			r.Push(v, 10)
		}
		if !r.Wait(nil) || r.Pop(dst) != 8 {
			t.Fatal("eight items went in")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
