package sink

import "testing"

// A state of exactly exactUsers users is a set, and becomes a sketch when it
// meets one of them again: that is no damage.
func TestAuditAtTheEdgeOfASet(t *testing.T) {
	l := newLab(t, 1)
	l.produce(1, twoMonths)
	s := l.start()
	l.settled()
	s.stop()
	audited := func(want uint64) {
		t.Helper()
		r, err := (&Audit{ClickHouse: l.pool}).Run(t.Context())
		if err != nil || uint64(r.Users) != want {
			t.Errorf("%d cells have other users, %v, %v; want %d", r.Users, r.Problems, err, want)
		}
	}
	l.exec(`INSERT INTO events (ts, event_name, user_id, _offset) SELECT toDateTime64(1706600000, 3, 'UTC'), 'edge', toString(number), 1000 + number FROM numbers(4096)`)
	audited(0)
	again := `INSERT INTO events_1h (h, event_name, channel, n, u) SELECT toStartOfHour(toDateTime(1706600000, 'UTC')) AS h, 'edge', '', 0, uniqCombined64State(toString(number)) FROM numbers(`
	l.exec(again + "4096)")
	if l.value("SELECT uniqCombined64Merge(u) FROM events_1h WHERE event_name = 'edge'") == "4096" {
		t.Error("the state is still a set: nothing is tested")
	}
	audited(0)
	l.exec(again + "4500)") // users that no row has
	audited(1)
}
