//go:build !race

package ring

// perturb is for race builds, see race.go.
const perturb = false

func disturb() {}

func setDisturbance(uint32) {}
