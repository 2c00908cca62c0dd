package sink

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"
)

// The topic is deleted and created again under a running sink: what is stored of
// the old one stays, the new one is another log, and nothing needs a restart.
func TestTopicRecreated(t *testing.T) {
	t.Parallel() // it waits more than it works
	l := newLab(t, 1)
	l.start()
	l.produce(100)
	l.settled()
	l.recreate()
	l.append(l.records(50))
	l.logs("150 events of 2 logs, 150 counted")
}

// The same while ClickHouse is away and flights wait for it. Before Kafka 4.1 their commits
// name the topic only, and so would be of the new one.
func TestTopicRecreatedUnderFlights(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		broker []kfake.Opt
	}{{"topic ids", nil}, {"topic names", []kfake.Opt{kfake.MaxVersions(kversion.V3_9_0())}}} {
		t.Run(c.name, func(t *testing.T) {
			l := newLabOn(t, needEngine(t), 1, c.broker...)
			s := l.start(func(c *Config) { c.FlushRows, c.InsertTimeout = 20, 2*time.Second })
			l.produce(10)
			l.settled()
			s.click.cut()
			l.append(l.records(200))
			eventually(t, "flights wait for ClickHouse", func() error {
				if s.sink.stats.retried.Load() == 0 {
					return errCut
				}
				return nil
			})
			l.recreate()
			l.append(l.records(50))
			s.click.mend()
			eventually(t, "the new log is stored", func() error {
				if n := l.value(fmt.Sprintf("SELECT count() FROM events WHERE _src = %d", l.src())); n != "50" {
					return fmt.Errorf("%s events of it", n)
				}
				return nil
			})
			s.stop()
			l.start()
			l.append(l.records(300))
			l.settled()
			if n := l.value(fmt.Sprintf("SELECT count() FROM events WHERE _src = %d", l.src())); n != "350" {
				t.Errorf("%s events of the new log; want 350", n)
			}
			l.rollupsAreRaw()
		})
	}
}

// A plan of the log before is where the group stands, and offsets of that log say nothing
// about this one.
func TestTopicRecreatedBesideAPlan(t *testing.T) {
	l := newLab(t, 1)
	s := l.start()
	l.produce(100)
	l.settled()
	s.stop()
	before := l.src()
	l.recreate()
	l.append(l.records(50))
	l.commit(0, 30, plans{{before, 30, 49}}.String())
	l.start()
	l.logs("150 events of 2 logs, 150 counted")
}

// A commit that comes right after the topic was made anew, which the client has not heard.
func TestCommitAfterTheTopicWasRecreated(t *testing.T) {
	l := newLabOn(t, needEngine(t), 1, kfake.MaxVersions(kversion.V3_9_0()))
	const other = "other"
	client, err := l.kafka.Client(kgo.ConsumerGroup(other), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	meta, err := l.admin.Metadata(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	cfg := l.config()
	cfg.Kafka, cfg.Logger = l.kafka, l.log("sink")
	s := &session{Sink: New(cfg), client: client, source: source{topic: meta.Topics[topic].ID}, ctx: t.Context()}
	if err := s.sameLog(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.recreate()
	if err := s.commit(t.Context(), map[int32]commitOffset{0: {at: 1000}}); !errors.Is(err, kerr.UnknownTopicID) {
		t.Errorf("the commit: %v; want %v", err, kerr.UnknownTopicID)
	}
	if info := l.cluster.GroupInfo(other); info != nil && len(info.Commits[topic]) > 0 {
		t.Errorf("the group stands at %v", info.Commits[topic])
	}
}

// A session that has lost its partitions begins nothing more for them.
func TestNothingBeginsForALostSession(t *testing.T) {
	l := newLab(t, 1)
	cfg := l.config()
	cfg.ClickHouse, cfg.Kafka, cfg.Logger = l.pool, l.kafka, l.log("sink")
	work, lost := context.WithCancelCause(t.Context())
	s := &session{Sink: New(cfg), source: source{logNumbers: logNumbers{now: l.src()}, partitions: 1}, ctx: work, lost: lost, partitions: map[int32]*partition{0: {id: 0}}, filling: newFlight(newBlock())}
	lost(errDisowned)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(t.Context()); !errors.Is(err, errDisowned) {
		t.Errorf("inserts of its partitions were ended, or it does not say what did: %v", err)
	}
}

// recreate deletes the topic and creates it again.
func (l *lab) recreate() {
	l.t.Helper()
	if err := l.cluster.DeleteTopic(topic); err != nil {
		l.t.Fatal(err)
	}
	if err := l.cluster.CreateTopic(topic, 1, nil); err != nil {
		l.t.Fatal(err)
	}
	l.producer.PurgeTopicsFromProducing(topic)
}

// logs waits until events and rollups are what the sentence says.
func (l *lab) logs(want string) {
	l.t.Helper()
	eventuallyWithin(l.t, time.Minute, "events of both logs are stored", func() error {
		got := fmt.Sprintf("%s events of %s logs, %s counted",
			l.value("SELECT toString(count()) FROM events"), l.value("SELECT toString(uniqExact(_src)) FROM events"),
			l.value("SELECT toString(sum(n)) FROM events_1d"))
		if got != want {
			return fmt.Errorf("%s; want %s", got, want)
		}
		return nil
	})
}

// The group's offset is beyond the end of the log: put there by hand, or of a log that was
// truncated. What comes until the log gets there is not passed over.
func TestGroupBeyondTheLog(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.commit(0, 100, "")
	l.produce(50)
	s := l.start()
	eventually(t, "the sink says so", func() error {
		_, err := s.sink.Stuck()
		if err == nil || !strings.Contains(err.Error(), "the group's offset is 100") {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})
	l.produce(70)
	s.stop()
	if at := l.cluster.GroupInfo(group).Commits[topic][0].Offset; at != 100 {
		t.Errorf("the group's offset is moved to %d", at)
	}
	l.commit(0, 0, "")
	l.start()
	l.settled()
	l.exact()
}
