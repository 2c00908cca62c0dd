package ring

import "runtime"

// The parking protocol; the package comment argues for it.

// ready tells whether Pop would return an item.
func (r *Ring[T]) ready() bool {
	head := position(r.freed.Load())
	return r.slots[head&r.mask].seq.Load() == (head+1)&posMask
}

// drained tells whether the ring is closed and every item claimed was popped.
func (r *Ring[T]) drained() bool {
	w := r.claimed.Load()
	return w&closedBit != 0 && position(w) == position(r.freed.Load())
}

// Wait sleeps until Pop has something to return, and reports true; or until
// the ring is closed and drained, or stop is closed, and reports false. stop
// may be nil.
func (r *Ring[T]) Wait(stop <-chan struct{}) bool {
	for {
		if r.ready() {
			return true
		}
		if r.drained() {
			return false
		}
		if r.readyAfterYield() {
			return true
		}
		r.asleep.Store(1)
		if perturb {
			disturb()
		}
		if r.ready() || r.drained() {
			r.asleep.Store(0)
			continue
		}
		select {
		case <-r.wake:
		case <-stop:
			r.asleep.Store(0)
			return false
		}
	}
}

// readyAfterYield lets the writers run before the reader goes to sleep. Going
// to sleep and being woken costs a microsecond and one writer's time; in a busy
// ring somebody is about to push, and two yields find out for a tenth of that.
// More would delay the sleep of an idle ring without finding more.
func (r *Ring[T]) readyAfterYield() bool {
	for range 2 {
		runtime.Gosched()
		if r.ready() {
			return true
		}
	}
	return false
}

// wakeReader sends the token if the reader sleeps and nobody else has.
func (r *Ring[T]) wakeReader() {
	if r.asleep.Load() == 0 || !r.asleep.CompareAndSwap(1, 0) {
		return
	}
	select {
	case r.wake <- struct{}{}:
	default: // a token is there, which wakes just as well
	}
}
