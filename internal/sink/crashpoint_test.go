package sink

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"edge/internal/chaos"
	"edge/internal/codec"
)

// cargo is what the flights carry that meet the fault. One insert makes a
// part for each month in events, and for each year in the rollups that have years.
type cargo struct {
	name       string
	partitions int32
	flights    int // side by side
	change     func(i int, ev *codec.Event)
}

func oneMonth(i int, ev *codec.Event) { ev.Timestamp = 1_706_600_000_000 + int64(i)*7919 }

var cargoes = []cargo{
	{"one month", 1, 1, oneMonth},
	{"two months of three partitions", 3, 1, twoMonths},
	{"two flights", 1, 2, oneMonth},
}

// flightRows is how many rows the flights have that a fault strikes.
const flightRows = 90

// trial is one flight that meets one plan.
type trial struct {
	cargo
	plan string
	// takeover: the sink dies with the engine, before it can look at anything,
	// and another one finds its plan. Otherwise it lives on.
	takeover bool
}

// outcome is how a trial went that ended exact.
type outcome struct {
	struck                        []string
	stored                        time.Duration // after take-off
	present, reinserted, repaired uint64
}

// dies reports whether the plan ends the engine.
func (r trial) dies() bool { return !strings.HasPrefix(r.plan, "e") }

// fly runs the trial on an engine of its own: some history in the same hours,
// one flight under the plan, recovery, and the check that nothing is missing,
// doubled or miscounted.
func (r trial) fly(t *testing.T, so string) outcome {
	f := startFragile(t, so)
	l := newLabOn(t, f.Child, r.partitions)
	s := l.start()
	l.produce(60, r.change)
	l.settled()
	s.stop()

	l.produce(flightRows, r.change)
	s = l.prepare(func(c *Config) {
		c.RevokeTimeout = 100 * time.Millisecond
		if r.flights > 1 {
			c.FlushRows = flightRows / r.flights
		}
	})
	if dial := s.click.dial; r.takeover {
		s.click.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if f.struck() != nil {
				return nil, errCut
			}
			return dial(ctx, network, addr)
		}
	}
	f.arm(t, r.plan)
	started := time.Now()
	s.run()
	eventually(t, "the flight is struck or stored", func() error {
		if r.takeover && f.struck() != nil {
			return nil
		}
		return l.atEnd()
	})
	if r.takeover && f.struck() != nil {
		s.kill()
		s = l.start()
		l.settled()
	}
	stored := time.Since(started)
	f.disarm()
	eventually(t, "the engine answers", func() error { return l.pool.Ping(t.Context()) })
	l.exact()
	if !r.dies() {
		// What it acknowledged has to be in its files, too.
		f.restart(t)
		eventually(t, "the engine answers", func() error { return l.pool.Ping(t.Context()) })
		l.exact()
	}
	return outcome{f.struck(), stored, s.sink.stats.present.Load(), s.sink.stats.reinserted.Load(), s.sink.stats.repaired.Load()}
}

// tally adds up the trials of one enumeration.
type tally struct {
	trials, wrong, unnoticed      int
	present, reinserted, repaired uint64
	worst                         time.Duration // from take-off to stored
}

func (y *tally) String() string {
	return fmt.Sprintf("%d trials, %d wrong; recovery found all rows in %d, inserted rows in %d, corrected rollups in %d; the insert succeeded in %d",
		y.trials, y.wrong, y.present, y.reinserted, y.repaired, y.unnoticed)
}

// add flies r and returns how many calls were struck, or -1 for a trial that
// did not get to its end.
func (y *tally) add(t *testing.T, r trial, so string) int {
	var o *outcome
	if ok := t.Run(r.plan, func(t *testing.T) {
		got := r.fly(t, so)
		o = &got
		t.Logf("%s: present %d, reinserted %d, repaired %d", strings.Join(o.struck, ", "), o.present, o.reinserted, o.repaired)
	}); !ok {
		y.wrong++
		if o == nil {
			y.trials++
		}
	}
	if o == nil {
		return -1
	}
	if len(o.struck) > 0 {
		y.trials++
		y.worst = max(y.worst, o.stored)
		y.present += o.present
		y.reinserted += o.reinserted
		y.repaired += o.repaired
		if o.present+o.reinserted == 0 {
			y.unnoticed++
		}
	}
	return len(o.struck)
}

// calls lists what the engine does to its files for one flight of c.
func (c cargo) calls(t *testing.T, so string) []string {
	t.Helper()
	calls := trial{cargo: c, plan: "list"}.fly(t, so).struck
	if len(calls) < 50 {
		t.Fatalf("the engine made %d calls for a flight; is testdata/crash.c preloaded?", len(calls))
	}
	return calls
}

// numbers returns the numbers of the calls of that name.
func numbers(calls []string, name string) []int {
	var at []int
	for i, c := range calls {
		if name == "" || strings.Contains(c, " "+name+" ") {
			at = append(at, i+1)
		}
	}
	return at
}

// spread picks n of points.
func spread(points []int, n int) []int {
	if n >= len(points) {
		return points
	}
	out := make([]int, n)
	for i := range out {
		out[i] = points[(2*i+1)*len(points)/(2*n)]
	}
	return out
}

