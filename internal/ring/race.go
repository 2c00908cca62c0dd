//go:build race

package ring

import (
	"math/rand/v2"
	"runtime"
	"sync/atomic"
)

// perturb makes race builds yield between the steps of the protocol, so that
// tests run schedules the scheduler alone would hardly produce.
const perturb = true

// disturbance is how many of 256 steps yield; tests set it.
var disturbance atomic.Uint32

func setDisturbance(n uint32) { disturbance.Store(n) }

func disturb() {
	if n := disturbance.Load(); n != 0 && rand.Uint32()&255 < n {
		runtime.Gosched()
	}
}
