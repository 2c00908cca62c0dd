package sink

import (
	"errors"
	"testing"
	"time"
)

// TestReadiness: who never joined is stuck from the start, with the reason; an idle sink
// forgets an error; rejoining hides none, nor what waits meanwhile.
func TestReadiness(t *testing.T) {
	s := New(Config{})
	p := &s.state
	stuck := func(when string, atLeast time.Duration, want error) {
		t.Helper()
		if d, err := s.Stuck(); d < atLeast || d > atLeast+time.Minute || !errors.Is(err, want) {
			t.Errorf("%s: stuck for %s, %v; want %s and a little, %v", when, d, err, atLeast, want)
		}
		ready := atLeast == 0 && !p.moved.IsZero()
		if err := s.Ready(time.Minute); (err == nil) != ready || want != nil && !ready && !errors.Is(err, want) {
			t.Errorf("%s: readiness is %v", when, err)
		}
	}
	p.began = time.Now().Add(-time.Hour)
	stuck("before it joined", time.Hour, nil)
	s.Failed(errCut)
	stuck("before it could join", time.Hour, errCut)
	p.joined([]int32{0, 1})
	p.assigned(1, 5)
	p.idle()
	p.end(1, 7)
	p.passed(1, 7)
	p.seen(&partition{id: 1, high: 8}, nil)
	p.passed(1, 8)
	stuck("before it knows where it stands", time.Hour, errCut)
	p.assigned(0, 10)
	p.idle()
	stuck("with nothing to store", 0, nil)
	p.left()
	p.joined(nil)
	p.idle()
	stuck("with no partition", 0, nil)

	p.joined([]int32{0})
	p.failed(errCut)
	p.idle()
	stuck("not yet knowing of one more", 0, errCut)
	p.err, p.moved = nil, time.Now().Add(-time.Hour)
	p.idle()
	stuck("not knowing of one more for long", time.Hour, nil)
	p.moved = time.Now()
	p.assigned(0, 10)
	p.failed(errCut)
	p.idle()
	stuck("idle after an error", 0, nil)
	p.end(0, 20)
	p.moved = time.Now().Add(-time.Hour)
	p.failed(errCut)
	p.idle()
	stuck("with something to store", time.Hour, errCut)
	p.left()
	stuck("without a session", time.Hour, errCut)
	p.passed(0, 15) // by another sink
	stuck("while others store", time.Hour, errCut)
	p.joined([]int32{0})
	p.assigned(0, 15)
	stuck("after rejoining", time.Hour, errCut)
	if at := p.partitions[0]; at.high != 20 || at.oldest.IsZero() {
		t.Errorf("after rejoining the log ends at %d, and what is not stored is from %v", at.high, at.oldest)
	}
	p.overtaken(0, 20)
	p.idle()
	stuck("when all turns out to be stored", 0, nil)
	p.left()
	p.joined([]int32{1})
	if len(p.partitions) != 0 {
		t.Errorf("has partitions %v, which were given to others", p.partitions)
	}
}
