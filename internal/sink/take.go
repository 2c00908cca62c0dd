package sink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// How records come from the log into the filling flight, and how far the log goes.

// polled are records of a partition that are not taken yet: the filling block
// was full before they came.
type polled struct {
	of      *partition
	records []*kgo.Record
}

// poll waits for records, for the time of the next flight, or for a flight to
// land, whichever is first.
func (t *session) poll(ctx context.Context) kgo.Fetches {
	t.mu.Lock()
	room, wait := t.cfg.FlushRows-t.filling.block.rows(), t.nextLook()
	t.mu.Unlock()
	pollCtx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	stop := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-t.wake:
			cancel()
		case <-t.ctx.Done():
			cancel()
		case <-stop:
		}
	})
	fetches := t.client.PollRecords(pollCtx, max(room, 1))
	close(stop)
	watcher.Wait()
	return fetches
}

// room returns when the filling block can take more: with a full block that cannot
// leave, or with records that wait for plans to be recovered, there is nothing to poll
// for. Rebalances go on meanwhile. A partition that one brings ends the wait: a flight may
// be repairing, and wait for an insert of the partition's owner before, which begin ends.
func (t *session) room(ctx context.Context) {
	for {
		t.mu.Lock()
		if t.filling.full(&t.cfg) {
			t.launch(false)
		}
		waits := (t.filling.full(&t.cfg) || len(t.polled) > 0 && t.open()) && !t.unasked()
		f := t.runway.first()
		t.mu.Unlock()
		if !waits || f == nil {
			return
		}
		select {
		case <-f.landed:
		case <-t.wake:
		case <-ctx.Done():
			return
		case <-t.ctx.Done():
			return
		}
	}
}

// unasked tells whether a partition is new: begin comes before anything else. Callers hold mu.
func (t *session) unasked() bool {
	for _, p := range t.partitions {
		if !p.asked {
			return true
		}
	}
	return false
}

// watchEnds asks where the log ends, for the lag, as long as the sink runs. It is apart
// from sessions, which see nothing of the log while they wait for a ClickHouse that does
// not answer, or for one to begin. Between two, others may be storing what was this sink's.
func (s *Sink) watchEnds(ctx context.Context, admin *kadm.Client) {
	tick := time.NewTicker(endsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := s.readEnds(ctx, admin); err != nil && ctx.Err() == nil {
				s.cfg.Kafka.Errors.Count("list_offsets", err)
			}
		}
	}
}

// endsEvery is how late a lag is noticed at most.
const endsEvery = 5 * time.Second

func (s *Sink) readEnds(ctx context.Context, admin *kadm.Client) error {
	ctx, cancel := context.WithTimeout(ctx, endsEvery)
	defer cancel()
	ends, err := admin.ListEndOffsets(ctx, s.cfg.Topic)
	if err != nil {
		return err
	}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Err == nil {
			s.state.end(o.Partition, o.Offset)
		}
	})
	ids := s.state.without()
	if len(ids) == 0 {
		return nil
	}
	committed, err := admin.FetchOffsets(ctx, s.cfg.Group)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if o, ok := committed.Lookup(s.cfg.Topic, id); ok && o.Err == nil {
			s.state.passed(id, o.At)
		}
	}
	return nil
}

// sort notes what a poll brought.
func (t *session) sort(fetches kgo.Fetches) {
	healthy := true
	fetches.EachError(func(topic string, p int32, err error) {
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return
		}
		healthy = false
		t.cfg.Kafka.Errors.Count("fetch", err)
		t.state.failed(fmt.Errorf("fetch %s/%d: %w", topic, p, err))
		t.cfg.Logger.Error("fetch", "partition", p, "err", err)
		if errors.Is(err, kerr.UnknownTopicID) {
			t.recreated(err)
		}
	})
	if healthy {
		t.state.idle()
	}
	t.resting.brought += min(fetches.NumRecords(), 1)
	fetches.EachPartition(func(ft kgo.FetchTopicPartition) {
		p := t.partitions[ft.Partition]
		if p == nil {
			return // revoked between fetch and poll
		}
		p.high = max(p.high, ft.HighWatermark)
		t.polled = append(t.polled, polled{p, ft.Records})
	})
}

// recreated ends the session because there is another log under the topic's name. That one
// gets a session of its own, which gives it a source number of its own.
func (t *session) recreated(err error) {
	t.lost(fmt.Errorf("topic %s was deleted and created again: %w", t.cfg.Topic, err))
}

// take decodes polled records into the filling flight until it is full.
func (t *session) take() {
	for len(t.polled) > 0 {
		next := &t.polled[0]
		p := next.of
		switch {
		case t.partitions[p.id] != p:
			next.records = nil // revoked since: its next owner takes them
		case len(p.open) > 0:
			return
		}
		for len(next.records) > 0 && !t.filling.full(&t.cfg) {
			t.takeRecord(p, next.records[0])
			next.records[0].Recycle()
			next.records[0] = nil
			next.records = next.records[1:]
		}
		t.state.seen(p, t.filling.batches[p.id])
		if len(next.records) > 0 {
			return
		}
		t.polled = t.polled[1:]
	}
	t.polled = nil
}

func (t *session) takeRecord(p *partition, r *kgo.Record) {
	switch {
	case r.Offset < p.read:
		// What is in it was never stored, and what its offsets stand for may have been.
		t.lost(fmt.Errorf("partition %d: the group's offset is %d, and the log ends before it and goes on at %d: the log was truncated, or the offset is of another log", p.id, p.read, r.Offset))
		return
	case r.Offset < p.next:
		return // part of a plan that is being recovered
	}
	if r.Offset > p.next && p.known {
		t.lostRange(p.id, p.next, r.Offset-1)
	}
	t.filling.take(r, p.window)
	p.next, p.known = r.Offset+1, true
}

// lostRange notes offsets that were never taken and are no longer in the log.
func (t *session) lostRange(id int32, first, last int64) {
	t.stats.lostRecords.Add(uint64(last - first + 1))
	t.cfg.Logger.Error("records are not in the log any more", "partition", id, "first", first, "last", last)
}
