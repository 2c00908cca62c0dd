//go:build race

package producer

import "time"

// The race detector makes an hour of virtual time cost half a minute.
const outage = 10 * time.Minute

const raceEnabled = true
