package query

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// callers ask for the same, and their queries end when the test says so.
type callers struct {
	t     *testing.T
	calls calls

	mu    sync.Mutex
	begun []*asked
}

type asked struct {
	ctx context.Context
	end chan error
}

type told struct {
	events int64
	err    error
}

func newCallers(t *testing.T) *callers { return &callers{t: t} }

// call asks and returns where its answer will be.
func (d *callers) call(ctx context.Context) chan told {
	out := make(chan told, 1)
	go func() {
		res, err := d.calls.do(ctx, Request{EventName: "a", To: 1}, func(ctx context.Context) (*Result, error) {
			q := &asked{ctx, make(chan error)}
			d.mu.Lock()
			d.begun = append(d.begun, q)
			n := int64(len(d.begun))
			d.mu.Unlock()
			select {
			case err := <-q.end:
				return &Result{Events: n}, err
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
		answer := told{err: err}
		if res != nil {
			answer.events = res.Events
		}
		out <- answer
	}()
	synctest.Wait()
	return out
}

// queries wants n to have begun.
func (d *callers) queries(n int) {
	d.t.Helper()
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.begun) != n {
		d.t.Fatalf("%d queries have begun; want %d", len(d.begun), n)
	}
}

// query is the nth, counted from 1.
func (d *callers) query(n int) *asked {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.begun[n-1]
}

// end ends query n, counted from 1.
func (d *callers) end(n int, err error) {
	d.query(n).end <- err
	synctest.Wait()
}

func (d *callers) gets(call chan told, want told) {
	d.t.Helper()
	if got := <-call; got != want {
		d.t.Errorf("got %v; want %v", got, want)
	}
}

// keep has answers of so many bytes more be kept.
func (d *callers) keep(bytes int) {
	d.calls.mu.Lock()
	defer d.calls.mu.Unlock()
	d.calls.kept += bytes
}

// empty wants nothing to be kept.
func (d *callers) empty() {
	d.t.Helper()
	synctest.Wait()
	d.calls.mu.Lock()
	defer d.calls.mu.Unlock()
	if n, size := len(d.calls.last), d.calls.kept; n != 0 || size != 0 {
		d.t.Errorf("%d calls are kept, %d bytes", n, size)
	}
}

func TestCalls(t *testing.T) {
	f := func(name string, test func(d *callers)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newCallers(t)
				test(d)
				d.empty()
			})
		})
	}
	broken := errors.New("broken")

	f("those who come during a query share the next", func(d *callers) {
		first := d.call(d.t.Context())
		second, third := d.call(d.t.Context()), d.call(d.t.Context())
		d.queries(1)
		d.end(1, nil)
		d.gets(first, told{1, nil})
		d.queries(2)
		fourth := d.call(d.t.Context()) // the second has begun
		d.end(2, broken)
		d.gets(second, told{2, broken})
		d.gets(third, told{2, broken})
		d.queries(3)
		d.end(3, nil)
		d.gets(fourth, told{3, nil}) // an error does not stay
	})
	f("a long query keeps nobody", func(d *callers) {
		first, second := d.call(d.t.Context()), d.call(d.t.Context())
		<-time.After(callTurn - 1)
		d.queries(1)
		<-time.After(1)
		d.queries(2)
		third := d.call(d.t.Context())
		d.end(1, nil)
		d.gets(first, told{1, nil})
		d.queries(2)
		d.end(2, nil)
		d.gets(second, told{2, nil})
		d.queries(3)
		d.end(3, nil)
		d.gets(third, told{3, nil})
	})
	f("who gives up leaves the others theirs", func(d *callers) {
		short, giveUp := context.WithCancel(d.t.Context())
		first, second := d.call(short), d.call(d.t.Context())
		third := d.call(short)
		giveUp()
		d.gets(first, told{0, context.Canceled})
		d.gets(third, told{0, context.Canceled})
		if d.query(1).ctx.Err() == nil {
			d.t.Error("a query goes on that nobody waits for")
		}
		d.queries(2)
		d.end(2, nil)
		d.gets(second, told{2, nil})
	})
	f("no query for nobody", func(d *callers) {
		first := d.call(d.t.Context())
		short, giveUp := context.WithCancel(d.t.Context())
		second := d.call(short)
		giveUp()
		d.gets(second, told{0, context.Canceled})
		third := d.call(d.t.Context()) // after the second has gone
		d.queries(2)                   // it had no call to wait for
		d.end(1, nil)
		d.gets(first, told{1, nil})
		d.end(2, nil)
		d.gets(third, told{2, nil})
	})
}

