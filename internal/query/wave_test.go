package query

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
)

func TestWaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w waves
		r := Request{EventName: "a", To: 1}
		begun, release := 0, make(chan error)
		ask := func() (*Result, error) {
			begun++
			n := int64(begun)
			err := <-release
			return &Result{Events: n}, err
		}
		type answer struct {
			events int64
			err    error
		}
		call := func(ctx context.Context) chan answer {
			out := make(chan answer, 1)
			go func() {
				res, err := w.do(ctx, r, ask)
				a := answer{err: err}
				if res != nil {
					a.events = res.Events
				}
				out <- a
			}()
			synctest.Wait()
			return out
		}

		first := call(t.Context())
		second, third := call(t.Context()), call(t.Context())
		if begun != 1 {
			t.Fatalf("%d queries under way, want 1", begun)
		}
		release <- nil
		synctest.Wait()
		if a := <-first; a != (answer{1, nil}) {
			t.Errorf("first: %v", a)
		}
		if begun != 2 {
			t.Fatalf("%d queries begun, want the second", begun)
		}
		// The second has begun: who asks now gets the third.
		gaveUp, giveUp := context.WithCancel(t.Context())
		fourth, fifth := call(gaveUp), call(t.Context())
		giveUp()
		if a := <-fourth; !errors.Is(a.err, context.Canceled) {
			t.Errorf("gave up: %v", a)
		}
		broken := errors.New("broken")
		release <- broken
		synctest.Wait()
		for _, c := range []chan answer{second, third} {
			if a := <-c; a != (answer{2, broken}) {
				t.Errorf("second: %v", a)
			}
		}
		if begun != 3 {
			t.Fatalf("%d queries begun, want the third", begun)
		}
		release <- nil
		if a := <-fifth; a != (answer{3, nil}) {
			t.Errorf("an error stayed, or who gave up took the query along: %v", a)
		}
		synctest.Wait()
		if len(w.last) != 0 {
			t.Errorf("%d waves are kept", len(w.last))
		}
	})
}

func TestWaveSurvivesABug(t *testing.T) {
	var w waves
	for range 2 {
		_, err := w.do(t.Context(), Request{}, func() (*Result, error) { panic("a bug") })
		if err == nil || !strings.Contains(err.Error(), "a bug") {
			t.Errorf("got %v", err)
		}
	}
}
