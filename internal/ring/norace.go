//go:build !race

package ring

const perturb = false

func disturb() {}
