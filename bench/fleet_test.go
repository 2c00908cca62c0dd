//go:build linux

package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"edge/bench/child"
)

// What a stage stops or kills has ended as it should; what ends before has not.
func TestFleetTellsWhoEndedByItself(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := func(script, want string, before func(*child.Process)) {
		t.Helper()
		fl := &fleet{o: new(options), ctx: ctx, dir: t.TempDir()}
		p, err := fl.start("shell", []string{"sh", "-c", script}, nil, func() error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		before(p)
		if err = fl.end(); (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v; want %q", script, err, want)
		}
	}
	ended := func(p *child.Process) {
		select {
		case <-p.Ended():
		case <-time.After(10 * time.Second):
			t.Error("it runs on")
		}
	}
	const forever = "exec sleep 60"
	f(forever, "", func(p *child.Process) { p.Kill() })
	f(forever, "ended badly", func(*child.Process) {}) // a signal that it does not handle
	f("echo no memory; exit 2", "shell ended by itself: no memory", ended)
	f("exit 0", "shell ended by itself", ended)
	f("exit 0", "shell ended by itself", func(p *child.Process) { ended(p); p.Kill() })
	cancel()
	f("exit 0", "", ended)
}
