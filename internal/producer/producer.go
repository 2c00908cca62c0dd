// Package producer takes whole requests from the HTTP handlers and makes them
// durable in Kafka.
//
//	Publish ─▶ ring of a shard ─▶ shard goroutine ─▶ kgo.Produce ─▶ broker
//	   ▲                                                              │
//	   └────────────── last promise of the request wakes it ──────────┘
//
// A handler could call kgo.Produce itself, but Produce takes a lock per record
// and blocks when its buffer is full. The ring answers in nanoseconds, with
// ErrFull when there is no room, and leaves kgo a few calm callers instead of
// thousands of contending ones.
//
// Who owns the bytes: a published Batch belongs to the producer until the
// promise of its last record has fired, even when the request has long been
// answered 503. An idempotent record in flight cannot be taken back, and kgo
// reads its Value until the promise. So the job holds its own reference to the
// Batch, and only the last promise drops it.
package producer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
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

// Config bounds the producer. Every field is required.
type Config struct {
	Kafka            kafka.Options
	Topic            string
	Ack              Ack
	AckTimeout       time.Duration // how long Publish waits for the broker
	Shards           int           // rings, each with one goroutine
	RingBatches      int           // requests a ring holds
	RingBytes        int64         // record bytes a ring holds
	MaxInflight      int           // records handed to kgo and not yet acknowledged
	MaxInflightBytes int
	Linger           time.Duration // how long kgo waits for more before it sends
}

// Producer is safe for concurrent use.
type Producer struct {
	cfg    Config
	client *kgo.Client
	shards []*ring.Ring[*job]
	full   []stat.Counter // per shard

	// held are the bytes of all requests not yet settled. The rings and kgo
	// have bounds of their own, but a request of which kgo has one record left
	// keeps all its bytes: while one partition is stuck, bulks would pile up at
	// a multiple of what kgo counts.
	held    stat.Gauge
	maxHeld int64
	wg      sync.WaitGroup
	jobs    sync.Pool

	ok, failed, orphaned stat.Counter
	inflight             stat.Gauge
	seconds              *stat.Histogram
	recreated            atomic.Bool // the topic is another one than the client knows
}

// New connects to nothing yet; a broker that is down shows in Publish and Ping.
func New(cfg Config) (*Producer, error) {
	p := &Producer{
		cfg: cfg, full: make([]stat.Counter, cfg.Shards), seconds: stat.NewHistogram(stat.Seconds),
		// Full rings, as much again that their readers popped and cannot hand
		// over, and what kgo holds.
		maxHeld: 2*int64(cfg.Shards)*cfg.RingBytes + int64(cfg.MaxInflightBytes),
	}
	client, err := cfg.Kafka.Client(
		kgo.DefaultProduceTopic(cfg.Topic),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kafka.ByHash{}),
		kgo.ProducerLinger(cfg.Linger),
		kgo.ProducerBatchMaxBytes(1<<20),
		kgo.ProducerBatchCompression(kgo.Lz4Compression(), kgo.NoCompression()),
		kgo.MaxBufferedRecords(cfg.MaxInflight),
		kgo.MaxBufferedBytes(cfg.MaxInflightBytes),
		// The topic exists from start-up on; a broker that is restarting may
		// deny it for a while.
		kgo.UnknownTopicRetries(-1),
		// Nobody waits for a record any more after AckTimeout. What was not sent
		// a while later is dropped, so that a long outage does not end with a
		// burst of events their clients have since sent again. A record that was
		// on the wire is kept, for it may be in the log, and so is what queues
		// behind it in its partition.
		kgo.RecordDeliveryTimeout(cfg.AckTimeout+8*time.Second),
		kgo.ProducerOnDataLossDetected(func(topic string, partition int32) {
			cfg.Kafka.Logger.Error("broker lost acknowledged records, sequence restarted", "topic", topic, "partition", partition)
			cfg.Kafka.Errors.Count("produce", errors.New("data loss"))
		}),
	)
	if err != nil {
		return nil, err
	}
	p.client = client
	p.jobs.New = func() any { return newJob(p) }
	for range cfg.Shards {
		p.shards = append(p.shards, ring.New[*job](cfg.RingBatches, cfg.RingBytes))
	}
	for _, r := range p.shards { // not before all are there: Publish and Close read them unlocked
		p.wg.Go(func() { p.drain(r) })
	}
	return p, nil
}

