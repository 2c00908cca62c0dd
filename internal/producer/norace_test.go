//go:build !race

package producer

import "time"

const outage = time.Hour

const raceEnabled = false
