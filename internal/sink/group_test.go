package sink

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/chaos"
	"edge/internal/codec"
)

// TestRebalanceMidInsert runs up to three sinks in one group under load. Every few
// hundred milliseconds one starts, one stops in good order, one is killed, or
// one is taken for dead while it is not: its Kafka connections stand still, the
// group gives its partitions away, and then it goes on as if nothing had been.
func TestRebalanceMidInsert(t *testing.T) {
	l := newLab(t, 6)
	r := dice(t)
	patient := func(c *Config) { // several flights
		c.RevokeTimeout, c.SessionTimeout, c.FlushRows, c.Inserts = 2*time.Second, 8*time.Second, 60, 3
	}
	sinks := []*process{l.start(patient)}
	frozen := make(map[*process]bool)
	pick := func() (p *process, rest []*process) {
		i := r.IntN(len(sinks))
		return sinks[i], append(append([]*process(nil), sinks[:i]...), sinks[i+1:]...)
	}
	rounds := chaos.Rounds(10, 40)
	for range rounds {
		stop := l.load()
		time.AfterFunc(time.Second, stop) // who stops may wait for others, and the log would grow for as long
		after(time.Duration(100+r.IntN(300)) * time.Millisecond)
		what := r.IntN(5)
		switch {
		case len(sinks) == 1 || what == 0 && len(sinks) < 3:
			sinks = append(sinks, l.start(patient))
		case what == 1:
			var p *process
			p, sinks = pick()
			p.kafka.thaw()
			p.stop()
		case what == 2:
			var p *process
			p, sinks = pick()
			p.kill()
		default:
			p, _ := pick()
			p.kafka.freeze()
			frozen[p] = true
			p.evict()
		}
		stop()
		for p := range frozen {
			p.evict() // it may have been joining again when it froze
			if r.IntN(2) == 0 {
				p.kafka.thaw()
				delete(frozen, p)
			}
		}
	}
	for p := range frozen {
		p.kafka.thaw()
	}
	l.settled()
	l.exact()
	l.report("sinks come, go, die and freeze under load", rounds)
	for _, p := range sinks {
		p.stop()
		t.Log(p.sink.outcomes())
	}
	l.exact()
}

// TestRepairBesideOtherSinks repairs rollups over and over while another sink
// inserts into the same hours, and takes its time between the part of events
// and the part of a rollup: that insert must not be taken for what a crash left.
func TestRepairBesideOtherSinks(t *testing.T) {
	l := newLab(t, 1)
	view := strings.Replace(l.value("SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = 'events_users_mv'"),
		"count()", "count() + max(sleepEachRow(0.005))", 1)
	l.exec("DROP VIEW events_users_mv")
	l.exec(view)
	if !strings.Contains(view, "sleepEachRow") {
		t.Fatalf("the view takes no time: %s", view)
	}
	const other = "events2"
	if err := l.cluster.CreateTopic(other, 1, nil); err != nil {
		t.Fatal(err)
	}
	sameHour := func(_ int, ev *codec.Event) { ev.Timestamp = 1_700_000_000_000 + ev.Timestamp%1_000_000 }
	beside := l.start(func(c *Config) { c.Topic, c.Group = other, "edge2" })
	quit := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		// No more than the view gets through: what is left at the end would be cut.
		for tick := time.NewTicker(50 * time.Millisecond); ; {
			select {
			case <-quit:
				tick.Stop()
				return
			case <-tick.C:
				var records []*kgo.Record
				for _, r := range l.records(5, sameHour) {
					r.Topic = other
					records = append(records, r)
				}
				l.append(records)
			}
		}
	})
	repaired := uint64(0)
	for range chaos.Rounds(4, 8) {
		first := l.cluster.PartitionInfo(topic, 0).HighWatermark
		l.produce(20, sameHour)
		last := l.cluster.PartitionInfo(topic, 0).HighWatermark - 1
		s := l.start()
		l.settled()
		s.stop()
		l.exec(fmt.Sprintf(`INSERT INTO events_1m (m, event_name, channel, n) SELECT toStartOfMinute(ts) AS m, event_name, channel, toInt64(count()) AS n
			FROM events WHERE _src = %d AND _offset >= %d GROUP BY m, event_name, channel`, l.src(), first))
		l.commit(0, first, plans{{l.src(), first, last}}.String())
		s = l.start()
		l.settled()
		s.stop()
		repaired += s.sink.stats.repaired.Load()
	}
	close(quit)
	load.Wait()
	beside.stop()
	l.rollupsAreRaw()
	if repaired == 0 {
		t.Error("no repair was needed")
	}
	t.Log(beside.sink.outcomes())
}

