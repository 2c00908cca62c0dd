package producer

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/kafka"
)

const (
	// Leaders are asked for again at most this often: a broker that turns
	// everything down must not be hammered with metadata requests as well.
	minViewAge = 250 * time.Millisecond
	// Nobody tells a producer that partitions were added.
	maxViewAge = 5 * time.Minute
	askTimeout = 5 * time.Second
)

// view is what is known of the topic, never changed.
type view struct {
	id      [16]byte // zero: the brokers are older than topic ids
	leaders []int32  // by partition; negative: none now
	topics  int      // how many topics of this name there were before
}

// metadata keeps the view of the topic fresh, for all shards.
type metadata struct {
	name      string
	client    *kgo.Client
	view      atomic.Pointer[view]
	wanted    chan struct{}
	changed   func() // called after each change of view
	count     func(string, error)
	recreated atomic.Bool // it is another topic of this name than before
}

// refresh asks for a new view, soon.
func (m *metadata) refresh() {
	select {
	case m.wanted <- struct{}{}:
	default:
	}
}

// run fetches views until ctx ends; the first when somebody asks.
func (m *metadata) run(ctx context.Context) {
	old := time.NewTimer(maxViewAge)
	defer old.Stop()
	for tries := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-m.wanted:
		case <-old.C:
			if m.view.Load() == nil {
				old.Reset(maxViewAge)
				continue
			}
		}
		pause := minViewAge
		if err := m.fetch(ctx); err != nil {
			tries++
			pause = kafka.Backoff(tries)
			m.refresh()
		} else {
			tries = 0
		}
		old.Reset(maxViewAge)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (m *metadata) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req := kmsg.NewPtrMetadataRequest()
	rt := kmsg.NewMetadataRequestTopic()
	rt.Topic = kmsg.StringPtr(m.name)
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(ctx, m.client)
	if err != nil {
		return err
	}
	for i := range resp.Topics {
		if r := &resp.Topics[i]; r.Topic != nil && *r.Topic == m.name {
			if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
				m.count("Metadata", err)
				return err
			}
			m.take(r)
			return nil
		}
	}
	return kerr.UnknownTopicOrPartition
}

func (m *metadata) take(r *kmsg.MetadataResponseTopic) {
	if len(r.Partitions) == 0 {
		return
	}
	v := &view{id: r.TopicID, leaders: make([]int32, len(r.Partitions))}
	for i := range v.leaders {
		v.leaders[i] = -1
	}
	for i := range r.Partitions {
		if p := &r.Partitions[i]; p.Partition >= 0 && int(p.Partition) < len(v.leaders) {
			v.leaders[p.Partition] = p.Leader
		}
	}
	if was := m.view.Load(); was != nil {
		v.topics = was.topics
		switch none := [16]byte{}; {
		case v.id == none: // of an older broker than the last
			v.id = was.id
		case was.id != none && was.id != v.id:
			v.topics++
			m.recreated.Store(true)
		}
	}
	m.view.Store(v)
	m.changed()
}
