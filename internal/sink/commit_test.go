package sink

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/codec"
)

// isPlan tells the commit of a plan from the commit past it.
func isPlan(req kmsg.Request) bool {
	for _, t := range req.(*kmsg.OffsetCommitRequest).Topics {
		for _, p := range t.Partitions {
			if p.Metadata != nil && *p.Metadata != "" {
				return true
			}
		}
	}
	return false
}

// TestCommitFails answers the commit of the plan, and then the one past it,
// with every error a coordinator has; REQUEST_TIMED_OUT is answered after the
// commit was applied.
func TestCommitFails(t *testing.T) {
	t.Parallel() // it waits more than it works
	l := newLab(t, 2)
	s := l.start()
	l.produce(20)
	l.settled()
	for _, e := range []*kerr.Error{
		kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.RebalanceInProgress, kerr.FencedInstanceID,
		kerr.CoordinatorNotAvailable, kerr.CoordinatorLoadInProgress, kerr.NotCoordinator, kerr.RequestTimedOut,
		kerr.UnknownServerError, kerr.OffsetMetadataTooLarge,
	} {
		for _, plans := range []bool{true, false} {
			fault := l.cluster.Fault(kfake.Fault{
				Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: e, Count: 1,
				When: func(req kmsg.Request) bool { return isPlan(req) == plans },
			})
			l.produce(10)
			l.settled()
			l.exact()
			if fault.Hits() == 0 {
				t.Errorf("%s: no commit met it", e.Message)
			}
			fault.Remove()
			if t.Failed() {
				t.Fatalf("after %s of plans %t", e.Message, plans)
			}
		}
	}
	t.Log(s.sink.outcomes())
}

// TestCoordinatorMoves hands the group from broker to broker while the sink
// inserts, and leaders with it.
func TestCoordinatorMoves(t *testing.T) {
	l := newLab(t, 2)
	for range 2 {
		if _, _, err := l.cluster.AddNode(-1, 0); err != nil {
			t.Fatal(err)
		}
	}
	s := l.start()
	l.produce(20)
	l.settled()
	stop := l.load()
	defer stop()
	coordinators := make(map[int32]bool)
	for moves := range 6 {
		was := s.sink.stats.stored.Load() + s.sink.stats.recovered.Load()
		l.cluster.RehashCoordinators()
		if moves%3 == 0 {
			l.cluster.ShufflePartitionLeaders()
		}
		coordinators[l.cluster.CoordinatorFor(group)] = true
		eventually(t, "a commit finds the coordinator", func() error {
			if s.sink.stats.stored.Load()+s.sink.stats.recovered.Load() == was {
				return errCut
			}
			return nil
		})
	}
	stop()
	if len(coordinators) < 2 {
		t.Errorf("coordinators were %v; want several", coordinators)
	}
	l.settled()
	l.exact()
	t.Log(s.sink.outcomes())
}

// TestOffsetsMovedBack starts a sink behind what is stored: offsets reset by
// hand, lost with the group, or overtaken by a commit that was late. The stored
// rows are recognised, missing ones among them are inserted.
func TestOffsetsMovedBack(t *testing.T) {
	l := newLab(t, 2)
	s := l.start(func(c *Config) { c.FlushRows = 40 })
	for range 5 {
		l.produce(60, twoMonths)
		l.settled()
	}
	s.stop()
	l.commit(0, 10, "")
	l.commit(1, 0, "")
	const some = "_part = 1 AND _offset BETWEEN 20 AND 70"
	l.uncountAll(some)
	l.lose("events", some)
	l.produce(60, twoMonths)
	s = l.start(func(c *Config) { c.FlushRows = 40 })
	l.settled()
	l.exact()
	s.stop()
	if got := s.sink.stats.reinserted.Load(); got == 0 {
		t.Error("nothing was reinserted")
	}

	// The group forgot everything.
	if _, err := l.admin.DeleteGroups(t.Context(), group); err != nil {
		t.Fatal(err)
	}
	l.start()
	l.produce(10, twoMonths)
	l.settled()
	l.exact()
}

// TestRetryAcrossARestore has a client send an event of the gap again that an older
// ClickHouse leaves. In the order of docs/backup.md, no sink between the restore and the
// offsets, it counts once.
func TestRetryAcrossARestore(t *testing.T) {
	l := newLab(t, 1)
	s := l.start()
	l.produce(20)
	l.settled()
	l.one(0, withID("a"))
	l.produce(20)
	l.settled()
	s.stop()
	l.uncountAll("_offset >= 20")
	l.lose("events", "_offset >= 20")
	l.repeat(0, withID("a"))
	l.produce(5)
	l.commit(0, 0, "")
	l.start()
	l.settled()
	l.exact()
}

// TestPlanOvertakenByAnOlder has the commit of an old plan arrive late, after
// that of a newer one whose rows are in.
func TestPlanOvertakenByAnOlder(t *testing.T) {
	l := newLab(t, 1)
	s := l.start()
	l.produce(30)
	l.settled()
	l.produce(30)
	l.settled()
	s.stop()
	l.commit(0, 0, plans{{l.src(), 0, 29}}.String())
	l.start()
	l.produce(10)
	l.settled()
	l.exact()
}

