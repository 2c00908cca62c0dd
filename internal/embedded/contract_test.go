package embedded

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The sink is exactly-once only if the broker keeps these promises, so they
// are tests: a new kfake that breaks one must not get in.

// commitAs sends one offset commit as the given member of the given generation.
func commitAs(t testing.TB, cl *kgo.Client, member string, generation int32, at int64, metadata string) error {
	t.Helper()
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.MemberID, req.Generation = group, member, generation
	rt := kmsg.NewOffsetCommitRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewOffsetCommitRequestTopicPartition()
	rp.Offset, rp.Metadata = at, &metadata
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(testContext(t), cl)
	if err != nil {
		t.Fatal(err)
	}
	return kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
}

func newMember(t testing.TB, b *Broker) *kgo.Client {
	t.Helper()
	return newClient(t, b, kgo.ConsumeTopics(topic), kgo.ConsumerGroup(group), kgo.DisableAutoCommit(),
		kgo.HeartbeatInterval(50*time.Millisecond), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
}

func TestCommitsAreFencedByGeneration(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir()})
	plain := newClient(t, b)
	produce(t, plain, 0, 10, 1)
	f := func(name, member string, generation int32, want error) {
		t.Helper()
		before := b.commits(group)[topic][0].Metadata
		err := commitAs(t, plain, member, generation, 5, name)
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v; want %v", name, err, want)
		}
		after := b.commits(group)[topic][0].Metadata
		if (want == nil) != (after == name) || want != nil && after != before {
			t.Errorf("%s: metadata went from %q to %q", name, before, after)
		}
	}
	f("nobody is in the group", "", -1, nil)

	cl := newMember(t, b)
	consume(t, cl, 5)
	member, generation := cl.GroupMetadata()
	f("the owner", member, generation, nil)
	f("an older generation", member, generation-1, kerr.IllegalGeneration)
	f("another member", "someone", generation, kerr.UnknownMemberID)
	f("outside the group", "", -1, kerr.UnknownMemberID)

	cl.LeaveGroup()
	f("the owner after it left", member, generation, kerr.IllegalGeneration)

	b = start(t, BrokerConfig{Dir: crash(t, b)})
	plain = newClient(t, b)
	cl = newMember(t, b)
	produce(t, plain, 0, 1, 1)
	consume(t, cl, 1)
	if _, next := cl.GroupMetadata(); next <= generation {
		t.Errorf("generation %d after a kill; want more than %d", next, generation)
	}
}

// TestFetchWakesAtOnce has a fetch wait at the broker for an hour; the record
// must come before the test gives up.
func TestFetchWakesAtOnce(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir()})
	reader := newClient(t, b, kgo.ConsumeTopics(topic), kgo.FetchMaxWait(time.Hour), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	producer := newClient(t, b)
	for i := range 3 {
		produce(t, producer, i, 1, 1)
		consume(t, reader, 1)
	}
}

// TestCooperativeHandover adds a member to a group at work: every record is
// read, and both members end up with partitions.
func TestCooperativeHandover(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir(), Topics: map[string]int32{topic: 4}})
	producer := newClient(t, b, kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	type read struct{ member, value string }
	reads := make(chan read, 10_000)
	ctx, cancel := context.WithCancel(testContext(t))
	var polling sync.WaitGroup
	defer polling.Wait()
	defer cancel()
	join := func(name string) {
		cl := newMember(t, b)
		polling.Go(func() {
			for ctx.Err() == nil {
				cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) { reads <- read{name, string(r.Value)} })
			}
		})
	}
	join("first")
	seen := make(map[string]bool)
	busy := make(map[string]bool)
	for i := 0; !busy["second"]; i++ {
		produce(t, producer, 8*i, 8, 1)
		for len(seen) < 8*(i+1) { // a moved partition is read again: nothing is committed
			select {
			case r := <-reads:
				seen[r.value], busy[r.member] = true, true
			case <-ctx.Done():
				t.Fatalf("%d of %d records read", len(seen), 8*(i+1))
			}
		}
		if i == 0 {
			join("second")
		}
	}
}
