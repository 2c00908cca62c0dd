package query

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// How an answer is put together from what is kept and what is read.

// buckets adds those of b to a, and the rows at the ends of the range: what is kept and
// has not changed, and the others, which are read.
func (e *Engine) buckets(ctx context.Context, a *answer, b *builder, cut []piece) error {
	q := &reader{e: e, a: a, b: b, scope: scopeOf(&a.request)}
	first := q.firstRound(cut, time.Now())
	seen, seconds := newFound(q.scope, nil), newFound(q.scope, &e.states)
	seen.known, seen.counts = true, true
	defer seconds.drop()
	all, allCtx := errgroup.WithContext(ctx)
	all.Go(func() error { return q.buckets(allCtx, first.rest) })
	all.Go(func() error { return q.rows(allCtx, first.plain) })
	all.Go(func() error { return q.seconds(allCtx, first.bySecond, seconds) })
	all.Go(func() error { return q.counts(allCtx, first.check, seen) })
	if err := all.Wait(); err != nil {
		return err
	}
	if len(first.unknown) > 0 {
		e.states.put(q.scope, first.unknown, seen, time.Now())
	}
	same, changed := first.compare(seen)
	e.states.count(first.held, first.rest, changed)
	if len(same) > 0 {
		if err := e.addKept(a, same); err != nil {
			return err
		}
	}
	others, again, err := q.ends(first.ends, seen, seconds)
	if err != nil {
		return err
	}
	if len(first.plain)+len(first.bySecond)+len(again) > 0 {
		e.sources[rawTable].Inc()
	}
	all, allCtx = errgroup.WithContext(ctx)
	all.Go(func() error { return q.buckets(allCtx, append(changed, others...)) })
	all.Go(func() error { return q.rows(allCtx, again) })
	return all.Wait()
}

// reader reads what an answer needs of buckets and rows. Without pieces nothing is asked.
type reader struct {
	e     *Engine
	a     *answer
	b     *builder
	scope scope
	known bool // there are buckets of the scope
}

// round is what an answer has of what is kept, and what it asks for at first.
type round struct {
	have       map[span]*bucket
	held, rest []piece // buckets that are kept, and those that are read
	ends       []end

	check    []piece // buckets of which is asked what parts have rows of them: those kept, and
	unknown  []piece // the ends' five minutes of which nothing is known
	bySecond []piece // five minutes that are read by the second
	plain    []piece // ends that are read as rows
}

// firstRound is that of an answer that has the ends cut.
func (q *reader) firstRound(cut []piece, now time.Time) (r round) {
	c := &q.e.states
	r.have, r.held, r.rest = c.look(q.scope, q.b.source.pieces, now)
	r.ends, r.unknown = c.ends(q.scope, cut, now)
	r.check = slices.Clip(r.held)
	if q.known = len(r.held) > 0; q.known {
		r.check = append(r.check, r.unknown...) // a statement less than to read them
	} else {
		r.rest, r.unknown = append(r.rest, r.unknown...), nil
	}
	// Seconds are read instead of plain rows, never in addition to them. If nothing is known
	// about an end yet, it may have many events: then this question reads plain rows, and
	// the next one can read seconds.
	sparse := fewIn(r.have, fiveGrain.seconds())
	maySeconds := sparse || len(r.unknown) == 0
	for i := range r.ends {
		x := &r.ends[i]
		if x.was != nil {
			r.check = append(r.check, x.of)
		}
		switch x.bySecond = maySeconds && x.few(sparse) && !x.kept(); {
		case x.bySecond:
			r.bySecond = append(r.bySecond, x.of)
		case !x.kept():
			r.plain = append(r.plain, x.piece)
		}
	}
	return r
}

// compare tells the buckets that were kept and are as they were from those that are not.
func (r *round) compare(seen *found) (same []*bucket, changed []piece) {
	for s := range spans(r.held) {
		if was := r.have[s]; seen.confirms(s, was) {
			same = append(same, was)
		} else {
			changed = extend(changed, s)
		}
	}
	return same, changed
}

func (q *reader) ask(ctx context.Context, b *builder, read func(*rows, int) error) error {
	if len(b.source.pieces) == 0 {
		return nil
	}
	s := b.statement()
	return q.e.pool.Do(ctx, s.query(q.e.settings, read))
}

// both hands what is read to f and to the answer.
func (q *reader) both(f *found) func(*rows, int) error {
	return func(r *rows, n int) error {
		f.add(r, n)
		return q.a.read(r, n)
	}
}

// buckets reads them with their states, for the answer and to be kept.
func (q *reader) buckets(ctx context.Context, pieces []piece) error {
	f := newFound(q.scope, &q.e.states)
	f.known = q.known
	defer f.drop()
	err := q.ask(ctx, q.b.of(pieces, true), q.both(f))
	if err == nil && len(pieces) > 0 {
		q.e.states.put(q.scope, pieces, f, time.Now())
	}
	return err
}

// rows reads them for the answer alone.
func (q *reader) rows(ctx context.Context, pieces []piece) error {
	return q.ask(ctx, q.b.rows(pieces, false), q.a.read)
}

// seconds reads those of five minutes, for the answer and for f.
func (q *reader) seconds(ctx context.Context, pieces []piece, f *found) error {
	err := q.ask(ctx, q.b.rows(pieces, true), q.both(f))
	if err != nil {
		q.e.states.forget(q.scope, pieces) // perhaps they are more than they were
	}
	return err
}

