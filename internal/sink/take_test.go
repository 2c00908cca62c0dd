package sink

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/codec"
)

// TestRoomWaitsForPlans has records that may not be taken before the plans of their
// partition are recovered: nothing goes on until the flight that recovers one has landed.
func TestRoomWaitsForPlans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &partition{asked: true, open: plans{{1, 10, 19}}}
		s := &session{
			Sink: New(Config{FlushRows: 10, FlushBytes: 1 << 20, Inserts: 2}), ctx: t.Context(),
			partitions: map[int32]*partition{p.id: p}, filling: newFlight(newBlock()), polled: []polled{{of: p}},
		}
		f := newFlight(newBlock())
		f.recover = true
		if !s.runway.admit(f, s.cfg.Inserts) {
			t.Fatal("not admitted")
		}
		done := make(chan struct{})
		go func() {
			s.room(t.Context())
			close(done)
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Error("it goes on while the plan is recovered")
		default:
		}
		s.runway.leave(f)
		close(f.landed)
		<-done
	})
}

// A partition is given up in good order while its last flight is in the air, and a poll had
// records of it: they are its next owner's. So are those of one that was given back since.
func TestNothingIsTakenOfAPartitionGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, lost := context.WithCancelCause(t.Context())
		old := &partition{id: 0, asked: true, known: true}
		s := &session{
			Sink: New(Config{Topic: topic, FlushRows: 10, FlushBytes: 1 << 20, Inserts: 2, RevokeTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler)}),
			ctx:  ctx, lost: lost, partitions: map[int32]*partition{0: old}, filling: newFlight(newBlock()),
		}
		f := newFlight(newBlock())
		if !s.runway.admit(f, s.cfg.Inserts) {
			t.Fatal("not admitted")
		}
		record := func() *kgo.Record {
			return &kgo.Record{Topic: topic, Value: codec.AppendRecord(nil, &codec.Event{Name: []byte("e"), UserID: []byte("u")})}
		}
		takes := func(when string) {
			t.Helper()
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.take(); len(s.polled) > 0 || !s.filling.empty() {
				t.Errorf("%s, records are taken of it", when)
			}
		}
		s.sort(kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: topic, Partitions: []kgo.FetchPartition{{Partition: 0, Records: []*kgo.Record{record()}}}}}}})
		done := make(chan struct{})
		go func() {
			s.revoked(t.Context(), nil, map[string][]int32{topic: {0}})
			close(done)
		}()
		synctest.Wait() // for the flight to land
		takes("while its last flight lands")
		s.mu.Lock()
		s.polled = []polled{{old, []*kgo.Record{record()}}}
		s.mu.Unlock()
		takes("of a poll that was noted late")
		s.runway.leave(f)
		close(f.landed)
		<-done
		s.mu.Lock()
		s.partitions[0] = &partition{id: 0, known: true}
		s.polled = []polled{{old, []*kgo.Record{record()}}}
		s.mu.Unlock()
		takes("given back")
		lost(nil)
	})
}

// The window of a partition is made of what is stored before the first record that is
// taken, which only overtake knows.
func TestNoWindowBeforeAPartitionIsAsked(t *testing.T) {
	p := &partition{id: 0, known: true}
	s := &session{Sink: New(Config{DedupIDs: 100}), source: source{partitions: 1}, partitions: map[int32]*partition{0: p}}
	if err := s.loadWindows(t.Context()); err != nil || p.window != nil {
		t.Errorf("it has one: %v", err)
	}
}
