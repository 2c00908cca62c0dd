// Package producer takes whole requests from the HTTP handlers and makes them
// durable in Kafka.
//
//	Publish ─▶ ring of a shard ─▶ shard ─▶ one batch a partition ─▶ broker
//	   ▲                            │                                 │
//	   └── last outcome wakes it ───┴──────────── answers ◀───────────┘
//
// Why not kgo.Produce. It takes locks and some allocations a record, wants a
// Record and a promise for each, and encodes them in a goroutine of its own,
// when here the records of a request lie ready in one arena. So shards write
// the record batches themselves and send them as plain produce requests. kgo
// still does all that is not per record: it dials, authenticates, negotiates
// versions and finds brokers. Its Produce is what the tests compare with.
//
// What must hold, whatever fails: Publish returns nil only for what the broker
// acknowledged, and no record gets into the log twice. The second rests on the
// broker knowing a batch again by its producer id and sequence numbers, hence:
// a batch on the wire never changes and keeps its numbers until its outcome is
// known, and a number that was on the wire never stands for other records. A
// partition whose batch ended any other way than in the log takes a new id.
//
// Who owns the bytes: a published Batch belongs to the producer until the last
// of its records is copied into a batch, even when the request has long been
// answered 503. So the job holds its own reference.
package producer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/codec"
	"edge/internal/kafka"
	"edge/internal/ring"
	"edge/internal/stat"
)

var (
	// ErrFull says that the shard's ring has no room: nothing was kept.
	ErrFull = errors.New("the server is at its limit")
	// ErrTimeout says that the broker has not confirmed in time: the events may
	// still be stored.
	ErrTimeout = errors.New("the broker did not confirm in time")
	// ErrClosed says that the producer is stopping: nothing was kept.
	ErrClosed = errors.New("the server is stopping")
)

// Ack says what Publish waits for.
type Ack int

const (
	// AckBroker waits for the broker's acknowledgement of every record.
	AckBroker Ack = iota
	// AckMemory waits for room in the ring only: what is in memory is lost when
	// the process is killed.
	AckMemory
)

// Config bounds the producer. A zero Ack is AckBroker, a zero Linger does not wait; every
// other field is required.
type Config struct {
	Kafka            kafka.Options
	Topic            string
	Ack              Ack
	AckTimeout       time.Duration // how long Publish waits for the broker
	Shards           int           // rings, each with one goroutine and batches of its own
	RingBatches      int           // requests a ring holds
	RingBytes        int64         // record bytes a ring holds
	MaxInflight      int           // records in batches, not yet acknowledged, of all shards
	MaxInflightBytes int
	Linger           time.Duration // how long a batch waits for more before it is sent
}

// forever fits into the 292 years that a Duration has, also when added to a time.
const forever = 100 * 365 * 24 * time.Hour

// Producer is safe for concurrent use.
type Producer struct {
	cfg      Config
	client   *kgo.Client // connections, metadata; it buffers no record
	metadata *metadata
	shards   []*shard
	jobs     sync.Pool
	waits    sync.Pool

	ctx     context.Context // of what runs beside the shards
	cancel  context.CancelFunc
	helpers sync.WaitGroup
	running sync.WaitGroup // shards

	maxRecords int // of a shard's batches
	maxBytes   int
	small      int64 // smallRequest; tests spread everything
	// Nobody waits for a record any more after AckTimeout. What never left us is
	// dropped a while later, so that a long outage does not end with a burst of
	// events their clients have since sent again. With AckMemory nobody sends again what
	// was answered 202: it waits for as long as it takes, and the full ring refuses more.
	patience time.Duration
	// How long a batch that waits takes records: until it is full when none is dropped, or
	// a trickle would have thousands of batches, each of a few KiB, for a record each.
	gather time.Duration

	lost                     atomic.Int64 // records that failed after their 202
	ok, failed, orphaned     stat.Counter
	inflight, buffered, held stat.Gauge
	seconds                  *stat.Histogram
}

// New connects to nothing yet; a broker that is down shows in Publish and Ping.
func New(cfg Config) (*Producer, error) {
	client, err := cfg.Kafka.Client()
	if err != nil {
		return nil, err
	}
	p := newProducer(cfg, client)
	p.helpers.Go(func() { p.metadata.run(p.ctx) })
	for _, s := range p.shards {
		p.running.Go(s.run)
	}
	return p, nil
}