// counts reads which parts have how many events of buckets.
func (q *reader) counts(ctx context.Context, pieces []piece, f *found) error {
	return q.ask(ctx, q.b.of(pieces, false), func(r *rows, n int) error {
		f.add(r, n)
		return nil
	})
}

// ends adds those that are kept and as they were, and keeps what was read of others. Of
// those that have changed it returns the five minutes, and the rows that the answer lacks.
func (q *reader) ends(ends []end, seen, seconds *found) (changed, again []piece, err error) {
	c := &q.e.states
	for _, x := range ends {
		kept := x.kept() // and not in the answer yet, as those are that were read
		if x.was == nil && x.bySecond {
			x.was = c.at(q.scope, x.of) // perhaps another question's by now
		}
		switch {
		case x.was == nil:
		case !seen.confirms(x.was.key.span, x.was):
			changed = append(changed, x.of)
			if kept {
				again = append(again, x.piece)
			}
		case kept:
			if err := q.a.addCells(x.was.all()); err != nil {
				return nil, nil, err
			}
		case x.bySecond && !x.was.hasSeconds:
			c.keepSeconds(x.was, seconds)
		}
	}
	return changed, again, nil
}

// addKept adds buckets as they were kept: their sum, but of groups that are by time.
func (e *Engine) addKept(a *answer, buckets []*bucket) error {
	if c := &e.states; a.width == 0 {
		key := sumKey(&a.request)
		sum := c.sum(key, numbers(buckets))
		if sum == nil && c.summable(buckets) {
			var err error
			if sum, err = addUp(buckets); err != nil {
				return err
			}
			c.keepSum(key, sum)
		}
		if sum != nil {
			a.addSum(sum)
			return nil
		}
	}
	for _, b := range buckets {
		if err := a.addCells(b.all()); err != nil {
			return err
		}
	}
	return nil
}

// count counts how buckets came into one answer.
func (c *stateCache) count(held, rest, changed []piece) {
	number := func(pieces []piece) (n uint64) {
		for _, p := range pieces {
			n += uint64((p.to - p.from) / p.grain.seconds())
		}
		return n
	}
	again := number(changed)
	c.kept.Add(number(held) - again)
	c.read.Add(number(rest))
	c.changed.Add(again)
}

// end is what a range has of five minutes that it cuts.
type end struct {
	piece
	of  piece   // the five minutes
	was *bucket // as they are kept; nil: they are not

	unknown  bool // nothing is known of them
	bySecond bool // it is read by the second
}

// kept tells whether what each second has of it is kept.
func (x *end) kept() bool { return x.was != nil && x.was.hasSeconds }

// few tells whether that may be kept. Of five minutes of which nothing is known sparse says
// whether few events are to be expected.
func (x *end) few(sparse bool) bool {
	if x.was == nil {
		return sparse && x.unknown
	}
	return x.was.events() <= maxSecondsOf
}

// fewIn tells whether so many seconds have few events, if they have as many as those of
// buckets, and twice as many.
func fewIn(buckets map[span]*bucket, seconds int64) bool {
	var events, of int64
	for s, b := range buckets {
		events += b.events()
		of += s.width
	}
	return of > 0 && float64(events)/float64(of)*float64(seconds) <= maxSecondsOf/2
}

// at is what is kept of the bucket p, or nil.
func (c *stateCache) at(s scope, p piece) *bucket {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byKey[bucketKey{s, span{p.grain.seconds(), p.from}}]; e != nil && e.Value.(*bucket).backoff == 0 {
		return e.Value.(*bucket)
	}
	return nil
}

// ends are those that have rows; rest are the five minutes of which nothing is known.
func (c *stateCache) ends(s scope, rows []piece, now time.Time) (ends []end, rest []piece) {
	c.mu.Lock()
	defer c.mu.Unlock()
	width := fiveGrain.seconds()
	for _, p := range rows {
		at := p.from - p.from%width
		x := end{piece: p, of: piece{fiveGrain, at, at + width}}
		if c.limit > 0 && p.to <= at+width {
			b := new(bucket)
			e := c.byKey[bucketKey{s, span{width, at}}]
			if e != nil {
				b = e.Value.(*bucket)
			}
			switch age := now.Sub(b.read); {
			case age > maxStateAge, b.backoff > 0 && age >= b.backoff: // or there is none
				rest = append(rest, x.of)
				x.unknown = true
			case b.backoff == 0:
				c.used.MoveToFront(e)
				x.was = b
			}
		}
		ends = append(ends, x)
	}
	return ends, rest
}

// keepSeconds keeps the seconds of was that f has found, if they hold as many events.
func (c *stateCache) keepSeconds(was *bucket, f *found) {
	b := *was
	b.hasSeconds, b.cells = true, nil
	for _, cell := range was.cells {
		b.bytes -= cell.bytes()
	}
	var events int64
	var cells [][]bucketCell
	for at, second := range f.buckets {
		if at.at < was.key.at || at.at >= was.key.at+was.key.width {
			continue // of the other end
		}
		cells = append(cells, second.cells)
		b.bytes += second.bytes
		events += second.events()
	}
	if f.full || events != was.events() || !c.fits(&b) {
		return
	}
	b.seconds = slices.Concat(cells...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byKey[b.key]; e != nil && e.Value == was {
		c.remove(e)
		c.add(&b)
	}
}
