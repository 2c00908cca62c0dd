package sink

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"edge/internal/codec"
)

// A life has what lies before the place where the next one began, and every one after that:
// a log may lose more than its last life.
func TestLives(t *testing.T) {
	f := func(l Lives, want string, until ...map[int32]int64) {
		t.Helper()
		n := l.numbers("c", [16]byte{1})
		var got []map[int32]int64
		for _, life := range n.earlier {
			if end, ok := n.had(life.src, 0); ok != (life.until[0] > 0) || end != life.until[0] || life.src == n.now {
				t.Errorf("%+v: %+v ended at %d, %t", l, life, end, ok)
			}
			got = append(got, life.until)
		}
		if d := cmp.Diff(until, got); d != "" {
			t.Errorf("%+v: -want +got\n%s", l, d)
		}
		args := []any{n.now}
		for _, life := range n.earlier {
			if life.until[0] > 0 {
				args = append(args, life.src)
			}
		}
		if got := n.rows(0, ofBatches); got != fmt.Sprintf(want, args...) {
			t.Errorf("%+v: got %s; want %s", l, got, fmt.Sprintf(want, args...))
		}
	}
	type ends = map[uint32]map[int32]int64
	f(Lives{4, ends{1: {0: 40}}}, "(src = %d OR src = %d AND first < 40) AND part = 0", map[int32]int64{0: 40}) // 2 and 3 are after the copy
	f(Lives{}, "(src = %d) AND part = 0")
	f(Lives{1, nil}, "(src = %d) AND part = 0")
	f(Lives{2, nil}, "(src = %d) AND part = 0")
	f(Lives{2, ends{1: {0: 40, 1: 9}}}, "(src = %d OR src = %d AND first < 40) AND part = 0", map[int32]int64{0: 40, 1: 9})
	f(Lives{2, ends{1: {1: 9}}}, "(src = %d) AND part = 0", map[int32]int64{1: 9})
	f(Lives{3, ends{1: {0: 40}, 2: {0: 60}}}, "(src = %d OR src = %d AND first < 40 OR src = %d AND first < 60) AND part = 0",
		map[int32]int64{0: 40}, map[int32]int64{0: 60})
	f(Lives{3, ends{1: {0: 40}, 2: {0: 30}}}, "(src = %d OR src = %d AND first < 30 OR src = %d AND first < 30) AND part = 0",
		map[int32]int64{0: 30}, map[int32]int64{0: 30})
}

// cutAt is the second life of a log that has lost what partition 0 had from end on.
func cutAt(end int64) Lives { return Lives{1, map[uint32]map[int32]int64{0: {0: end}}} }

// everyOtherMonth has every other event in another month.
func everyOtherMonth(i int, ev *codec.Event) {
	ev.Timestamp += int64(i%2) * 40 * 24 * time.Hour.Milliseconds()
}

// loseEveryOther takes those of the second batch away.
func (l *lab) loseEveryOther() {
	l.t.Helper()
	lost := "_offset >= 20 AND _offset % 2 = 1"
	l.uncountAll(lost)
	l.lose("events", lost)
}

// A plan of before the log lost its tail may be of a batch that is stored, or of none.
func TestOpenPlanOfAnEarlierLife(t *testing.T) {
	t.Parallel()
	f := func(name, lost string) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			l.history(2, 20)
			l.commit(0, 20, plans{{l.src(), 20, 39}}.String())
			if lost != "" {
				l.uncountAll(lost)
				l.lose("events", lost)
			}
			s := l.start(func(c *Config) { c.Lives = cutAt(40) })
			l.produce(20)
			l.settled()
			l.exact()
			s.stop()
		})
	}
	f("stored", "")
	f("not stored", "_offset >= 20")
}

// Of a batch that was under way when the log lost its tail one month of two may be stored.
func TestHalfABatchOfAnEarlierLife(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(1, 20)
	l.history(1, 20, everyOtherMonth)
	l.commit(0, 20, plans{{l.src(), 20, 39}}.String())
	l.loseEveryOther()
	second := cutAt(40)
	l.life(second, func() { l.produce(20) })
	l.whole(second)
}

// whole wants each event once, rollups that are the sums of the rows, and an audit that finds
// nothing.
func (l *lab) whole(lives Lives) {
	l.t.Helper()
	l.rawIsLedger()
	l.rollupsAreRaw()
	l.audited(lives)
}

// life is a sink of one of the lives, which stops when it has stored what work brings.
func (l *lab) life(lives Lives, work func(), change ...func(*Config)) {
	l.t.Helper()
	s := l.start(append(change, func(c *Config) { c.Lives = lives })...)
	work()
	l.settled()
	s.stop()
}

func rescans(c *Config) { c.Rescan = func() {} }

