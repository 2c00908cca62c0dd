// Package sink moves the topic into ClickHouse: every record becomes one row of
// events and is counted once in every rollup, whatever dies on the way.
//
//	poll ─▶ decode into the filling block ─▶ flight: declare plan ─▶ insert ─▶ commit
//	  ▲            (one goroutine)                (one goroutine each)            │
//	  └───────────────────────────────────────────────────────────────────────────┘
//
// While blocks are inserted the next is filled; one that is full does not wait for those
// before it (runway.go). A block may carry rows of many partitions; per partition they
// form a batch, a contiguous offset range [first,last]. The life of a flight, which is a
// block and its batches:
//
//	FILLING ─▶ PLANNED ─▶ INSERTED ─▶ STORED
//	              │  any error         ▲
//	              ▼                    │
//	          RECOVERING ──────────────┘   (again from its start after any error)
//
// PLANNED: an offset commit at first carries the plan (last) as metadata, or at the
// first of the oldest batch that is not stored, with the plans from there on. The
// group generation fences it: an owner that lost the partition is refused and
// sends nothing. The commit is made after ClickHouse has registered the insert
// and before it gets the first row, so whoever takes the partition over finds
// either no plan, or a plan whose insert it can see, kill and wait for.
//
// STORED: a commit at last+1, with the plans of those behind it, if there are any.
//
// RECOVERING: entered after any error of the insert, and at the start for every
// plan found in the group's offsets. It believes no answer and looks at the
// data, see recover.go.
//
// ClickHouse's own insert deduplication is switched off. Its tokens outlive the
// rows they stand for when the server dies at the wrong moment, and then drop
// data without a word; rows that carry their offset need no token.
package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/clickhouse"
	"edge/internal/kafka"
)

// The most that Config.FlushRows and Config.FlushBytes may be: a larger block would not
// be one block for ClickHouse, see checkSettings.
const (
	MaxFlushRows  = 500_000
	MaxFlushBytes = 128 << 20
)

// MaxInserts is the most that Config.Inserts may be: the plans of as many are well within
// the 4 KiB that brokers take as metadata of an offset.
const MaxInserts = 16

// Config bounds the sink. Every field is required but where a zero is said to mean something.
type Config struct {
	Kafka           kafka.Options
	Topic           string
	DeadLetterTopic string
	Group           string
	Lives           Lives // of the log
	ClickHouse      *clickhouse.Pool
	Logger          *slog.Logger

	// FlushInterval is the shortest time between inserts of blocks that are not full: the
	// first event after a pause is inserted at once, a steady stream this often, and one that
	// fills blocks in four intervals as they fill. Halving it doubles the parts ClickHouse merges.
	FlushInterval time.Duration
	FlushRows     int // a block is full at this many rows
	FlushBytes    int // or at this many bytes of records
	Inserts       int // under way at the same time while blocks are full
	InsertTimeout time.Duration
	// SessionTimeout is after how much silence the group gives this sink's
	// partitions to others, and how long a repair's lock outlives its holder.
	SessionTimeout time.Duration
	// Retention is how long the topic keeps records, stored or not; 0: it never
	// removes one that is not stored.
	Retention time.Duration
	// Rescan, not nil, says that ClickHouse may have lost rows it had answered
	// for (a power cut: parts reach the disk later than the answer), or that the log has
	// lost what would say of an insert that it is not whole. Before
	// anything new is stored, what the log still has is compared with what is
	// stored, and Rescan is called when every hole is filled.
	Rescan func()
	// DedupIDs and DedupAge bound the deduplication window: a repeated event_id
	// is dropped when its first copy is less than this many records of the topic
	// and less than this long ago. DedupIDs 0 turns deduplication off.
	DedupIDs int64
	DedupAge time.Duration
	// RevokeTimeout is how long a rebalance waits for the insert under way.
	RevokeTimeout time.Duration
}

// errDisowned ends a session: a partition may belong to another sink by now,
// and what is in memory is worth nothing.
var errDisowned = errors.New("the sink's time in its group has ended: partitions may be another sink's")

