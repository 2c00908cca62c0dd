package ring

import (
	"flag"
	"testing"

	"go.uber.org/goleak"
)

// stressOps is how many items the stress test moves at each GOMAXPROCS.
var stressOps = flag.Int("ring.ops", 1_000_000, "items moved by the stress test at each GOMAXPROCS")

// scaled shrinks a count for race builds, which yield at every step.
func scaled(n int) int {
	if perturb {
		return n / 20
	}
	return n
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
