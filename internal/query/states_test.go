package query

import (
	"fmt"
	"math/rand/v2"
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
				b.read = b.read.Add(-b.backoff)
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
		now = now.Add(times*minBackoff - 1)
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
