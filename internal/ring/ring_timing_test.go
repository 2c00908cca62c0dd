package ring

import "testing"

// The ring beside a channel, a queue of a library and two slices under a mutex is
// in bench/rival.

// request stands for a batch of events: rings carry pointers to whole requests.
type request struct{ events int }

// BenchmarkPushPop is one goroutine alone: the cost without contention, with as many
// slots as RING_REQUESTS has.
func BenchmarkPushPop(b *testing.B) {
	r := New[*request](16384, 1<<30)
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