// pairs says that every point of every mode is to be tried, and of every recovery,
// too, which takes two hours. make chaos tries every death in an insert that the
// sink outlives, every fifth in one recovery of each cargo, and samples the rest.
func pairs() bool { return os.Getenv("EDGE_CHAOS_ALL") == "1" }

// enumeration flies one cargo again and again, with the fault of its mode at
// one call after another.
type enumeration struct {
	trial
	mode string
	at   string // the calls to strike at; empty: all
	// sample is how many of them are tried in an ordinary run.
	sample int
}

// run flies the cargo once for each of calls that e strikes at, and until a
// flight gets through.
func (e enumeration) run(t *testing.T, so string, calls []string) {
	points, every := numbers(calls, e.at), pairs() || chaos.Long() && e.mode == "kill" && e.at == "" && !e.takeover
	switch {
	case every:
	case chaos.Long():
		points = spread(points, 10)
	default:
		points = spread(points, e.sample)
	}
	var y tally
	strike := func(n int) int {
		e.plan = fmt.Sprint(e.mode, " ", n)
		return y.add(t, e.trial, so)
	}
	for _, n := range points {
		strike(n)
	}
	// Not every flight makes the same number of calls: on until one gets through.
	if every && e.at == "" {
		for n := len(calls) + 1; strike(n) > 0; n++ {
		}
	}
	e.report(t, fmt.Sprintf("%s at each %s of an insert", e.mode, cmp.Or(e.at, "call")), &y)
}

// next says what follows the fault.
func (r trial) next() string {
	if r.takeover {
		return "another takes over"
	}
	return "the sink lives on"
}

func (r trial) report(t *testing.T, fault string, y *tally) {
	t.Log(y)
	chaos.Report(t, chaos.Result{Fault: fmt.Sprintf("%s, %s, %s", fault, r.name, r.next()),
		Rounds: y.trials, Accepted: y.trials * flightRows, Lost: y.wrong, Worst: y.worst})
}

// The engine is killed at every call by which an insert changes its files.
//
// libchdb 26.5 makes 156 for one month: of as many deaths none left anything
// wrong. With three rollups it made 112, and a recovery that sends the insert again
// instead of looking at the data miscounted or doubled rows after 78 of them: every
// one after the first part is there.
func TestEngineKilledAtEveryCall(t *testing.T) {
	so := shim(t)
	for _, c := range cargoes {
		calls := c.calls(t, so)
		for _, e := range []enumeration{
			{trial{cargo: c}, "kill", "", 1},
			{trial{cargo: c, takeover: true}, "kill", "", 0},
			// Parts appear by renames: between two of them a crash leaves the same.
			{trial{cargo: c}, "kill", "rename", 2},
			{trial{cargo: c, takeover: true}, "kill", "rename", 4},
			// Dying after a call is dying at the next, except after the last.
			{trial{cargo: c}, "after", "rename", 1},
			{trial{cargo: c}, "tear", "write", 1},
		} {
			if e.sample == 0 && !chaos.Long() && !pairs() {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s %s/%s", c.name, e.mode, cmp.Or(e.at, "call"), e.next()), func(t *testing.T) {
				t.Parallel()
				e.run(t, so, calls)
			})
		}
	}
}

// The engine is killed when a part is to appear, and again at every call of its
// start and of the recovery.
func TestEngineKilledAgainInRecovery(t *testing.T) {
	so := shim(t)
	for _, e := range []struct {
		trial
		// first is the part whose appearing make chaos cuts. With the third, the rows
		// are there and rollups are not; with the second of two months, half of the
		// rows, too, are not.
		first int
	}{{trial{cargo: cargoes[0]}, 2}, {trial{cargo: cargoes[1], takeover: true}, 1}} {
		for i, first := range numbers(e.calls(t, so), "rename") {
			step := 0
			switch {
			case pairs():
				step = 1
			case chaos.Long() && i == e.first:
				step = 5
			case i%3 != 1:
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", e.name, first), func(t *testing.T) {
				t.Parallel()
				var y tally
				again := func(second int) (struck int) {
					e := e.trial
					e.plan = fmt.Sprint("kill ", first, " ", second)
					return y.add(t, e, so)
				}
				if step == 0 {
					again(25 * i)
				} else {
					for second := 1; again(second) == 2; second += step {
					}
				}
				e.report(t, fmt.Sprintf("kill at call %d of an insert, again in the recovery", first), &y)
			})
		}
	}
}

// A call answers that the disk is broken or full. The engine lives, or ends
// itself when it cannot tell what it has lost.
func TestCallFails(t *testing.T) {
	so := shim(t)
	for _, c := range cargoes {
		calls := c.calls(t, so)
		for _, e := range []enumeration{
			{trial{cargo: c}, "eio", "", 2},
			{trial{cargo: c}, "enospc", "write", 2},
		} {
			t.Run(fmt.Sprintf("%s/%s %s", e.name, e.mode, cmp.Or(e.at, "call")), func(t *testing.T) {
				t.Parallel()
				e.run(t, so, calls)
			})
		}
	}
}
