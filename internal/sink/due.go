package sink

import "time"

// When the filling flight leaves.

// How many flush intervals a flight waits to be full: when the log has enough to fill it,
// which ends a wait for records that do not come; and when it fills within so many. A row
// in a block of 20,000 costs ClickHouse half as much again as one in a block of 100,000.
const (
	backlogPatience = 10
	fillPatience    = 4
)

// due is how long the filling flight still waits for more. Callers hold mu.
func (t *session) due() time.Duration {
	interval, since := t.cfg.FlushInterval, time.Since(t.launched)
	soon := fillPatience * interval
	switch {
	case t.behind() >= int64(t.cfg.FlushRows-t.filling.block.rows()):
		interval *= backlogPatience
	case t.filling.filled(&t.cfg)*float64(soon) >= float64(max(since, interval)): // at the rate so far
		interval = soon
	}
	return max(interval-since, 0)
}

// behind is how many records the log had when it was last asked that are not
// taken. Callers hold mu.
func (t *session) behind() (n int64) {
	for _, p := range t.partitions {
		n += max(p.high-p.next, 0)
	}
	return n
}

// nextLook is when to look whether the filling flight is to leave, should nothing come. It
// is asked again after an interval at the latest: a burst that has ended fills no flight.
// Callers hold mu.
func (t *session) nextLook() time.Duration {
	if t.filling.empty() || t.runway.first() != nil {
		return 5 * time.Second
	}
	return min(t.due(), t.cfg.FlushInterval)
}
