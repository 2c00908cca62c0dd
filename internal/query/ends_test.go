package query

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Five minutes and their rows are read at two moments of inserts that take their time.
// When all have arrived, so they have in the answer.
func TestEndsOfTwoMoments(t *testing.T) {
	pool := openDatabase(t, "moments")
	kept, none := New(pool, Options{States: 1 << 20}), New(pool, Options{})
	exec := func(sql string) {
		t.Helper()
		if err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	r := Request{EventName: "view", From: dataFrom + 10, To: dataFrom + day, GroupBy: "channel"}
	ask := func(e *Engine) *Result {
		t.Helper()
		res, err := e.Query(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	// An insert is in the rows before it is in the rollup, or after.
	rowsOnly := func(user string) {
		exec("DETACH TABLE events_users_mv")
		insert(t, pool, []event{{(dataFrom + 20) * 1000, "view", "web", "", user}})
		exec("ATTACH TABLE events_users_mv")
	}
	noRows := func(user string) {
		exec("ALTER TABLE events DELETE WHERE user_id = '" + user + "' SETTINGS mutations_sync = 2")
	}
	whole := func(user string) {
		noRows(user)
		insert(t, pool, []event{{(dataFrom + 30) * 1000, "view", "api", "", user}})
	}
	// Long after, the five minutes are read anew, then their rows; and they are kept if they
	// can be.
	read := func(keeps bool) {
		t.Helper()
		for e := kept.states.used.Front(); e != nil; e = e.Next() {
			b := e.Value.(*bucket)
			b.read = b.read.Add(-maxStateAge - 1)
		}
		ask(kept)
		ask(kept)
		before := kept.sources[rawTable].Load()
		ask(kept)
		if n := kept.sources[rawTable].Load() - before; (n == 0) != keeps {
			t.Errorf("rows were read %d times; want them kept: %v", n, keeps)
		}
	}
	same := func(events int64) {
		t.Helper()
		for range 3 {
			want := ask(none)
			if d := cmp.Diff(want, ask(kept)); d != "" || want.Events != events {
				t.Errorf("%d events are stored; want %d; -none kept +kept\n%s", want.Events, events, d)
			}
		}
	}
	whole("before")
	read(true)

	whole("first")
	noRows("first")
	rowsOnly("second")
	read(true) // as many events, of others
	whole("second")
	rowsOnly("first")
	same(3)
	if ends, _ := kept.states.ends(scopeOf(&r), []piece{{rowGrain, r.From, dataFrom + 5*minute}}, time.Now()); ends[0].was != nil {
		t.Error("five minutes that got events are still kept")
	}

	whole("third")
	noRows("third")
	read(false) // the rollup has more
	rowsOnly("third")
	read(true)
	same(4)
}

// Five minutes that a range has cut are whole in the next: their seconds answer for them.
func TestEndsBecomeWhole(t *testing.T) {
	pool := openDatabase(t, "whole")
	var events []event
	for i := range int64(500) {
		second := []int64{i % 300, 300 + i, 2*hour + i%300}[i%3]
		events = append(events, event{(dataFrom + second) * 1000, "view", []string{"web", "api", ""}[i%2+i%7/6], "", fmt.Sprint("user ", i%97)})
	}
	insert(t, pool, events)
	slices.SortFunc(events, func(a, b event) int { return int(a.ts - b.ts) })
	e := New(pool, Options{States: 1 << 20})
	for _, r := range []Request{{}, {GroupBy: "channel"}, {Channel: "web"}, {GroupBy: "hour"}} {
		r.EventName = "view"
		for _, cut := range []int64{10, 10, 10, 0, 10, 0} {
			r.From, r.To = dataFrom+cut, dataFrom+2*hour+5*minute-cut
			got, err := e.Query(t.Context(), r)
			if want := oracle(events, r, time.UTC); err != nil || !cmp.Equal(&want, got) {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
		}
		for _, at := range []int64{dataFrom, dataFrom + 2*hour} {
			if b := e.states.at(scopeOf(&r), piece{fiveGrain, at, at + 5*minute}); b == nil || !b.hasSeconds || len(b.seconds) == 0 {
				t.Errorf("%+v: the seconds from %d are not kept", r, at)
			}
		}
	}
	if n := e.states.changed.Load(); n > 0 {
		t.Errorf("%d buckets changed", n)
	}
}

// Five minutes whose seconds cannot be read are forgotten: they may be more than they were,
// and rows are asked for next.
func TestSecondsThatCannotBeRead(t *testing.T) {
	pool := openDatabase(t, "unreadable")
	exec := func(sql string) {
		t.Helper()
		if err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	insert(t, pool, []event{{dataFrom * 1000, "view", "web", "", "u"}, {(dataFrom + hour) * 1000, "view", "web", "", "u"}})
	e := New(pool, Options{States: 1 << 20})
	r := Request{EventName: "view", From: dataFrom + 10, To: dataFrom + 2*hour}
	knows := func(want bool) {
		t.Helper()
		if b := e.states.at(scopeOf(&r), piece{fiveGrain, dataFrom, dataFrom + 5*minute}); (b != nil) != want {
			t.Errorf("the five minutes are kept: %v; want %v", b != nil, want)
		}
	}
	if _, err := e.Query(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	knows(true)
	exec("RENAME TABLE events TO away")
	if _, err := e.Query(t.Context(), r); err == nil {
		t.Error("an answer without rows")
	}
	knows(false)
	exec("RENAME TABLE away TO events")
	for range 3 {
		if got, err := e.Query(t.Context(), r); err != nil || got.Events != 1 {
			t.Errorf("got %+v, %v; want one event", got, err)
		}
	}
	knows(true)
}

// TestWhichSecondsAreKept: those of five minutes that are kept, of as many events and of
// few.
func TestWhichSecondsAreKept(t *testing.T) {
	c := stateCache{limit: 1 << 20}
	s, now := scope{event: "view"}, time.Unix(dataFrom, 0)
	const width = 5 * minute
	two := []piece{{fiveGrain, 0, 2 * width}}
	cut := []piece{{rowGrain, 7, width}, {rowGrain, width, width + 11}}
	ends := func(unknown ...piece) []end {
		t.Helper()
		ends, rest := c.ends(s, cut, now)
		if d := cmp.Diff(unknown, rest, cmp.AllowUnexported(piece{})); d != "" || len(ends) != 2 {
			t.Fatalf("%d ends, -want to be read +got\n%s", len(ends), d)
		}
		return ends
	}
	seconds := func(at ...int64) *found {
		f := newFound(s, nil)
		for _, sec := range at {
			f.buckets[span{1, sec}] = &bucket{parts: []bucketPart{{"", 1}}, cells: []bucketCell{{sec, "", 1, make([]byte, 9)}}, bytes: 100}
		}
		return f
	}
	hasSeconds := func(first, second bool) {
		t.Helper()
		for i, want := range []bool{first, second} {
			if x := ends()[i]; x.was == nil || x.was.hasSeconds != want {
				t.Errorf("end %d is kept as %+v; want its seconds: %v", i, x.was, want)
			}
		}
	}
	if x := ends(piece{fiveGrain, 0, width}, piece{fiveGrain, width, 2 * width}); x[0].was != nil || x[1].was != nil {
		t.Error("what was never read is kept")
	}
	c.put(s, two, holding(s, two, "a", 2, 100), now)
	hasSeconds(false, false)
	c.keepSeconds(ends()[0].was, seconds(1, width-1, width))
	hasSeconds(true, false)
	c.keepSeconds(ends()[1].was, seconds(1, width))
	hasSeconds(true, false)
	full := seconds(width, 2*width-1)
	full.full = true
	c.keepSeconds(ends()[1].was, full)
	hasSeconds(true, false)
	was := ends()[1].was
	c.put(s, two[:1], holding(s, two, "b", 2, 100), now) // read again: it is not the one that was asked about
	c.keepSeconds(was, seconds(width, 2*width-1))
	hasSeconds(false, false)
	c.keepSeconds(ends()[1].was, seconds(width, 2*width-1))
	hasSeconds(false, true)
	bounded(t, &c)
	c.put(s, two, holding(s, two, "c", 3, 100), now)
	if x := ends(); x[0].was != nil || x[1].was != nil {
		t.Error("five minutes that get events are kept")
	}
	now = now.Add(minBackoff)
	both := []piece{{fiveGrain, 0, width}, {fiveGrain, width, 2 * width}}
	ends(both...)
	c.put(s, two, holding(s, two, "d", 3, 100), now)
	now = now.Add(maxStateAge)
	hasSeconds(false, false)
	now = now.Add(1)
	ends(both...)
	c.limit = 0
	if x := ends(); x[0].was != nil || x[1].was != nil {
		t.Error("something is kept where nothing may be")
	}
}

// What was read is in the answer already, whatever another question has kept of it since.
func TestEndsThatAnotherQuestionHasKept(t *testing.T) {
	e := New(nil, Options{States: 1 << 20})
	r := Request{EventName: "view", From: 7, To: day}
	s, now := scopeOf(&r), time.Now()
	five := piece{fiveGrain, 0, 5 * minute}
	e.states.put(s, []piece{five}, holding(s, []piece{five}, "a", 1, 9), now)
	f := newFound(s, nil)
	f.buckets[span{1, 10}] = &bucket{parts: []bucketPart{{"", 1}}, cells: []bucketCell{{10, "", 1, []byte{1, 0}}}, bytes: 100}
	e.states.keepSeconds(e.states.at(s, five), f)
	kept := e.states.at(s, five)
	for part, changes := range map[string]int{"a": 0, "b": 1} {
		a := newAnswer(&r, time.UTC)
		q := &reader{e: e, a: a, scope: s}
		changed, again, err := q.ends([]end{{piece: piece{rowGrain, 7, 5 * minute}, of: five, unknown: true, bySecond: true}}, holding(s, []piece{five}, part, 1, 0), f)
		if err != nil || len(changed) != changes || len(again) != 0 || a.whole.events != 0 {
			t.Errorf("in part %s: %d events more, rows of %v and five minutes of %v to be read again, %v; want none and %d", part, a.whole.events, again, changed, err, changes)
		}
	}
	if e.states.at(s, five) != kept {
		t.Error("what was kept has been kept again")
	}
	bounded(t, &e.states)
}

// Of five minutes that a range has begun to cut, first only their events are known. With
// their seconds they are as good as any bucket.
func TestFiveMinutesOfWhichOnlyEventsAreKnown(t *testing.T) {
	c := stateCache{limit: 1 << 20}
	s, now := scope{event: "view"}, time.Unix(dataFrom, 0)
	five, cut := []piece{{fiveGrain, 0, 5 * minute}}, []piece{{rowGrain, 7, 5 * minute}}
	seen := newFound(s, nil)
	seen.counts, seen.known = true, true
	b := new(bucket)
	b.addPart("a", 2)
	seen.buckets[span{5 * minute, 0}] = b
	c.put(s, five, seen, now)
	ends, unknown := c.ends(s, cut, now)
	if len(unknown) > 0 || ends[0].was == nil || ends[0].kept() {
		t.Errorf("the end is known as %+v; want its events, and not its seconds", ends[0])
	}
	if _, held, _ := c.look(s, five, now); len(held) > 0 {
		t.Error("what holds nothing is taken for a bucket")
	}
	f := newFound(s, nil)
	for _, sec := range []int64{0, 299} {
		f.buckets[span{1, sec}] = &bucket{parts: []bucketPart{{"", 1}}, cells: []bucketCell{{sec, "", 1, []byte{1, 0}}}, bytes: 100}
	}
	c.keepSeconds(ends[0].was, f)
	have, held, _ := c.look(s, five, now)
	if len(held) != 1 {
		t.Fatal("five minutes are not held whose seconds are")
	}
	if cells, width := have[span{5 * minute, 0}].all(); len(cells) != 2 || width != 1 {
		t.Errorf("they hold %d cells of %d seconds; want 2 of 1", len(cells), width)
	}
	bounded(t, &c)
}

func TestWhichEndsAreFew(t *testing.T) {
	for events, want := range map[int64]bool{0: true, maxSecondsOf: true, maxSecondsOf + 1: false} {
		x := end{was: &bucket{parts: []bucketPart{{"a", events}}}}
		if x.few(!want) != want {
			t.Errorf("%d events are few: %v; want %v", events, !want, want)
		}
	}
	for _, sparse := range []bool{false, true} {
		unknown, changing := end{unknown: true}, end{}
		if unknown.few(sparse) != sparse || changing.few(sparse) {
			t.Errorf("few of unknown ones: %v, of changing ones: %v; want %v and false", unknown.few(sparse), changing.few(sparse), sparse)
		}
	}
	f := func(want bool, events ...int64) {
		t.Helper()
		all := make(map[span]*bucket)
		for i, n := range events {
			all[span{hour, int64(i)}] = &bucket{parts: []bucketPart{{"a", n}}}
		}
		if got := fewIn(all, 5*minute); got != want {
			t.Errorf("of %v an hour five minutes have few: %v; want %v", events, got, want)
		}
	}
	f(false)
	f(true, 0)
	f(true, 12*maxSecondsOf/2)
	f(true, 12*maxSecondsOf, 0)
	f(false, 12*maxSecondsOf/2+1)
}

// A five minutes' seconds are not kept that there is no room for, and what is kept stays.
func TestSecondsThereIsNoRoomFor(t *testing.T) {
	c := stateCache{limit: 8 << 10}
	s, now := scope{event: "view"}, time.Unix(dataFrom, 0)
	five := []piece{{fiveGrain, 0, 5 * minute}}
	c.put(s, five, holding(s, five, "a", 40, 9), now)
	ends, _ := c.ends(s, []piece{{rowGrain, 7, 5 * minute}}, now)
	f := newFound(s, nil)
	for sec := range int64(40) {
		f.buckets[span{1, sec}] = &bucket{parts: []bucketPart{{"", 1}}, cells: []bucketCell{{sec, "", 1, make([]byte, 100)}}, bytes: cellBytes + 100}
	}
	c.keepSeconds(ends[0].was, f)
	if ends, _ = c.ends(s, []piece{{rowGrain, 7, 5 * minute}}, now); ends[0].was == nil || ends[0].kept() {
		t.Error("the five minutes were forgotten, or their seconds kept")
	}
	bounded(t, &c)
}