// Publish hands b's records to the broker. With AckBroker it returns nil when
// the broker has acknowledged every one, ErrTimeout when it has not within
// AckTimeout, or the broker's own error; after these two the outcome is
// unknown. With AckMemory it returns once the ring has taken b. ErrFull and
// ErrClosed mean that nothing was kept.
//
// The caller keeps its own reference to b and must Release it; the producer
// holds another for as long as it reads b's bytes.
func (p *Producer) Publish(b *codec.Batch) error {
	if b.Len() == 0 {
		return nil
	}
	shard := int(b.Hash(0) % uint64(len(p.shards)))
	n := int64(b.Size())
	if held := p.held.Add(n); held > p.maxHeld && held > n { // alone, it is let in whatever its size
		p.held.Add(-n)
		p.full[shard].Inc()
		return ErrFull
	}
	j := p.jobs.Get().(*job)
	j.start(b, p.cfg.Ack)
	// A request heavier than the whole ring would be refused for ever: it counts
	// as heavy as the ring and waits for an empty one.
	weight := int(min(n, p.cfg.RingBytes))
	if err := p.shards[shard].Push(j, weight); err != nil {
		j.cancel()
		if errors.Is(err, ring.ErrFull) {
			p.full[shard].Inc()
			return ErrFull
		}
		return ErrClosed
	}
	if p.cfg.Ack == AckMemory {
		return nil
	}
	return j.wait(p.cfg.AckTimeout)
}

// drain is the one reader of a shard's ring.
func (p *Producer) drain(r *ring.Ring[*job]) {
	var batch [64]*job
	for r.Wait(nil) {
		n := r.Pop(batch[:])
		for i, j := range batch[:n] {
			batch[i] = nil
			p.produce(j)
		}
	}
}

// produce gives j's records to kgo, which blocks while its own bounds are
// reached: the ring behind us then fills, and Publish says so.
func (p *Producer) produce(j *job) {
	n := j.batch.Len()
	p.inflight.Add(int64(n))
	for i := range n {
		p.client.Produce(context.Background(), j.fill(i), j.promise)
	}
}

// Ping asks the cluster for the topic: nil when it can be produced to. A topic
// that somebody deleted and created again is reported once and then taken on:
// the client refuses it until told so, lest records of two topics get mixed.
func (p *Producer) Ping(ctx context.Context) error {
	if p.recreated.CompareAndSwap(true, false) {
		p.client.PurgeTopicsFromProducing(p.cfg.Topic)
		return fmt.Errorf("topic %s was deleted and created again", p.cfg.Topic)
	}
	_, err := kafka.Partitions(ctx, p.client, p.cfg.Topic)
	return err
}

// Close refuses new requests, waits until what was taken is acknowledged or
// ctx ends, and closes the client. Records left then fail their promises.
func (p *Producer) Close(ctx context.Context) error {
	for _, r := range p.shards {
		r.Close()
	}
	drained := make(chan struct{})
	go func() { p.wg.Wait(); close(drained) }()
	var err error
	select {
	case <-drained:
		err = p.client.Flush(ctx)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		behind := 0
		for _, r := range p.shards {
			behind += r.Len()
		}
		err = fmt.Errorf("flush %d records and %d requests behind them: %w", p.inflight.Load(), behind, err)
	}
	p.client.Close() // unblocks a shard that waits for room
	<-drained
	return err
}

// Describe adds the producer's metrics to set.
func (p *Producer) Describe(set *stat.Set) {
	set.CounterVec("edge_produce_records_total", "Records by fate: ok acknowledged, error refused or dropped, orphaned those of either kind whose request had been answered 503 by then.",
		[]string{"result"}, func(emit stat.Emit) {
			emit(float64(p.ok.Load()), "ok")
			emit(float64(p.failed.Load()), "error")
			emit(float64(p.orphaned.Load()), "orphaned")
		})
	set.Histogram("edge_produce_seconds", "From the request entering the ring to the broker's last acknowledgement.", p.seconds)
	set.Gauge("edge_produce_inflight_records", "Records handed to the client and not yet acknowledged.",
		func() float64 { return float64(p.inflight.Load()) })
	set.Gauge("edge_produce_buffered_bytes", "Bytes of those records.",
		func() float64 { return float64(p.client.BufferedProduceBytes()) })
	set.Gauge("edge_produce_held_bytes", "Record bytes of all requests not yet settled, in rings and in the client.",
		func() float64 { return float64(p.held.Load()) })
	p.eachShard(set.GaugeVec, "edge_ring_capacity", "Requests a shard's ring can hold.", func(i int) float64 { return float64(p.shards[i].Cap()) })
	p.eachShard(set.GaugeVec, "edge_ring_used", "Requests in a shard's ring.", func(i int) float64 { return float64(p.shards[i].Len()) })
	p.eachShard(set.CounterVec, "edge_ring_full_total", "Requests a shard's ring refused.", func(i int) float64 { return float64(p.full[i].Load()) })
}

func (p *Producer) eachShard(add func(string, string, []string, func(stat.Emit)), name, help string, value func(int) float64) {
	add(name, help, []string{"shard"}, func(emit stat.Emit) {
		for i := range p.shards {
			emit(value(i), shardNames[min(i, len(shardNames)-1)])
		}
	})
}

