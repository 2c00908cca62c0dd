package query

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Whatever happens to the tables between two questions, who keeps buckets says what who
// keeps none does.
func TestAnswersAreNoOlderForWhatIsKept(t *testing.T) {
	pool := openDatabase(t, "states")
	rng := rand.New(rand.NewPCG(11, 29))
	kept, none := New(pool, Options{States: 8 << 20}), New(pool, Options{})
	var requests []Request
	for _, r := range []Request{{}, {GroupBy: "channel"}, {Channel: "web"}, {GroupBy: "channel", Channel: "web"}, {GroupBy: "day"}, {GroupBy: "hour", Channel: "api"},
		{GroupBy: "day", Zone: "Europe/Berlin"}} {
		r.EventName, r.From, r.To = "view", dataFrom+day+3*hour+7, dataFrom+40*day+10*hour+11
		requests = append(requests, r)
	}
	// Both ends are in five minutes that have events.
	atEnds := func(n int) []event {
		events := randomEvents(rng, n)
		for i := range events {
			end := []int64{dataFrom + day + 3*hour, dataFrom + 40*day + 10*hour}[rng.IntN(2)]
			events[i].ts = (end+rng.Int64N(300))*1000 + rng.Int64N(1000)
		}
		return events
	}
	exec := func(sql string) {
		t.Helper()
		if err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	steps := []func(){
		func() {},
		func() { insert(t, pool, randomEvents(rng, 500)) },
		func() { insert(t, pool, atEnds(1+rng.IntN(20))) },
		func() { exec("OPTIMIZE TABLE events_users FINAL") },
		// A repair: users without a count.
		func() {
			exec(fmt.Sprintf(`INSERT INTO events_users (event_name, by_channel, width, at, channel, n, u)
				SELECT event_name, by_channel, width, at, channel, 0, uniqCombined64State(14)('ghost_%d') FROM events_users
				WHERE cityHash64(width, at) %% 5 = 0 GROUP BY event_name, by_channel, width, at, channel`, rng.Int()))
		},
		// And counts without users, in one bucket of two more and in another fewer.
		func() {
			exec(`INSERT INTO events_users (event_name, by_channel, width, at, channel, n)
				SELECT event_name, by_channel, width, at, channel, if(width = 86400, 1, -1) FROM events_users
				WHERE cityHash64(width, at) % 5 = 1 GROUP BY event_name, by_channel, width, at, channel`)
		},
		func() {
			exec(fmt.Sprintf("ALTER TABLE events_users DELETE WHERE cityHash64(width, at) %% 16 = %d SETTINGS mutations_sync = 2", rng.IntN(16)))
		},
	}
	insert(t, pool, append(randomEvents(rng, 10_000), atEnds(200)...))
	for i := range 5 * len(steps) {
		step := i % len(steps)
		if i >= len(steps) {
			step = rng.IntN(len(steps))
		}
		steps[step]()
		for _, r := range requests {
			for range 3 { // a screen that moves on
				want, err := none.Query(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				got, err := kept.Query(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Fatalf("after step %d, %+v: -none kept +kept\n%s", step, r, d)
				}
				by := []int64{rng.Int64N(100), 12 * hour, day}[rng.IntN(3)]
				r.From, r.To = r.From+by, r.To+by
			}
		}
		if i%10 == 9 { // time passes
			for e := kept.states.used.Front(); e != nil; e = e.Next() {
				b := e.Value.(*bucket)
				b.read = b.read.Add(-b.restless)
			}
		}
	}
	c := &kept.states
	if c.kept.Load() < c.read.Load() || c.changed.Load() == 0 {
		t.Errorf("%d buckets were kept, %d read, %d changed: too few to say anything", c.kept.Load(), c.read.Load(), c.changed.Load())
	}
	if n := none.states.kept.Load() + none.states.changed.Load(); n != 0 {
		t.Errorf("%d buckets were kept where none should be", n)
	}
	if read, all := kept.sources[rawTable].Load(), none.sources[rawTable].Load(); all-read < 50 {
		t.Errorf("rows were read for %d of %d answers: too many to say anything", read, all)
	}
	bounded(t, c)
	if n := c.arriving.Load(); n != 0 {
		t.Errorf("%d bytes are still said to arrive", n)
	}
}

// bounded compares what is kept with what c says of it.
func bounded(t *testing.T, c *stateCache) {
	t.Helper()
	sum := 0
	for e := c.used.Front(); e != nil; e = e.Next() {
		b := e.Value.(*bucket)
		sum += b.bytes
		held := 0
		for _, cells := range [][]bucketCell{b.cells, b.seconds} {
			for _, c := range cells {
				held += cellBytes + len(c.name) + len(c.state)
			}
		}
		if b.sum != nil {
			held += b.sum.bytes()
		}
		if held > b.bytes {
			t.Errorf("%v holds %d bytes and says %d", b.key, held, b.bytes)
		}
	}
	if sum != c.bytes || sum > c.limit || c.used.Len() != len(c.byKey) {
		t.Fatalf("%d bytes are kept in %d entries, said to be %d in %d; want at most %d", sum, c.used.Len(), c.bytes, len(c.byKey), c.limit)
	}
}

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
			if b := e.states.at(scopeOf(&r), piece{fiveGrain, at, at + 5*minute}); b == nil || !b.studied || len(b.seconds) == 0 {
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
	studied := func(first, second bool) {
		t.Helper()
		for i, want := range []bool{first, second} {
			if x := ends()[i]; x.was == nil || x.was.studied != want {
				t.Errorf("end %d is kept as %+v; want its seconds: %v", i, x.was, want)
			}
		}
	}
	if x := ends(piece{fiveGrain, 0, width}, piece{fiveGrain, width, 2 * width}); x[0].was != nil || x[1].was != nil {
		t.Error("what was never read is kept")
	}
	c.put(s, two, holding(s, two, "a", 2, 100), now)
	studied(false, false)
	c.learn(ends()[0].was, seconds(1, width-1, width))
	studied(true, false)
	c.learn(ends()[1].was, seconds(1, width))
	studied(true, false)
	full := seconds(width, 2*width-1)
	full.full = true
	c.learn(ends()[1].was, full)
	studied(true, false)
	was := ends()[1].was
	c.put(s, two[:1], holding(s, two, "b", 2, 100), now) // read again: it is not the one that was asked about
	c.learn(was, seconds(width, 2*width-1))
	studied(false, false)
	c.learn(ends()[1].was, seconds(width, 2*width-1))
	studied(false, true)
	bounded(t, &c)
	c.put(s, two, holding(s, two, "c", 3, 100), now)
	if x := ends(); x[0].was != nil || x[1].was != nil {
		t.Error("five minutes that get events are kept")
	}
	now = now.Add(restlessTime)
	both := []piece{{fiveGrain, 0, width}, {fiveGrain, width, 2 * width}}
	ends(both...)
	c.put(s, two, holding(s, two, "d", 3, 100), now)
	now = now.Add(maxStateAge)
	studied(false, false)
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
	e.states.learn(e.states.at(s, five), f)
	kept := e.states.at(s, five)
	for part, changes := range map[string]int{"a": 0, "b": 1} {
		a := newAnswer(&r, time.UTC)
		q := &reader{e: e, a: a, scope: s}
		changed, again, err := q.ends([]end{{piece: piece{rowGrain, 7, 5 * minute}, of: five, unknown: true, studied: true}}, holding(s, []piece{five}, part, 1, 0), f)
		if err != nil || len(changed) != changes || len(again) != 0 || a.whole.events != 0 {
			t.Errorf("in part %s: %d events more, rows of %v and five minutes of %v to be read again, %v; want none and %d", part, a.whole.events, again, changed, err, changes)
		}
	}
	if e.states.at(s, five) != kept {
		t.Error("what was kept has been learnt again")
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
	c.learn(ends[0].was, f)
	have, held, _ := c.look(s, five, now)
	if len(held) != 1 {
		t.Fatal("five minutes are not held whose seconds are")
	}
	if cells, width := have[span{5 * minute, 0}].all(); len(cells) != 2 || width != 1 {
		t.Errorf("they hold %d cells of %d seconds; want 2 of 1", len(cells), width)
	}
	bounded(t, &c)
}

// holding says that each bucket of pieces is in one part, with a state of that many bytes.
func holding(s scope, pieces []piece, part string, events int64, state int) *found {
	f := newFound(s, nil)
	for at := range spans(pieces) {
		b := &bucket{cells: []bucketCell{{0, "", events, make([]byte, state)}}, bytes: cellBytes + state}
		b.addPart(part, events)
		f.buckets[at] = b
	}
	return f
}

func TestWhichBucketsAreKept(t *testing.T) {
	c := stateCache{limit: 1 << 20}
	s, now := scope{event: "view"}, time.Unix(dataFrom, 0)
	days := []piece{{dayGrain, 0, 2 * day}}
	put := func(pieces []piece, part string, events int64) {
		c.put(s, pieces, holding(s, pieces, part, events, 100), now)
	}
	look := func(held, rest []piece) {
		t.Helper()
		have, gotHeld, gotRest := c.look(s, []piece{{dayGrain, 0, 3 * day}}, now)
		if d := cmp.Diff([][]piece{held, rest}, [][]piece{gotHeld, gotRest}, cmp.AllowUnexported(piece{})); d != "" {
			t.Errorf("-want +got\n%s", d)
		}
		for at := range spans(held) {
			if have[at] == nil {
				t.Errorf("%v is held and not there", at)
			}
		}
	}
	three := []piece{{dayGrain, 0, 3 * day}}
	first, others := []piece{{dayGrain, 0, day}}, []piece{{dayGrain, day, 3 * day}}
	second, third := []piece{{dayGrain, day, 2 * day}}, []piece{{dayGrain, 2 * day, 3 * day}}
	firstAndThird := []piece{first[0], third[0]}
	look(nil, three)
	put(days, "a", 1)
	look(days, third)
	if have, _, _ := c.look(scope{event: "view", byChannel: true}, days, now); len(have) != 0 {
		t.Error("buckets of all channels together were found for those of each")
	}
	events := int64(1)
	for _, times := range []time.Duration{1, 2, 4} { // twice as long each time it gets events
		put(second, "merged", events)
		look(days, third)
		events++
		put(second, "grown", events)
		look(first, others)
		now = now.Add(times*restlessTime - 1)
		events++
		put(second, "grown again", events)
		look(first, others)
		now = now.Add(1)
		put(second, "and again", events)
		look(days, third)
	}
	now = now.Add(maxStateAge)
	look(second, firstAndThird)
	now = now.Add(1)
	put(second, "i", 99) // long after: as if it came for the first time
	look(second, firstAndThird)
	c.put(s, second, newFound(s, &c), now) // nothing is there any more
	look(nil, three)
	if c.used.Len() != 0 || c.bytes != 0 {
		t.Errorf("%d bytes are kept; want none", c.bytes)
	}
	for _, full := range []bool{true, false} { // empty ones are kept beside others, of a name that is known
		none := newFound(s, &c)
		none.known, none.full = true, full
		c.put(s, days, none, now)
		if want := map[bool]int{true: 0, false: 2}[full]; c.used.Len() != want {
			t.Errorf("%d empty buckets are kept; want %d", c.used.Len(), want)
		}
	}
	c.forget(s, days)
	look(nil, three)
	put(second, "j", 0)
	for i := range int64(10) { // never for longer than maxStateAge
		put(second, "j", 2*i+1)
		look(nil, three)
		now = now.Add(maxStateAge)
		put(second, "k", 2*i+2)
		look(second, firstAndThird)
	}
}

// The same part has the same rows, and a part of the same name that was made after a power
// cut has others, or almost never as many events.
func TestWhatConfirmsABucket(t *testing.T) {
	c := stateCache{limit: 1 << 20}
	s, now := scope{event: "view"}, time.Unix(dataFrom, 0)
	days := []piece{{dayGrain, 0, 2 * day}}
	c.put(s, days[:1], holding(s, days, "a", 1, 100), now)
	have, _, _ := c.look(s, days, now)
	at := span{day, 0}
	f := func(now *found, want bool) {
		t.Helper()
		if got := now.confirms(at, have[at]); got != want {
			t.Errorf("got %v; want %v", got, want)
		}
	}
	f(holding(s, days, "a", 1, 0), true)
	f(holding(s, days, "a", 2, 0), false)
	f(holding(s, days, "b", 1, 0), false)
	f(holding(s, nil, "", 0, 0), false)
	more := holding(s, days, "a", 1, 0)
	more.buckets[at].addPart("b", 0)
	f(more, false)
	have[at] = new(bucket)
	f(holding(s, nil, "", 0, 0), true)
}

func TestWhichEndsAreFew(t *testing.T) {
	for events, want := range map[int64]bool{0: true, maxSecondsOf: true, maxSecondsOf + 1: false} {
		x := end{was: &bucket{parts: []bucketPart{{"a", events}}}}
		if x.few(!want) != want {
			t.Errorf("%d events are few: %v; want %v", events, !want, want)
		}
	}
	for _, sparse := range []bool{false, true} {
		unknown, restless := end{unknown: true}, end{}
		if unknown.few(sparse) != sparse || restless.few(sparse) {
			t.Errorf("few of unknown ones: %v, of restless ones: %v; want %v and false", unknown.few(sparse), restless.few(sparse), sparse)
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
	c.learn(ends[0].was, f)
	if ends, _ = c.ends(s, []piece{{rowGrain, 7, 5 * minute}}, now); ends[0].was == nil || ends[0].kept() {
		t.Error("the five minutes were forgotten, or their seconds kept")
	}
	bounded(t, &c)
}

// One sum is kept for ranges of about the same length, of no more channels than there is
// room for.
func TestWhichSumsAreKept(t *testing.T) {
	c := stateCache{limit: 4 * 8 * sketchRegisters}
	channels := func(number uint64, n int) (all []*bucket) {
		for i := range n {
			all = append(all, &bucket{number: number, cells: []bucketCell{{0, fmt.Sprint("channel ", i), 1, []byte{1, 0}}}})
		}
		return all
	}
	r := Request{EventName: "view", From: 0, To: 700, GroupBy: "channel"}
	other := r
	other.To = 1700
	if !c.summable(channels(1, 4)) || c.summable(channels(1, 5)) {
		t.Error("five channels are summed, or four are not")
	}
	keep := func(r *Request, number uint64) *stateSum {
		t.Helper()
		sum, err := addUp(channels(number, 4))
		if err != nil {
			t.Fatal(err)
		}
		c.keepSum(sumKey(r), sum)
		bounded(t, &c)
		return sum
	}
	has := func(r *Request, number uint64, want *stateSum) {
		t.Helper()
		if got := c.sum(sumKey(r), numbers(channels(number, 4))); got != want {
			t.Errorf("of %d: got %p; want %p", number, got, want)
		}
	}
	has(&r, 1, nil)
	first, second := keep(&r, 1), keep(&other, 2)
	has(&r, 1, first)
	has(&other, 2, second)
	has(&r, 2, nil)
	r.To += 200
	has(&r, 1, first)
	third := keep(&r, 3)
	r.To -= 200
	has(&r, 1, nil)
	has(&r, 3, third)
	if c.used.Len() != 2 {
		t.Errorf("%d sums are kept; want 2", c.used.Len())
	}
}

func TestKeptBucketsAreBounded(t *testing.T) {
	const limit = 64 << 10
	c := stateCache{limit: limit}
	now, hour := time.Unix(dataFrom, 0), []piece{{hourGrain, 0, 3600}}
	put := func(i, state int) {
		t.Helper()
		s := scope{event: fmt.Sprint("event ", i)}
		c.put(s, hour, holding(s, hour, "a", 1, state), now)
		bounded(t, &c)
	}
	has := func(i int) bool {
		have, _, _ := c.look(scope{event: fmt.Sprint("event ", i)}, hour, now)
		return len(have) == 1
	}
	for i := range 1000 {
		put(i, 1000)
		if i > 0 && !has(0) {
			t.Fatalf("what is used was forgotten after %d others", i)
		}
	}
	if !has(999) || !has(960) || has(500) {
		t.Error("one of the last is not kept, or one long ago is")
	}
	for i := range 100 { // the same again, some larger, some smaller
		put(998+i%2, 10_000*(i%3))
	}
	for _, state := range []int{limit / 2, 2 * limit} {
		put(1, state)
		if has(1) || c.used.Len() < 3 {
			t.Errorf("a bucket of %d bytes is kept, or it has pushed out the others: there are %d", state, c.used.Len())
		}
	}
}

// A bucket with more channels than there is room for is read each time.
func TestMoreThanThereIsRoomFor(t *testing.T) {
	pool := openDatabase(t, "room")
	var events []event
	for i := range 300 {
		events = append(events, event{dataFrom * 1000, "view", fmt.Sprint("channel ", i), "", "u"})
	}
	insert(t, pool, events)
	e := New(pool, Options{States: 32 << 10})
	for _, r := range []Request{{GroupBy: "channel"}, {Channel: "channel 7"}} {
		r.EventName, r.From, r.To = "view", dataFrom, dataFrom+day
		for range 2 {
			got, err := e.Query(t.Context(), r)
			if want := oracle(events, r, time.UTC); err != nil || !cmp.Equal(&want, got) {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
		}
	}
	if n := e.states.arriving.Load(); n != 0 {
		t.Errorf("%d bytes are still said to arrive", n)
	}
	if c := &e.states; c.read.Load() != 3 || c.kept.Load() != 1 || c.bytes > c.limit {
		t.Errorf("%d buckets read, %d kept in %d bytes; want 3, 1, at most %d", c.read.Load(), c.kept.Load(), c.bytes, c.limit)
	}
}
