package sink

import (
	"fmt"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/codec"
)

// TestKilledWithSeveralFlights kills a sink with several flights under way, and those
// that recover them. Whoever comes last finds everything once.
func TestKilledWithSeveralFlights(t *testing.T) {
	t.Parallel() // it waits more than it works
	l := newLab(t, 1)
	l.declare(20, func(*lab, string) {}) // history in the same hours
	l.commit(0, 20, "")
	next := func() int64 { return l.cluster.PartitionInfo(topic, 0).HighWatermark }
	stands := func(want string) {
		t.Helper()
		at := l.cluster.GroupInfo(group).Commits[topic][0]
		if got := fmt.Sprintf("%d %s", at.Offset, at.Metadata); got != want {
			t.Fatalf("the group stands at %s; want %s", got, want)
		}
	}
	planned := func(first int64, flights int) string {
		var p plans
		for i := range int64(flights) {
			p = append(p, plan{l.src(), first + i*convoyRows, first + (i+1)*convoyRows - 1})
		}
		return fmt.Sprintf("%d %s", first, p)
	}
	// ends has a successor find everything, and more records behind it.
	ends := func(name string, present, reinserted uint64) {
		t.Helper()
		l.produce(3*convoyRows+7, twoMonths)
		seen := l.commits()
		v := l.convoy()
		l.settled()
		l.exact()
		v.stop()
		if p, r := v.sink.stats.present.Load(), v.sink.stats.reinserted.Load(); p != present || r != reinserted {
			t.Errorf("%s: recovery found a batch whole %d times and inserted rows %d times; want %d and %d", name, p, r, present, reinserted)
		}
		var at int64
		for _, c := range seen() {
			var next int64
			fmt.Sscan(c, &next)
			if next < at {
				t.Errorf("%s: the group went back from %d: %q", name, at, seen())
			}
			at = next
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	// flights starts a sink with two of them and returns where they begin.
	flights := func(hold ...string) (*convoy, int64) {
		t.Helper()
		first := next()
		v := l.convoy(hold...)
		for _, letter := range []string{"a", "b"} {
			l.produce(convoyRows, lettered(letter))
			if slices.Contains(hold, letter) {
				v.holds(letter)
			}
		}
		return v, first
	}

	v, first := flights("a", "b")
	v.kill()
	stands(planned(first, 2))
	ends("no row sent", 0, 2)

	v, first = flights("a")
	l.has(convoyRows, first+convoyRows)
	v.kill()
	stands(planned(first, 2))
	ends("the second stored", 1, 1)

	v, first = flights("a", "b")
	v.let("a")
	v.passes()
	v.kill()
	stands(planned(first+convoyRows, 1))
	ends("the first passed", 0, 1)

	v, first = flights("a")
	l.has(convoyRows, first+convoyRows)
	d := newDeath(v.process)
	remove := d.onCommitTo(first+convoyRows, false)
	v.let("a")
	<-d.struck
	v.kill()
	remove()
	stands(planned(first, 2))
	ends("both stored", 2, 0)

	// The second of three has not begun when the first is passed.
	v, first = flights("a", "INSERT 2")
	v.holds("INSERT 2")
	l.produce(convoyRows, lettered("c"))
	l.has(convoyRows, first+2*convoyRows)
	stands(planned(first, 3))
	v.let("a")
	v.passes()
	v.kill()
	stands(planned(first+convoyRows, 2))
	ends("the second of three not begun", 1, 1)

	// The second repeats the first, which is not stored, and then the history.
	first = next()
	v = l.convoy("a")
	ids := l.seq
	l.produce(convoyRows, lettered("a"))
	v.holds("a")
	l.append(l.records(2*convoyRows, func(i int, ev *codec.Event) {
		twoMonths(i, ev)
		if ev.EventID = fmt.Appendf(nil, "id-%d", ids+i+1); i >= convoyRows {
			ev.EventID = fmt.Appendf(nil, "id-%d", i%20+1)
		}
	}))
	l.produce(convoyRows, lettered("b"))
	l.has(convoyRows, first+3*convoyRows)
	v.kill()
	stands(fmt.Sprintf("%d %s", first, plans{{l.src(), first, first + convoyRows - 1}, {l.src(), first + convoyRows, first + 4*convoyRows - 1}}))
	ends("duplicates", 1, 1)

	// Nothing but dead letters between two flights.
	first = next()
	v = l.convoy("a")
	l.produce(convoyRows, lettered("a"))
	v.holds("a")
	for range convoyRows {
		l.append([]*kgo.Record{{Value: []byte("no event")}})
	}
	l.produce(convoyRows, lettered("c"))
	l.has(convoyRows, first+2*convoyRows)
	v.kill()
	stands(planned(first, 3))
	ends("dead letters between", 1, 1)

	// The successors die, too: looking at the first, when the first is passed, and
	// looking at the second.
	v, first = flights("a")
	l.has(convoyRows, first+convoyRows)
	v.kill()
	few := func(c *Config) { c.FlushRows = convoyRows }
	l.die(onWrite(1, "SELECT _offset FROM events"), few)
	stands(planned(first, 2))
	l.die(func(d *death) func() { return d.onCommitTo(first+convoyRows, true) }, few)
	stands(planned(first+convoyRows, 1))
	l.die(onWrite(1, "SELECT _offset FROM events"), few)
	stands(planned(first+convoyRows, 1))
	ends("dying in recoveries", 1, 0)
}
