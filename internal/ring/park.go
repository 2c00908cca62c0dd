package ring

import "runtime"

// The parking protocol; the package comment argues for it.

// sleeping is the bit of asleep that no position has.
const sleeping = 1 << 31

// ready tells whether the nth item from the head is there.
func (r *Ring[T]) ready(n uint32) bool {
	last := position(r.freed.Load()) + n - 1
	return r.slots[last&r.mask].seq.Load() == (last+1)&posMask
}

// heavy tells whether a quarter of the bytes are taken.
func (r *Ring[T]) heavy() bool {
	return 4*uint64(uint32(r.claimed.Load())-uint32(r.freed.Load())) >= uint64(r.maxBytes)
}

// drained tells whether the ring is closed and every item claimed was popped.
func (r *Ring[T]) drained() bool {
	w := r.claimed.Load()
	return w&closedBit != 0 && position(w) == position(r.freed.Load())
}

func (r *Ring[T]) closed() bool { return r.claimed.Load()&closedBit != 0 }

// Wait sleeps until Pop has something to return, and reports true; or until
// the ring is closed and drained, or stop is closed, and reports false. stop
// may be nil.
func (r *Ring[T]) Wait(stop <-chan struct{}) bool {
	for {
		if r.ready(1) {
			return true
		}
		if r.drained() {
			return false
		}
		if r.readyAfterYield() {
			return true
		}
		if !r.sleep(1, stop, func() bool { return r.ready(1) || r.drained() }) {
			return false
		}
	}
}

// Gather sleeps until the nth item from the head is there, or a quarter of the
// bytes are taken, or an item was refused, and reports true; or until the ring is
// closed or stop says so, and reports false. It is for a reader that has no use yet
// for what is inside: the writers do not pay for waking it. Now and then it returns
// early, and Pop returns fewer while a writer is between claim and store.
func (r *Ring[T]) Gather(n int, stop <-chan struct{}) bool {
	want := uint32(min(max(n, 1), (len(r.slots)+1)/2))
	enough := func() bool { return r.ready(want) || r.heavy() || r.closed() }
	if !enough() && !r.sleep(want, stop, enough) {
		return false
	}
	if !r.ready(1) {
		runtime.Gosched() // the writer of the head
	}
	return !r.closed()
}

// sleep parks the reader until the nth item from the head is there or stop says
// so, which reports false. awake is what the reader looks at once it has said
// that it sleeps.
func (r *Ring[T]) sleep(n uint32, stop <-chan struct{}, awake func() bool) bool {
	r.asleep.Store(sleeping | (position(r.freed.Load())+n)&posMask)
	if perturb {
		disturb()
	}
	if awake() {
		r.asleep.Store(0)
		return true
	}
	select {
	case <-r.wake:
		return true
	case <-stop:
		r.asleep.Store(0)
		return false
	}
}

// readyAfterYield lets the writers run before the reader goes to sleep. Going
// to sleep and being woken costs a microsecond and one writer's time; in a busy
// ring somebody is about to push, and two yields find out for a tenth of that.
// More would delay the sleep of an idle ring without finding more.
func (r *Ring[T]) readyAfterYield() bool {
	for range 2 {
		runtime.Gosched()
		if r.ready(1) {
			return true
		}
	}
	return false
}

// wakeReader sends the token if the reader sleeps and nobody else has.
func (r *Ring[T]) wakeReader() {
	if at := r.asleep.Load(); at == 0 || !r.asleep.CompareAndSwap(at, 0) {
		return
	}
	select {
	case r.wake <- struct{}{}:
	default: // a token is there, which wakes just as well
	}
}