// audit says what it finds of a log that had lives.
func (l *lab) audit(lives Lives) *Report {
	l.t.Helper()
	r, err := (&Audit{ClickHouse: l.pool, Log: &Log{Kafka: l.kafka, Topic: topic, Group: group, Lives: lives}}).Run(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// audited wants an audit that finds nothing.
func (l *lab) audited(lives Lives) {
	l.t.Helper()
	if r := l.audit(lives); !r.OK() {
		l.t.Errorf("the audit says\n%s", r)
	}
}

// A batch may have its rows in what the log has lost, and none before that: its duplicates
// and dead are what is left.
func TestBatchWithRowsInALostTail(t *testing.T) {
	t.Parallel()
	f := func(name string, at int64) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			l.history(1, 20)
			l.append(l.records(10)) // say duplicates
			l.commit(0, at, "")
			l.exec(fmt.Sprintf(`INSERT INTO events (ts, event_name, user_id, received_at, _src, _part, _offset, _first, _last, _rows, _dup)
				SELECT now64(3), 'lost', 'u', now64(3), %d, 0, 30 + number, 20, 39, 10, 10 FROM numbers(10)`, l.src()))
			second := cutAt(30)
			l.audited(second)
			l.life(second, func() { l.produce(20) }, rescans)
			if got := l.value("SELECT count() FROM events WHERE event_name != 'lost'"); got != "40" {
				t.Errorf("%s rows; want 40", got)
			}
			if r := l.audit(second); r.Missing()+r.Extra() > 0 || len(r.Problems) > 0 {
				t.Errorf("the audit says\n%s", r)
			}
		})
	}
	f("passed", 30)
	f("not passed", 20)
}

// What is left of a batch may be damaged, too.
func TestDamagedBatchBeforeALostTail(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(1, 20)
	l.history(1, 10, everyOtherMonth)
	l.loseEveryOther()
	l.exec("ALTER TABLE events UPDATE _last = 39, _rows = 20 WHERE _offset >= 20 SETTINGS mutations_sync = 1")
	second := cutAt(30)
	if r := l.audit(second); r.Missing() != 5 {
		t.Errorf("the audit says\n%s", r)
	}
	for range 2 {
		l.life(second, func() { l.produce(20) }, rescans)
		l.whole(second)
	}
}

// wantBeyond wants the last offset that is stored of a log that ends at end, if that is not
// before it; -1 for none.
func (l *lab) wantBeyond(lives Lives, end, want int64) {
	l.t.Helper()
	meta, err := l.admin.Metadata(l.t.Context(), topic)
	if err != nil {
		l.t.Fatal(err)
	}
	got, err := lives.StoredBeyond(l.t.Context(), l.pool, meta.Cluster, meta.Topics[topic].ID, map[int32]int64{0: end})
	if highest, ok := got[0]; err != nil || ok != (want >= 0) || ok && highest != want {
		l.t.Errorf("%+v, the log ends at %d: %v, %v; want %d", lives, end, got, err, want)
	}
}

// A log may lose what an earlier life has stored before the life of now has anything.
func TestStoredBeyondByEarlierLives(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(2, 20)
	l.wantBeyond(cutAt(40), 40, -1)
	l.wantBeyond(cutAt(40), 30, 39)
	l.wantBeyond(cutAt(35), 30, 34)
	l.wantBeyond(cutAt(30), 30, -1)
}

// The records that a log has lost may all have been duplicates or dead: they left no row.
func TestStoredBeyondWithoutRows(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	s := l.start()
	l.one(0, withID("a"))
	l.settled()
	l.repeat(0, withID("a")) // a batch without a row
	l.settled()
	s.stop()
	l.wantBeyond(Lives{}, 2, -1)
	l.wantBeyond(Lives{}, 1, 1)
	s = l.start(func(c *Config) { c.FlushInterval = time.Second })
	l.append(append(l.records(1, withID("b")), l.records(2, withID("b"))...)) // and one of which the end has none
	l.settled()
	s.stop()
	l.wantBeyond(Lives{}, 5, -1)
	l.wantBeyond(Lives{}, 3, 4)
}

// A log that is put back from a copy begins its next life under a number of its own.
func TestKnownIncarnation(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	meta, err := l.admin.Metadata(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	f := func(cluster string, want uint32) {
		t.Helper()
		if got, err := KnownIncarnation(t.Context(), l.pool, cluster, meta.Topics[topic].ID); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", cluster, got, err, want)
		}
	}
	f(meta.Cluster, 0)
	for _, incarnation := range []uint32{2, 7, 3} {
		s := l.start(func(c *Config) { c.Lives.Incarnation = incarnation })
		l.produce(1)
		l.settled()
		s.stop()
	}
	f(meta.Cluster, 7)
	f("another", 0)
}

// What was sent before the log lost its tail is sent again after it.
func TestDuplicateOfAnEarlierLife(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	s := l.start()
	l.one(0, withID("a"))
	l.produce(10)
	l.settled()
	s.stop()
	s = l.start(func(c *Config) { c.Lives = cutAt(11) })
	l.repeat(0, withID("a"))
	l.produce(10)
	l.settled()
	l.exact()
	s.stop()
}

