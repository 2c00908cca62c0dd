package rival

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/puzpuzpuz/xsync/v4"

	"edge/internal/ring"
)

// request stands for a batch of events: queues carry pointers to whole requests.
type request struct{ events int }

// capacity is RING_REQUESTS of cmd/edge; of cached a core keeps every slot at hand.
const capacity, cached = 16384, 1024

// queue is what a benchmark needs of each: a push that says no, a close, and a
// loop that takes until the queue is closed and empty.
type queue struct {
	push  func(*request) bool
	close func()
	drain func(take func(*request))
}

// queues are ours and what one would use without it, each bounded to as many
// items; only the ring also bounds bytes.
var queues = []struct {
	name string
	make func(capacity int) queue
}{{"edge", edgeRing}, {"channel", channel}, {"xsync-mpmc", mpmc}, {"mutex-swap", swap}}

// producers are how many goroutines push at once.
const producers = 8

// BenchmarkHandOver moves items from eight producers to one reader. A producer
// that is refused yields and tries again. ns/event is per event when every item
// is a request of that many; cpu-ns/event is the processor time of it.
func BenchmarkHandOver(b *testing.B) {
	for _, events := range []int{1, 100} {
		name := map[int]string{1: "1-event", 100: "100-events"}[events]
		b.Run("limit-atomic-add/"+name, func(b *testing.B) { contend(b, events) })
		for _, q := range queues {
			b.Run(q.name+"/"+name, func(b *testing.B) { handOver(b, events, q.make(capacity)) })
		}
		for _, q := range queues {
			b.Run(fmt.Sprintf("%s/%s/%d-slots", q.name, name, cached), func(b *testing.B) { handOver(b, events, q.make(cached)) })
		}
	}
}

// contend is the limit: as many goroutines, and of each item no more than one atomic
// add to a word they share. The writers of one shared queue have at least such a word, by
// which they agree whose turn it is, and have not handed anything over by then.
func contend(b *testing.B, events int) {
	var taken atomic.Int64
	timed(b, events, func() int {
		produceAll(b.N, func() { taken.Add(1) }).Wait()
		return int(taken.Load()) * events
	})
}

func handOver(b *testing.B, events int, q queue) {
	v := &request{events: events}
	timed(b, events, func() int {
		all := produceAll(b.N, func() {
			for !q.push(v) {
				runtime.Gosched()
			}
		})
		go func() {
			all.Wait()
			q.close()
		}()
		sum := 0
		q.drain(func(v *request) { sum += v.events })
		return sum
	})
}

// produceAll starts the producers, which do push n times between them.
func produceAll(n int, push func()) *sync.WaitGroup {
	var all sync.WaitGroup
	for p := range producers {
		all.Go(func() {
			for range (n + p) / producers {
				push()
			}
		})
	}
	return &all
}

// timed reports what run took for an event, and that it had b.N items of so many.
func timed(b *testing.B, events int, run func() int) {
	b.ReportAllocs()
	used := processorTime(b)
	b.ResetTimer()
	sum := run()
	b.StopTimer()
	used = processorTime(b) - used
	if sum != b.N*events {
		b.Fatalf("%d events arrived of %d", sum, b.N*events)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(max(sum, 1)), "ns/event")
	b.ReportMetric(float64(used.Nanoseconds())/float64(max(sum, 1)), "cpu-ns/event")
}

// processorTime is what this process has used so far, on all cores.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func edgeRing(capacity int) queue {
	r := ring.New[*request](capacity, 1<<30)
	return queue{
		push:  func(v *request) bool { return r.Push(v, 250) == nil },
		close: r.Close,
		drain: func(take func(*request)) {
			dst := make([]*request, 256)
			for r.Wait(nil) {
				for _, v := range dst[:r.Pop(dst)] {
					take(v)
				}
			}
		},
	}
}

func channel(capacity int) queue {
	c := make(chan *request, capacity)
	return queue{
		push: func(v *request) bool {
			select {
			case c <- v:
				return true
			default:
				return false
			}
		},
		close: func() { close(c) },
		drain: func(take func(*request)) {
			for v := range c {
				take(v)
			}
		},
	}
}

// mpmc has no way to wait for an item: its reader polls.
func mpmc(capacity int) queue {
	q := xsync.NewMPMCQueue[*request](capacity)
	done := make(chan struct{})
	return queue{
		push:  q.TryEnqueue,
		close: func() { close(done) },
		drain: func(take func(*request)) {
			for {
				if v, ok := q.TryDequeue(); ok {
					take(v)
					continue
				}
				select {
				case <-done:
					for v, ok := q.TryDequeue(); ok; v, ok = q.TryDequeue() {
						take(v)
					}
					return
				default:
					runtime.Gosched()
				}
			}
		},
	}
}

// swap is a slice under a mutex that the reader swaps for an empty one. To sleep and be
// woken costs more than all the rest, so a writer that finds the mutex taken, and a reader
// that finds nothing, yields a few times before; and the reader is woken only if it
// sleeps, when the mutex is free again.
func swap(capacity int) queue {
	const yields = 4
	var s struct { // together, so that a push moves one cache line and that of the slot
		sync.Mutex
		in             []*request
		asleep, closed bool
	}
	s.in = make([]*request, 0, capacity)
	ready := sync.NewCond(&s.Mutex)
	return queue{
		push: func(v *request) bool {
			for n := 0; !s.TryLock(); n++ {
				if n == yields {
					s.Lock()
					break
				}
				runtime.Gosched()
			}
			if len(s.in) == cap(s.in) {
				s.Unlock()
				return false
			}
			s.in = append(s.in, v)
			wake := s.asleep
			s.asleep = false
			s.Unlock()
			if wake {
				ready.Signal()
			}
			return true
		},
		close: func() {
			s.Lock()
			s.closed = true
			s.Unlock()
			ready.Signal()
		},
		drain: func(take func(*request)) {
			out := make([]*request, 0, capacity)
			for {
				s.Lock()
				for n := 0; len(s.in) == 0 && !s.closed; n++ {
					if n < yields {
						s.Unlock()
						runtime.Gosched()
						s.Lock()
						continue
					}
					s.asleep = true
					ready.Wait()
				}
				s.in, out = out[:0], s.in
				s.Unlock()
				if len(out) == 0 {
					return
				}
				for _, v := range out {
					take(v)
				}
			}
		},
	}
}