// Sink is one member of the consumer group. Run drives it; the other methods
// may be called from any goroutine.
type Sink struct {
	cfg   Config
	stats stats
	state progress

	rescanned map[int32]bool // partitions whose holes are filled, see rescan.go
	patience  int            // how often a question took too long, see session.patient
}

// New returns a sink that has not connected to anything.
func New(cfg Config) *Sink {
	return &Sink{cfg: cfg, stats: newStats(), state: progress{began: time.Now()}}
}

// Run consumes until ctx ends, then finishes the insert under way, commits and
// leaves the group. It returns only errors that no retry can mend, such as a
// schema that is not the one this binary writes.
func (s *Sink) Run(ctx context.Context) error {
	client, err := s.cfg.Kafka.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	watching, end := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer end()
	watch.Go(func() { s.watchEnds(watching, kadm.NewClient(client)) })
	const minPause, maxPause = 100 * time.Millisecond, 10 * time.Second
	pause := minPause
	for {
		flights := s.stats.stored.Load() + s.stats.recovered.Load()
		err := s.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		s.state.failed(err)
		var fatal *SchemaError
		if errors.As(err, &fatal) {
			return err
		}
		if s.stats.stored.Load()+s.stats.recovered.Load() > flights {
			pause = minPause // it worked until it did not
		}
		s.cfg.Logger.Warn("sink session ended, joining again", "err", err, "pause_ms", pause.Milliseconds())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

// session is one membership in the group, from join to leave. Every doubt about
// who owns a partition ends it, and the next one starts from what is committed.
type session struct {
	*Sink
	client *kgo.Client
	source source

	// lost ends the insert under way and the session.
	ctx  context.Context
	lost context.CancelCauseFunc

	// byID is whether commits name the log's topic by its id.
	byID atomic.Bool

	// wake ends a wait for records or room when a flight lands or a partition comes.
	wake chan struct{}

	runway  runway
	lookout lookout
	inserts kept

	mu         sync.Mutex // guards what follows against the group callbacks
	partitions map[int32]*partition
	filling    *flight
	spares     []*block
	launched   time.Time // of the last flight
	polled     []polled
	resting
}

// partition is what a session knows of one it owns.
type partition struct {
	id   int32
	next int64 // offset of the next record to take
	read int64 // the offset from which the log is read
	open plans // declared by an earlier owner, to be recovered before anything else
	high int64 // high watermark last seen

	known bool // next was committed or taken, not assumed
	start bool // it was not when it was assigned: reading begins at the start of the log
	asked bool // events does not go beyond next, see overtake

	window *window // ids taken so far; nil until rebuilt from events
}

// stands is where the group is with a partition newly assigned: at the first offset that
// is not stored for certain, with what is declared from there.
func (p *partition) stands() commitOffset {
	if len(p.open) > 0 {
		return commitOffset{p.open[0].first, p.open.String()}
	}
	return commitOffset{at: p.next}
}

func (p *partition) from() int64 { return p.stands().at }

func (s *Sink) session(ctx context.Context) error {
	src, err := s.prepare(ctx)
	if err != nil {
		return err
	}
	// Shutdown ends the polling (ctx) but not the insert under way.
	work, lost := context.WithCancelCause(context.WithoutCancel(ctx))
	defer lost(nil)
	t := &session{
		Sink: s, source: src, ctx: work, lost: lost,
		wake:       make(chan struct{}, 1),
		partitions: make(map[int32]*partition),
		filling:    newFlight(newBlock()),
		resting:    resting{brought: 2},
	}
	t.client, err = s.cfg.Kafka.Client(
		kgo.ConsumerGroup(s.cfg.Group),
		kgo.ConsumeTopics(s.cfg.Topic),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		// Before this member joins, what is under way when a recovery begins and then
		// the recovery itself may each take RevokeTimeout to land, and between them
		// declared batches are read; longer than that and it is as good as silent.
		kgo.RebalanceTimeout(2*s.cfg.RevokeTimeout+s.cfg.SessionTimeout),
		kgo.SessionTimeout(s.cfg.SessionTimeout),
		kgo.HeartbeatInterval(1*time.Second),
		kgo.OnOffsetsFetched(t.offsetsFetched),
		kgo.AdjustFetchOffsetsFn(t.adjustOffsets),
		kgo.OnPartitionsAssigned(t.assigned),
		kgo.OnPartitionsRevoked(t.revoked),
		kgo.OnPartitionsLost(t.partitionsLost),
		// Packed; in memory it is ten times that, records and all, and there is
		// one fetch ahead of the one that is being taken. Larger ones are unpacked
		// in one go, and what is read later is no longer in the processor's caches.
		kgo.FetchMaxBytes(2<<20),
		kgo.FetchMaxPartitionBytes(512<<10),
		kgo.WithPools(new(recycled)),
		kgo.KeepControlRecords(), // a transaction's marker has an offset, too: it is a dead letter
		// Dead letters: kept through every outage, the partition waits for them.
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytes(maxLetterBytes),
	)
	if err != nil {
		return err
	}
	err = t.run(ctx)
	t.close(err)
	return err
}

// run polls until ctx ends (nil) or the session is lost.
func (t *session) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if t.ctx.Err() != nil {
			return context.Cause(t.ctx)
		}
		t.mu.Lock()
		wants := len(t.polled) == 0 && !t.unasked()
		t.mu.Unlock()
		var fetches kgo.Fetches
		if wants {
			t.rest(ctx)
			fetches = t.poll(ctx)
		}
		t.mu.Lock()
		// Up to here no rebalance happens, or records could be of a partition that has come
		// back since. All else goes by mu and by identity, and is told at once when the
		// group is lost.
		t.sort(fetches)
		t.client.AllowRebalance()
		err := context.Cause(t.ctx)
		if err == nil {
			err = t.begin(ctx)
		}
		if err != nil {
			t.mu.Unlock()
			if ctx.Err() != nil && t.ctx.Err() == nil {
				return nil // what is taken is of partitions that were fit before
			}
			return err
		}
		t.recoverOpen()
		if t.ctx.Err() == nil {
			t.take()
			t.launch(false)
		}
		t.mu.Unlock()
		t.room(ctx)
	}
	return nil
}

