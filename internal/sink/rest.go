package sink

import (
	"context"
	"time"
)

// A stream of few records is fetched a few times a flight and not once a record,
// which both sides pay for: at 1,000 records/s it was a quarter of edge's processor
// time. They gather in the log until shortly before the next flight.
const (
	fewRecords = 1000                   // in a flight: decoded in a small part of restLead
	fewBytes   = 1 << 20                // the same
	restLead   = 15 * time.Millisecond  // for fetching what has gathered: 5 was too short on a busy machine
	maxRest    = 100 * time.Millisecond // bounds what gathers when few become many
	restless   = 10 * time.Second       // without a rest after one that was too long
)

// resting is what a session knows of its rests.
type resting struct {
	few     bool      // the last flight had few records
	brought int       // polls since the last rest that brought records
	again   time.Time // no rest before then
}

// few tells whether f is small enough to rest while it fills.
func (f *flight) few() bool { return f.records <= fewRecords && f.block.bytes <= fewBytes }

// flown notes that a flight of few records, or of more, has left.
//
// The client fetches one request ahead, so the first poll after a rest brings what
// came at its beginning, and the second what has gathered. When that is not there in
// time, the broker is further away than restLead, and what gathered is a flight late.
func (r *resting) flown(few bool) {
	if r.brought < 2 {
		r.again = time.Now().Add(restless)
	}
	r.few, r.brought = few, 2
}

// rest lets records gather while flights are of few, all that was there is taken,
// and the next flight is not due.
func (t *session) rest(ctx context.Context) {
	t.mu.Lock()
	wait := min(t.due()-restLead, maxRest)
	if wait <= 0 || !t.few || !t.filling.few() || t.behind() > 0 || time.Now().Before(t.again) {
		t.mu.Unlock()
		return
	}
	t.brought = 0
	t.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-t.ctx.Done():
	}
}