var shardNames = func() (names [256]string) {
	for i := range names {
		names[i] = fmt.Sprint(i)
	}
	return
}()

// outcome of a job, as seen by its two sides.
const (
	pending   int32 = iota
	settled         // the last promise fired first
	abandoned       // the request gave up first
)

// job is one request on its way through the ring and kgo. It is shared by the
// request that waits and the promises that settle it; whoever is second to
// leave puts it back.
type job struct {
	p       *Producer
	batch   *codec.Batch
	records []kgo.Record
	started time.Time
	promise func(*kgo.Record, error)
	left    atomic.Int64 // promises to come
	failed  atomic.Int64 // promises that came with an error
	err     atomic.Pointer[error]
	state   atomic.Int32
	refs    atomic.Int32
	done    chan struct{}
	timer   *time.Timer
}

func newJob(p *Producer) *job {
	j := &job{p: p, done: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
	j.timer.Stop()
	j.promise = j.settle
	return j
}

func (j *job) start(b *codec.Batch, ack Ack) {
	b.Retain()
	n := b.Len()
	j.batch, j.started = b, time.Now()
	if cap(j.records) < n {
		j.records = make([]kgo.Record, n)
	}
	j.records = j.records[:n]
	j.left.Store(int64(n))
	j.failed.Store(0)
	j.err.Store(nil)
	j.refs.Store(2)
	j.state.Store(pending)
	if ack == AckMemory {
		j.state.Store(abandoned) // nobody waits, and nobody was told otherwise
		j.refs.Store(1)
	}
}

// fill makes record i ready for kgo.
func (j *job) fill(i int) *kgo.Record {
	r := &j.records[i]
	*r = kgo.Record{
		Value:     j.batch.Record(i),
		Timestamp: j.started,
		Partition: kafka.HashPartition(j.batch.Hash(i)),
	}
	if j.batch.Assigned(i) {
		r.Headers = kafka.AssignedID
	}
	return r
}

// cancel undoes start for a job that no ring took.
func (j *job) cancel() {
	j.p.held.Add(-int64(j.batch.Size()))
	j.batch.Release()
	j.batch = nil
	j.p.jobs.Put(j)
}

// settle is the promise of every record of j; kgo calls it from one goroutine
// at a time or many, in any order.
func (j *job) settle(_ *kgo.Record, err error) {
	if err != nil {
		j.fail(err)
	}
	if j.left.Add(-1) > 0 {
		return
	}
	p, n := j.p, len(j.records)
	p.inflight.Add(-int64(n))
	p.seconds.Observe(time.Since(j.started))
	failed := uint64(j.failed.Load())
	p.failed.Add(failed)
	p.ok.Add(uint64(n) - failed)
	// From here on nobody reads the records: let go of the bytes.
	clear(j.records)
	p.held.Add(-int64(j.batch.Size()))
	j.batch.Release()
	j.batch = nil
	if j.state.CompareAndSwap(pending, settled) {
		j.done <- struct{}{}
	} else if p.cfg.Ack == AckBroker {
		p.orphaned.Add(uint64(n))
	}
	j.release()
}

// fail notes one record's error. It is apart from settle because it keeps err's
// address, which would cost settle an allocation a record, errors or not.
func (j *job) fail(err error) {
	j.p.cfg.Kafka.Errors.Count("produce", err)
	if errors.Is(err, kerr.UnknownTopicID) {
		j.p.recreated.Store(true)
	}
	j.failed.Add(1)
	j.err.CompareAndSwap(nil, &err)
}

// wait parks the request until its last promise or the timeout.
func (j *job) wait(timeout time.Duration) error {
	j.timer.Reset(timeout)
	select {
	case <-j.done:
		j.timer.Stop()
	case <-j.timer.C:
		if j.state.CompareAndSwap(pending, abandoned) {
			j.release()
			return ErrTimeout
		}
		<-j.done // the promise was just first
	}
	var err error
	if e := j.err.Load(); e != nil {
		err = verdict(*e)
	}
	j.release()
	return err
}

// verdict tells the broker's word from kgo giving up (no connection, Close): the
// latter leaves the outcome as open as a timeout does.
func verdict(err error) error {
	var refused *kerr.Error
	if errors.As(err, &refused) {
		return fmt.Errorf("the broker refused: %w", err)
	}
	return fmt.Errorf("%w: %w", ErrTimeout, err)
}

func (j *job) release() {
	if j.refs.Add(-1) > 0 {
		return
	}
	// A request of ten thousand events must not pin its records for ever.
	if cap(j.records) > 1024 {
		j.records = nil
	}
	j.p.jobs.Put(j)
}
