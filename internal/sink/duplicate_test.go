package sink

import (
	"fmt"
	"testing"
	"time"

	"edge/internal/codec"
	"edge/internal/kafka"
)

func TestDuplicateSDKRetries(t *testing.T) {
	t.Parallel() // it waits more than it works
	l := newLab(t, 2)
	small := func(c *Config) { c.DedupIDs = 200 } // 100 a partition

	// In one poll: all is in the log before the sink starts.
	l.one(0, withID("a"))
	l.repeat(0, withID("a"))
	l.one(1, withID("a")) // another partition has another window
	l.one(0, withID("b"))
	l.repeat(0, withID("a"))
	s := l.start(small)
	l.settled()
	l.exact()

	// Across flights.
	l.repeat(0, withID("b"))
	l.settled()
	l.one(0, withID("c"))
	l.repeat(0, withID("c"))
	l.settled()
	l.exact()

	// Across a restart.
	s.stop()
	l.repeat(0, withID("a"))
	l.repeat(1, withID("a"))
	l.one(0, withID("d"))
	s = l.start(small)
	l.settled()
	l.exact()

	// Across a rebalance: the partitions go to another sink.
	other := l.start(small)
	eventually(t, "both have a partition", func() error {
		if info := l.cluster.GroupInfo(group); len(info.Members) != 2 || info.Members[0].NumAssigned() != 1 || info.Members[1].NumAssigned() != 1 || info.State != "Stable" {
			return fmt.Errorf("%+v", info)
		}
		return nil
	})
	l.repeat(0, withID("d"))
	l.repeat(1, withID("a"))
	l.one(1, withID("d"))
	l.settled()
	l.exact()
	s.stop()
	l.repeat(0, withID("d"))
	l.repeat(1, withID("d"))
	l.settled()
	l.exact()

	// Outside the window an id counts again.
	for range 101 {
		l.one(0)
	}
	l.one(0, withID("a"))
	l.repeat(0, withID("a"))
	l.settled()
	l.exact()

	// Older than the window is long, by the receive times of the records.
	l.one(0, withID("e"))
	later := func(d time.Duration) func(int, *codec.Event) {
		return func(_ int, ev *codec.Event) { ev.ReceivedAt += d.Milliseconds() }
	}
	l.repeat(0, withID("e"), later(50*time.Minute))
	l.one(0, withID("e"), later(61*time.Minute))
	l.settled()
	l.exact()

	dropped := s.sink.stats.duplicates.Load() + other.sink.stats.duplicates.Load()
	if dropped == 0 {
		t.Error("no duplicate was counted")
	}
}

// TestAssignedIDsAreNotRemembered: an id that the server made cannot come again
// from a client, so its records take no room in the window.
func TestAssignedIDsAreNotRemembered(t *testing.T) {
	l := newLab(t, 1)
	s := l.start(func(c *Config) { c.DedupIDs = 50 })
	l.one(0, withID("a"))
	records := l.records(30)
	for _, r := range records {
		r.Headers = kafka.AssignedID
	}
	l.append(records)
	l.enter(records)
	l.settled()
	l.exact()
	s.sink.state.mu.Lock()
	defer s.sink.state.mu.Unlock()
	if got := s.sink.state.partitions[0].windowIDs; got != 1 {
		t.Errorf("the window holds %d ids; want 1", got)
	}
}
