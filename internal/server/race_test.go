//go:build race

package server

// raceEnabled says that sync.Pool drops entries at random, which is how the
// race detector finds late users, and why allocations cannot be counted.
const raceEnabled = true
