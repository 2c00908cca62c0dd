//go:build !race

package producer

// poison is for race builds, see race.go.
const poison = false