// begin makes newly assigned partitions fit to take records. Callers hold mu.
func (t *session) begin(ctx context.Context) (err error) {
	// Nothing of it is for a session that has lost them, and that is then what ended it.
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(t.ctx, end)()
	defer func() {
		if err != nil {
			err = cmp.Or(context.Cause(t.ctx), err)
		}
	}()
	if err := t.rescan(ctx); err != nil {
		return fmt.Errorf("rescan the log: %w", err)
	}
	if err := t.overtake(ctx); err != nil {
		return fmt.Errorf("compare the group's offsets with what is stored: %w", err)
	}
	return t.loadWindows(ctx)
}

// limited bounds what is asked about a partition before it is fit: a server that hangs holds
// neither the session for ever nor the rebalances that wait for mu.
func (t *session) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, 10*t.cfg.InsertTimeout)
}

// patient is limited for a question about all that is stored, asked with mu free: one that
// merely takes long has twice the time when it is asked again, or would never be answered.
func (t *session) patient(ctx context.Context) (context.Context, context.CancelFunc) {
	asking, end := context.WithTimeout(ctx, 10*t.cfg.InsertTimeout<<t.patience)
	return asking, func() {
		if ctx.Err() == nil && asking.Err() != nil {
			t.patience = min(t.patience+1, 10)
		}
		end()
	}
}

// close ends the session: after a clean end everything taken is stored first.
func (t *session) close(cause error) {
	t.mu.Lock()
	if cause == nil {
		ctx, cancel := context.WithTimeout(t.ctx, t.cfg.RevokeTimeout)
		if err := t.drain(ctx); err != nil {
			t.cfg.Logger.Warn("insert not finished, its plan stays for the next start", "err", err)
			t.lost(err)
		}
		cancel()
	} else {
		t.lost(cause)
	}
	// Whatever is still flying now stops at its next step, and nothing follows it.
	t.lost(errDisowned)
	t.mu.Unlock()
	for _, f := range t.runway.all() {
		<-f.landed
	}
	t.lookout.close()
	t.inserts.close()
	t.mu.Lock()
	t.partitions = nil
	t.mu.Unlock()
	t.client.CloseAllowingRebalance()
	t.state.left()
}
