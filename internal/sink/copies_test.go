package sink

import (
	"fmt"
	"testing"

	"edge/internal/kafka"
)

// A log that is put back from a copy of before it lost its tail does not know the lives after
// that. What they have stored may be sent again, or be in the copy.
func TestDuplicateOfALifeAfterTheCopy(t *testing.T) {
	t.Parallel()
	f := func(name string, end int64) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			l.history(1, 5) // life 0, of which there is a copy
			l.life(cutAt(end), func() { l.one(0, withID("a")) })
			l.commit(0, 5, "")
			third := Lives{2, cutAt(end).Until}
			l.life(third, func() {
				l.repeat(0, withID("a"))
				l.one(0, withID("b"))
			})
			l.whole(third)
		})
	}
	f("sent again", 5)
	f("in the copy", 6)
}

// Of what a copy has, a life after it may have stored more than a window is long.
func TestCopyThatALifeAfterItStored(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(1, 5)
	l.life(cutAt(16), func() {
		l.produce(5)
		for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
			l.one(0, withID(id))
		}
	}, func(c *Config) { c.DedupIDs = 4 })
	third := Lives{2, cutAt(16).Until}
	l.commit(0, 5, "")
	l.life(third, func() {
		l.repeat(0, withID("f"))
		l.one(0, withID("g"))
	}, func(c *Config) { c.DedupIDs = 4 })
	l.whole(third)
}

// A record that the copy and a life after it have is one, whoever gave it its id.
func TestCopyOfAssignedIDs(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(1, 5)
	assigned := l.records(10)
	for _, r := range assigned {
		r.Headers = kafka.AssignedID
	}
	l.life(cutAt(15), func() {
		l.append(assigned)
		l.enter(assigned)
	})
	l.commit(0, 5, "")
	third := Lives{2, cutAt(15).Until}
	l.life(third, func() { l.produce(5) })
	l.whole(third)
}

// A life after the copy may have stored more than is remembered: what the copy has comes first.
func TestCopyBeforeALongLife(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(1, 5)
	second := cutAt(10)
	l.life(second, func() { l.produce(5) })
	l.exec(fmt.Sprintf(`INSERT INTO events (ts, event_name, user_id, received_at, event_id, _src, _part, _offset, _first, _last, _rows)
		SELECT now64(3), 'lost', 'u', now64(3), generateUUIDv4(), _src, 0, 10 + number, 10, %d, %d FROM (SELECT any(_src) AS _src FROM events WHERE _offset = 5) AS e, numbers(%[2]d) AS n`,
		maxLost+9, maxLost))
	l.commit(0, 5, "")
	l.life(Lives{2, second.Until}, func() { l.produce(1) })
	if got := l.value("SELECT count() FROM events WHERE event_name != 'lost'"); got != "11" {
		t.Errorf("%s rows; want 11", got)
	}
}

// Of a batch that a crash has cut in two a life after the copy may have stored the rest.
func TestCopyOfHalfABatch(t *testing.T) {
	t.Parallel()
	f := func(name string, at int64, open func(*lab) string) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			l.history(1, 20)
			l.history(1, 20, everyOtherMonth)
			l.loseEveryOther()
			second := cutAt(40)
			for _, life := range []Lives{second, {2, second.Until}} {
				l.commit(0, at, open(l))
				l.life(life, func() { l.produce(1) }, rescans)
				l.rawIsLedger()
				l.rollupsAreRaw()
			}
		})
	}
	f("passed", 40, func(*lab) string { return "" })
	f("declared", 20, func(l *lab) string { return plans{{l.src(), 20, 39}}.String() })
}
