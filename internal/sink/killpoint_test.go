package sink

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/codec"
)

// needle is in the rows of a flight that dies, and nowhere else.
const needle = "a value only these rows have"

// death ends a sink at one step: from then on no byte of it goes out.
type death struct {
	s      *process
	once   sync.Once
	struck chan struct{}
}

func newDeath(s *process) *death { return &death{s: s, struck: make(chan struct{})} }

// onWrite strikes after the nth write to ClickHouse that has all of texts.
func (d *death) onWrite(n int, texts ...string) {
	d.s.click.watch = func(_ *wireConn, p []byte, sent bool) {
		for _, text := range texts {
			if !sent || !bytes.Contains(p, []byte(text)) {
				return
			}
		}
		if n--; n == 0 {
			d.once.Do(func() {
				d.s.click.freezeLocked()
				d.s.kafka.freeze()
				close(d.struck)
			})
		}
	}
}

// onCommit strikes when the coordinator gets the commit of a plan, or the one
// past it, which is then applied or not.
func (d *death) onCommit(plans, applied bool) (remove func()) {
	return d.onCommitThat(applied, func(req kmsg.Request) bool { return isPlan(req) == plans })
}

// onCommitTo is onCommit for the first that moves the group to an offset.
func (d *death) onCommitTo(offset int64, applied bool) (remove func()) {
	return d.onCommitThat(applied, func(req kmsg.Request) bool {
		return req.(*kmsg.OffsetCommitRequest).Topics[0].Partitions[0].Offset == offset
	})
}

func (d *death) onCommitThat(applied bool, is func(kmsg.Request) bool) (remove func()) {
	return d.s.l.cluster.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.OffsetCommit}, Observe: applied, Err: kerr.CoordinatorNotAvailable, Count: -1,
		When: func(req kmsg.Request) bool {
			if !is(req) {
				return false
			}
			d.once.Do(func() {
				d.s.click.freeze()
				d.s.kafka.freeze()
				close(d.struck)
			})
			return true
		},
	}).Remove
}

// die starts a sink that dies at the step that arm chooses.
func (l *lab) die(arm func(d *death) (remove func()), change func(*Config)) {
	l.t.Helper()
	s := l.prepare(change)
	d := newDeath(s)
	remove := arm(d)
	s.run()
	select {
	case <-d.struck:
	case <-time.After(30 * time.Second):
		l.t.Error("the step at which it is to die does not come")
	}
	s.kill()
	if remove != nil {
		remove()
	}
}

// onWrite is death.onWrite for die.
func onWrite(n int, texts ...string) func(*death) func() {
	return func(d *death) func() { d.onWrite(n, texts...); return nil }
}

// TestSIGKILLAtC7ToC15 kills the sink at each step of a flight, and the one that
// recovers it at each step of the recovery; a third finds everything once. What
// ClickHouse's own death leaves, C10 to C13, is TestEngineKilledAtEveryCall.
func TestSIGKILLAtC7ToC15(t *testing.T) {
	t.Parallel() // it waits more than it works
	l := newLab(t, 2)
	l.declare(20, func(*lab, string) {}) // history in the same hours
	marked := func(i int, ev *codec.Event) {
		twoMonths(i, ev)
		ev.Metadata = []byte(`{"x":"` + needle + `"}`)
	}
	f := func(name string, present, reinserted uint64, deaths ...func(*death) func()) {
		t.Helper()
		l.produce(50, marked)
		for _, arm := range deaths {
			l.die(arm, func(c *Config) { c.RevokeTimeout = 100 * time.Millisecond })
		}
		s := l.start()
		l.settled()
		l.exact()
		s.stop()
		if p, r := s.sink.stats.present.Load(), s.sink.stats.reinserted.Load(); p != present || r != reinserted {
			t.Errorf("%s: recovery found the batch whole %d times and inserted rows %d times; want %d and %d", name, p, r, present, reinserted)
		}
		if t.Failed() {
			t.Fatalf("after a death at %s", name)
		}
	}
	const insert = `INSERT INTO "events"`
	planned := func(d *death) func() { return d.onCommit(true, true) }
	inserted := func(d *death) func() { return d.onCommit(false, false) }

	f("C7, nothing declared", 0, 0, onWrite(1, insert))
	f("C8, declared, no row sent", 0, 1, planned)
	f("C9, rows sent, the insert not ended", 0, 1, onWrite(1, needle))
	f("C14, inserted, not committed", 1, 0, inserted)
	f("C14, inserted and committed", 0, 0, func(d *death) func() { return d.onCommit(false, true) })
	f("C15, looking for earlier inserts", 0, 1, planned, onWrite(1, "system.processes"))
	f("C15, reading the stored offsets", 0, 1, planned, onWrite(1, "SELECT _offset FROM events"))
	f("C15, inserting the missing rows", 0, 1, planned, onWrite(1, needle))
	f("C15, comparing rollups", 1, 0, planned, onWrite(1, "difference"))
	f("C15, inserting users", 1, 0, planned, onWrite(1, "uniqCombined64State"))
	f("C15, before the commit", 1, 0, inserted, inserted)
}
