// Package logging keeps a storm of equal log records from being a storm of
// lines.
//
// When the broker or ClickHouse is away, every part that talks to it says so at
// its own pace: a probe each second, a retry each two, a request a thousand
// times a second. Limiter stands in front of the handler that writes, so that
// no part has to know. The first record of a kind goes through at once and
// whole; after it at most one in a period, with how many were left out; and when
// the storm is over, a last line with the rest. So the lines and their
// "suppressed" add up to the records, and what began and what ended are both
// in the log.
//
// A kind is level, message, component and partition. Messages are constants
// here and everything that varies is an attribute, so kinds are few; should a
// library put a number into its messages, the table is still bounded, and what
// does not fit shares one kind.
//
// Only records of level Warn and above are held back: what is below is not
// written by default, and whoever turns it on wants all of it. A record that is
// held back is counted and forgotten, never kept: its values may point into
// memory that is used again. A slog.LogValuer is, and says in the last line what it
// is by then.
package logging

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Period is how often edge writes one kind of record. Half of it would double
// the lines of an outage; twice as much, and a reader waits for news longer than
// a restart takes.
const Period = 10 * time.Second

// maxKinds bounds the memory. edge has about 60 messages of level Warn and
// above; with its libraries' and a partition each there is room to spare.
const maxKinds = 512

// Suppressed is the key of the number of records that were left out before this
// one.
const Suppressed = "suppressed"

// Limiter is a slog.Handler in front of another. All that come of one New by
// WithAttrs and WithGroup count together. Any goroutine may call its methods.
type Limiter struct {
	next  slog.Handler
	bound kind // what WithAttrs has said of component and partition
	group bool // attributes are inside a group and name neither
	table *table
}

// kind is what makes two records the same.
type kind struct {
	level                         slog.Level
	message, component, partition string
}

// table is the kinds that were seen lately.
type table struct {
	period time.Duration

	mu    sync.Mutex
	kinds map[kind]*burst
}

// burst is a kind that has been written.
type burst struct {
	written time.Time   // when, last
	held    int         // how many were left out since
	over    *time.Timer // reports them when no record comes to do it
	last    *Limiter    // the handler the last of them came by
	own     []slog.Attr // and what it said of component and partition, and what says itself
}

// New returns a handler that passes at most one record of a kind a period on to
// next.
func New(next slog.Handler, period time.Duration) *Limiter {
	return &Limiter{next: next, table: &table{period: period, kinds: make(map[kind]*burst)}}
}

// Enabled implements slog.Handler.
func (l *Limiter) Enabled(ctx context.Context, level slog.Level) bool {
	return l.next.Enabled(ctx, level)
}

// WithAttrs implements slog.Handler.
func (l *Limiter) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := *l
	out.next = l.next.WithAttrs(attrs)
	for _, a := range attrs {
		out.bound.add(a, l.group)
	}
	return &out
}

// WithGroup implements slog.Handler.
func (l *Limiter) WithGroup(name string) slog.Handler {
	out := *l
	out.next, out.group = l.next.WithGroup(name), l.group || name != ""
	return &out
}

// add notes a when it names a component or a partition, and reports whether it
// does.
func (k *kind) add(a slog.Attr, group bool) bool {
	switch {
	case group:
		return false
	case a.Key == "component":
		k.component = a.Value.String()
	case a.Key == "partition":
		k.partition = a.Value.String()
	default:
		return false
	}
	return true
}

// Handle implements slog.Handler.
func (l *Limiter) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		return l.next.Handle(ctx, r)
	}
	k := l.bound
	k.level, k.message = r.Level, r.Message
	var own []slog.Attr
	r.Attrs(func(a slog.Attr) bool {
		switch {
		case k.add(a, l.group):
			own = append(own, slog.String(a.Key, a.Value.String()))
		case a.Value.Kind() == slog.KindLogValuer:
			own = append(own, a)
		}
		return true
	})
	write, held := l.table.admit(k, l, own)
	if !write {
		return nil
	}
	if held > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int(Suppressed, held))
	}
	return l.next.Handle(ctx, r)
}

// admit counts a record of k. It says whether to write it, and how many were
// left out before it.
func (t *table) admit(k kind, by *Limiter, own []slog.Attr) (write bool, held int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	b := t.kinds[k]
	if b == nil && len(t.kinds) >= maxKinds && !t.forget(now) {
		k = kind{level: max(slog.LevelWarn, min(k.level, slog.LevelError)), message: "messages of many kinds"}
		b = t.kinds[k]
	}
	if b == nil {
		t.kinds[k] = &burst{written: now}
		return true, 0
	}
	if now.Sub(b.written) >= t.period {
		held, b.held, b.written = b.held, 0, now
		b.stop()
		return true, held
	}
	b.held++
	b.last, b.own = by, own
	if b.over == nil {
		// A storm that goes on has a record that brings the number along as soon
		// as the period is over; one period more and there is none.
		b.over = time.AfterFunc(b.written.Add(2*t.period).Sub(now), func() { t.end(k, b) })
	}
	return false, 0
}

// forget drops the kinds that have nothing to report and reports whether there
// were any.
func (t *table) forget(now time.Time) (any bool) {
	for k, b := range t.kinds {
		if b.held == 0 && now.Sub(b.written) >= t.period {
			delete(t.kinds, k)
			any = true
		}
	}
	return any
}

// end reports what is still held of a storm that is over. The kind is forgotten:
// should it come again, that is news.
func (t *table) end(k kind, b *burst) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kinds[k] == b && b.held > 0 && time.Since(b.written) >= 2*t.period { // else a record was faster
		t.report(k, b)
	}
}

// Flush reports what is still held. The last line of a program that ends in a
// storm is how long it was.
func (l *Limiter) Flush() {
	t := l.table
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, b := range t.kinds {
		if b.held > 0 {
			b.stop()
			t.report(k, b)
		}
	}
}

// report writes the number of records that no other record will bring along.
// Callers hold mu: who has flushed has everything written, and a writer that
// blocks would block them all anyway.
func (t *table) report(k kind, b *burst) {
	delete(t.kinds, k)
	r := slog.NewRecord(time.Now(), k.level, k.message, 0)
	r.AddAttrs(b.own...)
	r.AddAttrs(slog.Int(Suppressed, b.held))
	_ = b.last.next.Handle(context.Background(), r) // as little as slog itself could do about it
}

func (b *burst) stop() {
	if b.over != nil {
		b.over.Stop()
		b.over = nil
	}
}