func TestKeptAnswers(t *testing.T) {
	const keep = time.Second
	f := func(name string, test func(d *callers)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newCallers(t)
				d.calls.keep = keep
				test(d)
				<-time.After(keep)
				d.empty()
			})
		})
	}
	f("an answer is as old as its query's begin", func(d *callers) {
		first := d.call(d.t.Context())
		d.queries(1)
		<-time.After(callTurn - 1)
		second := d.call(d.t.Context()) // joins a query under way
		d.end(1, nil)
		d.gets(first, told{1, nil})
		d.gets(second, told{1, nil})
		<-time.After(keep - callTurn)
		d.gets(d.call(d.t.Context()), told{1, nil})
		<-time.After(1)
		third := d.call(d.t.Context())
		d.queries(2)
		d.end(2, nil)
		d.gets(third, told{2, nil})
	})
	f("a long query keeps nobody, and its answer is kept", func(d *callers) {
		first := d.call(d.t.Context())
		<-time.After(callTurn)
		second := d.call(d.t.Context())
		d.queries(1)
		<-time.After(callTurn)
		d.queries(2)
		d.end(1, nil)
		d.gets(first, told{1, nil})
		third := d.call(d.t.Context()) // the second's, which is the newest
		d.end(2, nil)
		d.gets(second, told{2, nil})
		d.gets(third, told{2, nil})
	})
	f("an answer that took longer than it is good for is not kept", func(d *callers) {
		first := d.call(d.t.Context())
		<-time.After(keep)
		d.end(1, nil)
		d.gets(first, told{1, nil})
		second := d.call(d.t.Context())
		d.queries(2)
		d.end(2, nil)
		d.gets(second, told{2, nil})
	})
	f("an error is not kept", func(d *callers) {
		broken := errors.New("broken")
		first := d.call(d.t.Context())
		d.end(1, broken)
		d.gets(first, told{1, broken})
		second := d.call(d.t.Context())
		d.queries(2)
		d.end(2, nil)
		d.gets(second, told{2, nil})
	})
	f("nor is a query that nobody waited for", func(d *callers) {
		short, giveUp := context.WithCancel(d.t.Context())
		first := d.call(short)
		giveUp()
		d.gets(first, told{0, context.Canceled})
		second := d.call(d.t.Context())
		d.queries(2)
		d.end(2, nil)
		d.gets(second, told{2, nil})
	})
	f("what is kept is bounded", func(d *callers) {
		d.keep(maxKept) // of other requests
		first := d.call(d.t.Context())
		d.end(1, nil)
		d.gets(first, told{1, nil})
		second := d.call(d.t.Context())
		d.queries(2)
		d.keep(-maxKept)
		d.end(2, nil)
		d.gets(second, told{2, nil})
	})
}

func TestCallThatPanics(t *testing.T) {
	var cs calls
	for range 2 {
		func() {
			defer func() {
				if text := fmt.Sprint(recover()); !strings.Contains(text, "a bug") || !strings.Contains(text, "calls_test.go") {
					t.Errorf("panicked with %s", text)
				}
			}()
			cs.do(t.Context(), Request{}, func(context.Context) (*Result, error) { panic("a bug") })
			t.Error("it did not panic")
		}()
	}
}