func newProducer(cfg Config, client *kgo.Client) *Producer {
	p := &Producer{
		cfg: cfg, client: client, seconds: stat.NewHistogram(stat.Seconds),
		maxRecords: max(1, cfg.MaxInflight/cfg.Shards), maxBytes: max(1, cfg.MaxInflightBytes/cfg.Shards),
		patience: cfg.AckTimeout + 8*time.Second, gather: gatherFor, small: smallRequest,
	}
	if cfg.Ack == AckMemory {
		p.patience, p.gather = forever, forever
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.jobs.New = func() any { return &job{p: p} }
	p.metadata = &metadata{name: cfg.Topic, client: client, wanted: make(chan struct{}, 1), changed: p.nudge, count: cfg.Kafka.Errors.Count}
	for range cfg.Shards {
		p.shards = append(p.shards, newShard(p))
	}
	return p
}

func (p *Producer) nudge() {
	for _, s := range p.shards {
		s.nudge()
	}
}

// Publish hands b's records to the broker. With AckBroker it returns nil when
// the broker has acknowledged every one, ErrTimeout when it has not within
// AckTimeout, or the broker's own error; after these two the outcome is
// unknown. With AckMemory it returns once the ring has taken b. ErrFull and
// ErrClosed mean that nothing was kept.
//
// The caller's reference to b is Publish's, which drops it before it waits; the
// producer holds another for as long as it reads b's bytes.
func (p *Producer) Publish(b *codec.Batch) error {
	w := p.newWait()
	waiting, err := p.Start(b, w)
	b.Release()
	if !waiting {
		p.waits.Put(w)
		return err
	}
	return w.outcome(p.cfg.AckTimeout)
}

// Start is Publish for those who cannot sleep, and keep their reference: w hears of the
// outcome, perhaps before Start returns. It reports false when there is nothing to wait for and w
// hears nothing: b is as durable as it gets, or err says why nothing was kept. How
// long to wait is for w to say.
func (p *Producer) Start(b *codec.Batch, w Waiter) (waiting bool, err error) {
	if b.Len() == 0 {
		return false, nil
	}
	if p.cfg.Ack == AckMemory {
		w = nil
	}
	err = p.push(b, w)
	return err == nil && w != nil, err
}

// push puts b into the ring of its shard.
func (p *Producer) push(b *codec.Batch, w Waiter) error {
	n := int64(b.Size())
	s := p.shardFor(b, n)
	p.held.Add(n)
	j := p.jobs.Get().(*job)
	j.start(b, w)
	// A request heavier than the whole ring would be refused for ever. It counts as
	// what fits beside the quarter that a shard lets gather.
	weight := int(min(n, p.cfg.RingBytes-p.cfg.RingBytes/4))
	if err := s.ring.Push(j, weight); err != nil {
		j.cancel()
		if errors.Is(err, ring.ErrFull) {
			s.full.Inc()
			return ErrFull
		}
		return ErrClosed
	}
	return nil
}

// smallRequest is below how many bytes of records a request is small: some fifteen
// events.
const smallRequest = 4 << 10

// shardFor chooses for b, of n bytes. A produce request costs both sides, and a broker
// that fsyncs above all, nearly the same whatever is in it: so small requests gather in
// the first shard while it keeps up. Large ones fill batches anywhere.
func (p *Producer) shardFor(b *codec.Batch, n int64) *shard {
	if first := p.shards[0]; n < p.small && first.keepsUp() {
		return first
	}
	return p.shards[b.Hash(0)%uint64(len(p.shards))]
}

// Ping asks the cluster for the topic: nil when it can be produced to. A topic
// that somebody deleted and created again is reported once.
func (p *Producer) Ping(ctx context.Context) error {
	if p.metadata.recreated.CompareAndSwap(true, false) {
		return fmt.Errorf("topic %s was deleted and created again", p.cfg.Topic)
	}
	return kafka.CheckTopics(ctx, p.client, p.cfg.Topic)
}

// Close refuses new requests, waits until what was taken is acknowledged or
// ctx ends, and closes the client. Records left then fail.
func (p *Producer) Close(ctx context.Context) error {
	for _, s := range p.shards {
		s.ring.Close()
		s.closing.Store(true)
		s.nudge()
	}
	drained := make(chan struct{})
	go func() { p.running.Wait(); close(drained) }()
	var err error
	lost := p.lost.Load()
	select {
	case <-drained:
	case <-ctx.Done():
		behind := 0
		for _, s := range p.shards {
			behind += s.ring.Len()
			s.giveUp.Store(true)
		}
		err = fmt.Errorf("flush %d records and %d requests behind them: %w", p.inflight.Load(), behind, ctx.Err())
	}
	p.cancel()
	p.client.Close() // ends what is under way
	p.nudge()
	<-drained
	p.helpers.Wait()
	if lost = p.lost.Load() - lost; err != nil && lost > 0 {
		err = fmt.Errorf("%w; %d events that were answered 202 are lost", err, lost)
	}
	return err
}