// The coordinator refuses the offset of one partition once, with an error that the client
// does not retry: rights that were missing for a moment. It is asked again.
func TestOffsetFetchRefusedOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.history(1, 20)
	refused := make(chan struct{})
	l.cluster.ControlKey(int16(kmsg.OffsetFetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		asked := req.(*kmsg.OffsetFetchRequest)
		resp := asked.ResponseKind().(*kmsg.OffsetFetchResponse)
		for _, g := range asked.Groups {
			group := kmsg.NewOffsetFetchResponseGroup()
			group.Group = g.Group
			for _, asked := range g.Topics {
				topic := kmsg.NewOffsetFetchResponseGroupTopic()
				topic.Topic, topic.TopicID = asked.Topic, asked.TopicID
				for _, id := range asked.Partitions {
					p := kmsg.NewOffsetFetchResponseGroupTopicPartition()
					p.Partition, p.Offset, p.ErrorCode = id, -1, kerr.TopicAuthorizationFailed.Code
					topic.Partitions = append(topic.Partitions, p)
				}
				group.Topics = append(group.Topics, topic)
			}
			resp.Groups = append(resp.Groups, group)
		}
		close(refused)
		return resp, nil, true // and no longer in control
	})
	l.start()
	l.produce(10)
	<-refused
	l.settled()
	l.exact()
}

// A sink's repair waits while it has a full block behind it, as it does for the insert of a
// frozen sink. When it is given the partition of that one, it ends the insert all the same.
func TestPartitionGivenWhileARepairWaits(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	lock := l.lockRollups()
	defer lock.unlock()
	first, second := l.start(), l.prepare()
	var kill atomic.Value // what of the KILL QUERY to wait for
	kill.Store("none yet")
	fails, ended := true, make(chan struct{})
	once := sync.OnceFunc(func() { close(ended) })
	second.click.watch = func(c *wireConn, p []byte, sent bool) {
		switch {
		case !sent:
		case fails && bytes.Contains(p, []byte("marker")):
			fails, c.deaf = false, true
		case bytes.Contains(p, []byte("KILL QUERY")) && bytes.Contains(p, []byte(kill.Load().(string))):
			once()
		}
	}
	second.run()
	eventually(t, "each has a partition", func() error {
		if n, m := len(first.owns()), len(second.owns()); n != 1 || m != 1 {
			return fmt.Errorf("%d and %d", n, m)
		}
		return nil
	})
	l.produce(40, func(_ int, ev *codec.Event) { ev.UserID = []byte("marker") })
	eventually(t, "an insert of the second fails", func() error {
		if second.sink.stats.retried.Load() == 0 {
			return errCut
		}
		return nil
	})
	l.produce(4000)
	kill.Store(fmt.Sprintf(",(%d),", first.owns()[0]))
	first.kill()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Errorf("the second has partitions %v and ended no insert of the first", second.owns())
	}
	lock.unlock()
	l.settled()
	l.exact()
}

// owns are the partitions that a sink has.
func (p *process) owns() []int32 {
	p.sink.state.mu.Lock()
	defer p.sink.state.mu.Unlock()
	return slices.Collect(maps.Keys(p.sink.state.partitions))
}

// lockRollups holds the lock of a repair, as another sink would.
func (l *lab) lockRollups() *lock {
	l.t.Helper()
	other := l.prepare()
	l.t.Cleanup(other.pool.Close)
	lock, err := (&session{Sink: other.sink}).lockRollups(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	return lock
}
