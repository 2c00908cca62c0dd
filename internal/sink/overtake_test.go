package sink

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// What the log ends with left no rows, only notes, and the group is put back: nothing of it
// is taken again and noted in batches of another cut, which no audit could make sense of.
func TestOffsetsPutBackBehindNotes(t *testing.T) {
	t.Parallel()
	f := func(name string, tail func(l *lab), back func(l *lab)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			s := l.start()
			l.produce(10)
			l.one(0, withID("a"))
			l.settled()
			for range 2 { // two notes
				tail(l)
				l.settled()
			}
			s.stop()
			l.adds()
			back(l)
			l.produce(5)
			l.start()
			l.settled()
			l.exact()
			l.adds()
		})
	}
	f("repeats, put back to the start", func(l *lab) { l.append(l.records(3, withID("a"))) }, func(l *lab) { l.commit(0, 0, "") })
	f("dead letters, the group forgotten", func(l *lab) { l.append([]*kgo.Record{{Value: []byte("poison")}, {Value: []byte("poison")}}) }, func(l *lab) {
		if _, err := l.admin.DeleteGroups(l.t.Context(), group); err != nil {
			l.t.Fatal(err)
		}
	})
}

// All that waits turns out to be stored, and nothing else comes: the sink is not stuck.
func TestIdleAfterOffsetsArePutBack(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(2, 20)
	l.commit(0, 0, "")
	s := l.start()
	l.settled()
	s.sink.state.end(0, l.cluster.PartitionInfo(topic, 0).HighWatermark)
	if stuck, err := s.sink.Stuck(); stuck != 0 || err != nil {
		t.Errorf("stuck for %s, %v", stuck, err)
	}
	if err := s.sink.Ready(0); err != nil {
		t.Errorf("not ready: %v", err)
	}
}
