package ring

import (
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// request stands for a batch of events: rings carry pointers to whole requests.
type request struct{ events int }

// BenchmarkHandOver moves items from eight producers to one reader, through
// this ring and through what one would write without it. Each rival is bounded
// to the same number of items; only the ring also bounds bytes. A producer that
// is refused yields and tries again. ns/event is the cost per event when every
// item is a request of that many; cpu-ns/event is the processor time of it,
// which other programs on the machine do not disturb as much.
func BenchmarkHandOver(b *testing.B) {
	const capacity = 1024
	for _, events := range []int{1, 100} {
		name := map[int]string{1: "1-event", 100: "100-events"}[events]
		b.Run("ring/"+name, func(b *testing.B) {
			r := New[*request](capacity, 1<<30)
			handOver(b, events, func(v *request) bool { return r.Push(v, 250) == nil }, r.Close, func(take func(*request)) {
				dst := make([]*request, 256)
				for r.Wait(nil) {
					for _, v := range dst[:r.Pop(dst)] {
						take(v)
					}
				}
			})
		})
		b.Run("channel/"+name, func(b *testing.B) {
			c := make(chan *request, capacity)
			push := func(v *request) bool {
				select {
				case c <- v:
					return true
				default:
					return false
				}
			}
			handOver(b, events, push, func() { close(c) }, func(take func(*request)) {
				for v := range c {
					take(v)
				}
			})
		})
		b.Run("mutex-two-slices/"+name, func(b *testing.B) {
			q := swapQueue{in: make([]*request, 0, capacity), wake: make(chan struct{}, 1)}
			handOver(b, events, q.push, q.close, q.drain)
		})
	}
}

// handOver runs b.N items through a queue and checks that all of them arrive.
func handOver(b *testing.B, events int, push func(*request) bool, closeQueue func(), drain func(take func(*request))) {
	const producers = 8
	b.ReportAllocs()
	v := &request{events: events}
	var refused atomic.Int64
	var wg sync.WaitGroup
	used := processorTime(b)
	b.ResetTimer()
	for p := range producers {
		wg.Go(func() {
			waits := 0
			for range (b.N + p) / producers {
				for !push(v) {
					waits++
					runtime.Gosched()
				}
			}
			refused.Add(int64(waits))
		})
	}
	go func() {
		wg.Wait()
		closeQueue()
	}()
	items, sum := 0, 0
	drain(func(v *request) {
		items++
		sum += v.events
	})
	b.StopTimer()
	used = processorTime(b) - used
	want := 0
	for p := range producers {
		want += (b.N + p) / producers
	}
	if items != want || sum != want*events {
		b.Fatalf("%d items with %d events arrived of %d", items, sum, want)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(max(sum, 1)), "ns/event")
	b.ReportMetric(float64(used.Nanoseconds())/float64(max(sum, 1)), "cpu-ns/event")
	b.ReportMetric(float64(refused.Load())/float64(max(items, 1)), "refused/item")
}

// processorTime is what this process has used so far, on all cores.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// swapQueue is a slice under a mutex that the reader swaps for an empty one.
type swapQueue struct {
	mu     sync.Mutex
	in     []*request
	closed bool
	wake   chan struct{}
}

func (q *swapQueue) push(v *request) bool {
	q.mu.Lock()
	if len(q.in) == cap(q.in) {
		q.mu.Unlock()
		return false
	}
	q.in = append(q.in, v)
	first := len(q.in) == 1
	q.mu.Unlock()
	if first {
		q.signal()
	}
	return true
}

func (q *swapQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *swapQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
}

func (q *swapQueue) drain(take func(*request)) {
	out := make([]*request, 0, cap(q.in))
	for range q.wake {
		q.mu.Lock()
		q.in, out = out[:0], q.in
		closed := q.closed
		q.mu.Unlock()
		for i, v := range out {
			take(v)
			out[i] = nil
		}
		if closed && len(out) == 0 {
			return
		}
		if closed {
			q.signal()
		}
	}
}

// BenchmarkPushPop is one goroutine alone: the cost without contention.
func BenchmarkPushPop(b *testing.B) {
	r := New[*request](1024, 1<<30)
	v := &request{events: 1}
	dst := make([]*request, 64)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if r.Push(v, 250) != nil {
			b.Fatal("refused")
		}
		if n++; n == len(dst) {
			if r.Pop(dst) != n {
				b.Fatal("not all there")
			}
			n = 0
		}
	}
}

// BenchmarkRefuse is what saying no costs, from many goroutines at once.
func BenchmarkRefuse(b *testing.B) {
	r := New[*request](1, 1)
	if err := r.Push(nil, 1); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if r.Push(nil, 1) != ErrFull {
				b.Error("accepted")
			}
		}
	})
}