// Of a log that has lost its tail, earlier lives stored what was received at any time.
func TestAuditOfEarlierLives(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	second := cutAt(40)
	l.history(2, 20, func(_ int, ev *codec.Event) { ev.ReceivedAt -= 72 * time.Hour.Milliseconds() })
	audited := func(missing int64) {
		t.Helper()
		a := &Auditor{ClickHouse: l.pool, Log: &Log{Kafka: l.kafka, Topic: topic, Group: group, Lives: second}, Logger: slog.New(slog.DiscardHandler),
			Every: time.Minute, Look: time.Hour, calm: time.Nanosecond}
		a.once(t.Context())
		if got := a.missing.Load(); got != missing || a.extra.Load() > 0 || a.lastSuccess.Load() == 0 {
			t.Errorf("%d missing, %d extra; want %d and 0", got, a.extra.Load(), missing)
		}
	}
	audited(0)
	l.life(second, func() { l.produce(20) })
	audited(0)
	where := fmt.Sprintf("_src != %d", l.src())
	l.uncountAll(where)
	l.lose("events", where)
	audited(20)
}

// What was stored before the log lost it is sent again after that, by who had no answer.
func TestDuplicateOfALostRecord(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	s := l.start()
	l.produce(5)
	l.one(0, withID("a"))
	l.one(0, withID("b"), func(_ int, ev *codec.Event) { ev.ReceivedAt -= 2 * time.Hour.Milliseconds() })
	l.settled()
	s.stop()
	second := func(c *Config) { c.Lives = cutAt(5) } // its last two are lost
	s = l.start(second)
	l.repeat(0, withID("a"))
	l.one(0, withID("b")) // too late to be the same
	l.one(0, withID("c"))
	l.settled()
	l.exact()
	s.stop()
	s = l.start(second)
	l.repeat(0, withID("a"))
	l.repeat(0, withID("c"))
	l.settled()
	l.exact()
	s.stop()
}

// The group may stand before the place where the log lost its tail: of two flights the second
// was stored, and lost, and the first was neither.
func TestDuplicateOfALostRecordAhead(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	s := l.start()
	l.produce(5)
	l.settled()
	l.one(0, withID("a"))
	l.settled()
	s.stop()
	l.uncountAll("_offset < 5")
	l.lose("events", "_offset < 5")
	l.commit(0, 0, "")
	s = l.start(func(c *Config) { c.Lives = cutAt(5) })
	l.repeat(0, withID("a"))
	l.settled()
	l.exact()
	s.stop()
}

// A power cut may take the tail of the log and rows of ClickHouse: what an earlier life has
// stored is stored, and what nobody has is filled in.
func TestRescanAfterALostTail(t *testing.T) {
	t.Parallel()
	f := func(name, lost string) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			l.history(3, 20)
			// Records that the log has lost, and whose places others have now.
			l.exec(fmt.Sprintf(`INSERT INTO events (ts, event_name, user_id, received_at, _src, _part, _offset, _first, _last, _rows)
				SELECT now64(3), 'lost', 'u', now64(3), %d, 0, 60 + number, 60, 79, 20 FROM numbers(20)`, l.src()))
			if lost != "" {
				l.uncountAll(lost)
				l.lose("events", lost)
			}
			second := cutAt(60)
			rescan := func(c *Config) { c.Lives, c.Rescan = second, func() {} }
			stored := func(want string) {
				t.Helper()
				l.settled()
				if got := l.value("SELECT concat(toString(count()), ' ', toString(uniqExact(_offset))) AS s FROM events WHERE event_name != 'lost'"); got != want {
					t.Errorf("rows and offsets: %s; want %s", got, want)
				}
				l.rollupsAreRaw()
				l.audited(second)
			}
			s := l.start(rescan)
			l.produce(10)
			stored("70 70")
			l.produce(10)
			stored("80 80")
			s.stop()
			again := fmt.Sprintf("_src != %d AND _offset BETWEEN 65 AND 75", l.src())
			l.uncountAll(again)
			l.lose("events", again)
			s = l.start(rescan)
			l.produce(1)
			stored("81 81")
			s.stop()
		})
	}
	f("whole", "")
	f("a batch of before", "_offset BETWEEN 20 AND 39")
	f("the first batches", "_offset < 40")
}

// Of an insert that was under way when the log lost its tail the rows may be there, and what
// they add to the rollups not.
func TestRollupsOfALostTail(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(1, 20)
	l.exec(fmt.Sprintf(`INSERT INTO events (ts, event_name, user_id, received_at, _src, _part, _offset, _first, _last, _rows)
		SELECT now64(3), 'lost', 'u', now64(3), %d, 0, 20 + number, 20, 39, 20 FROM numbers(20)`, l.src()))
	l.uncountAll("_offset >= 20")
	second := cutAt(20)
	l.life(second, func() { l.produce(20) }, rescans)
	l.rollupsAreRaw()
	l.audited(second)
}