func TestPlanRoundTrip(t *testing.T) {
	f := func(want ...plan) {
		t.Helper()
		text := plans(want).String()
		got, err := parsePlans(want[0].first, text)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("parsePlans(%d, %q) = %v, %v; want %v", want[0].first, text, got, err, want)
		}
		// Digits may be missing from the end and still be a number: such a plan
		// must not pass for one that ends before it begins.
		for i := 1; i < len(text); i++ {
			got, err := parsePlans(want[0].first, text[:i])
			if err == nil && len(got) == 0 {
				t.Errorf("prefix %q declares nothing", text[:i])
			}
			next := want[0].first
			for _, p := range got {
				if p.first < next || p.last < p.first {
					t.Errorf("prefix %q: got %v", text[:i], got)
				}
				next = p.last + 1
			}
		}
	}
	f(plan{0, 0, 0})
	f(plan{1, 5, 5})
	f(plan{4294967295, 9_000_000_000, 9_000_000_499})
	f(plan{7, 1<<62 + 1, 1<<63 - 1})
	f(plan{1, 0, 9}, plan{1, 10, 10}, plan{1, 14, 20}) // retention took 11 to 13
	f(plan{4294967295, 1 << 62, 1<<62 + 99_999}, plan{4294967295, 1<<62 + 100_000, 1<<62 + 199_999})

	if p, err := parsePlans(3, ""); p != nil || err != nil {
		t.Errorf("no metadata: got %v, %v", p, err)
	}
	bad := func(metadata string) {
		t.Helper()
		if p, err := parsePlans(10, metadata); err == nil {
			t.Errorf("%q: got %v; want an error", metadata, p)
		}
	}
	bad("v1")
	bad("v1;")
	bad("v1;1")
	bad("v1;1;")
	bad("v1;1;9") // before first
	bad("v1;1;10;")
	bad("v1;-1;10")
	bad("v1;4294967296;10")
	bad("v1;1;9223372036854775808")
	bad("v1;1;1e3")
	bad("v2;1;10")
	bad("v1;1;10;11;20")
	bad("v2;1;20;30")
	bad("v2;1;20;20;30") // at a record of the one before
	bad("v2;1;20;30;29")
	bad("v2;1;20;21;30;31")
	bad("edge-5a2ee3a1") // a member id, which other clients write there
}

// TestPlanBeforeTheLog finds a plan whose records retention has removed, partly
// and wholly, with and without a record behind it.
func TestPlanBeforeTheLog(t *testing.T) {
	t.Parallel() // it waits more than it works
	l := newLab(t, 1)
	l.produce(30)
	trim := func(to int64) {
		t.Helper()
		var offsets kadm.Offsets
		offsets.AddOffset(topic, 0, to, -1)
		if _, err := l.admin.DeleteRecords(t.Context(), offsets); err != nil {
			t.Fatal(err)
		}
	}
	recovered := func(lost uint64) {
		t.Helper()
		s := l.start()
		l.settled()
		s.stop()
		if got := s.sink.stats.lostRecords.Load(); got != lost {
			t.Errorf("%d records counted as lost; want %d", got, lost)
		}
		l.forget(func(p place) bool {
			return p.offset < l.cluster.PartitionInfo(topic, 0).LogStartOffset && l.stored(p) == 0
		})
		l.rawIsLedger()
		l.rollupsAreRaw()
	}
	l.commit(0, 0, plans{{l.src(), 0, 9}}.String())
	trim(4)
	recovered(4)
	first := l.cluster.PartitionInfo(topic, 0).HighWatermark
	l.produce(20)
	l.commit(0, first, plans{{l.src(), first, first + 9}}.String())
	trim(first + 15)
	recovered(15)
	first = l.cluster.PartitionInfo(topic, 0).HighWatermark
	l.produce(10)
	l.commit(0, first, plans{{l.src(), first, first + 9}}.String())
	trim(first + 10) // the log is empty
	recovered(10)
	l.produce(5)
	recovered(0)
}

// TestRecordsLostBeforeTheyWereTaken has retention overtake a sink that was
// away; what is gone is counted.
func TestRecordsLostBeforeTheyWereTaken(t *testing.T) {
	l := newLab(t, 1)
	s := l.start()
	l.produce(10)
	l.settled()
	s.stop()
	l.produce(20)
	var offsets kadm.Offsets
	offsets.AddOffset(topic, 0, 17, -1)
	if _, err := l.admin.DeleteRecords(t.Context(), offsets); err != nil {
		t.Fatal(err)
	}
	s = l.start()
	l.settled()
	if got := s.sink.stats.lostRecords.Load(); got != 7 {
		t.Errorf("%d records counted as lost; want 7", got)
	}
	l.forget(func(p place) bool { return p.offset >= 10 && p.offset < 17 })
	l.exact()
}

// TestOrderOfAnInsert: ClickHouse answers the INSERT, which is then in
// system.processes; the coordinator accepts the plan; the rows go out; the
// coordinator accepts the offset past them.
func TestOrderOfAnInsert(t *testing.T) {
	l := newLab(t, 1)
	s := l.prepare()
	var (
		mu     sync.Mutex
		order  []string
		insert *wireConn
	)
	note := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		if len(order) == 0 || order[len(order)-1] != what {
			order = append(order, what)
		}
	}
	s.click.watch = func(c *wireConn, p []byte, sent bool) {
		switch {
		case sent && bytes.Contains(p, []byte("INSERT INTO \"events\"")), sent && bytes.Contains(p, []byte("INSERT INTO events ")):
			insert = c
			note("insert")
		case sent && bytes.Contains(p, []byte(needle)):
			note("rows")
		case !sent && c == insert && len(p) > 0:
			note("answer")
		}
	}
	l.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Observe: true, Count: -1, When: func(req kmsg.Request) bool {
		if isPlan(req) {
			note("plan")
		} else {
			note("past")
		}
		return true
	}})
	s.run()
	l.produce(5, func(_ int, ev *codec.Event) { ev.Metadata = []byte(`{"x":"` + needle + `"}`) })
	l.settled()
	s.stop()
	mu.Lock()
	defer mu.Unlock()
	if got, want := strings.Join(order, " "), "insert answer plan rows answer past"; !strings.HasPrefix(got, want) {
		t.Errorf("order %q; want %q", got, want)
	}
}
