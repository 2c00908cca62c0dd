package sink

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/clickhouse"
)

// process is one sink with a network of its own.
type process struct {
	l      *lab
	sink   *Sink
	kafka  *wire
	click  *wire
	pool   *clickhouse.Pool
	member *memberWatch
	end    context.CancelFunc
	done   chan error
	once   sync.Once
	dead   bool  // killed; guarded by the lab
	err    error // what Run returned
}

// memberWatch reads the sink's member id from what its Kafka client logs.
type memberWatch struct {
	slog.Handler
	mu sync.Mutex
	id string
}

func (w *memberWatch) name() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.id
}

func (w *memberWatch) Enabled(context.Context, slog.Level) bool { return true }

func (w *memberWatch) WithAttrs([]slog.Attr) slog.Handler { return w }

func (w *memberWatch) Handle(ctx context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "member_id" && a.Value.String() != "" {
			w.mu.Lock()
			w.id = a.Value.String()
			w.mu.Unlock()
		}
		return true
	})
	if !w.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return w.Handler.Handle(ctx, r)
}

// start runs a sink.
func (l *lab) start(change ...func(*Config)) *process {
	l.t.Helper()
	p := l.prepare(change...)
	p.run()
	return p
}

// prepare makes a process without running its sink.
func (l *lab) prepare(change ...func(*Config)) *process {
	l.t.Helper()
	p := &process{l: l, done: make(chan error, 1)}
	p.kafka = newWire(netDial)
	p.click = newWire(l.engine.DialContext)
	opts := l.clickhouse
	opts.Dialer = p.click
	var err error
	if p.pool, err = clickhouse.Open(opts); err != nil {
		l.t.Fatal(err)
	}
	cfg := l.config()
	cfg.Kafka, cfg.ClickHouse, cfg.Logger = l.kafka, p.pool, l.log("sink")
	cfg.Kafka.Dial = p.kafka.DialContext
	p.member = &memberWatch{Handler: cfg.Kafka.Logger.Handler()}
	cfg.Kafka.Logger = slog.New(p.member)
	for _, f := range change {
		f(&cfg)
	}
	p.sink = New(cfg)
	return p
}

func (p *process) run() {
	ctx, cancel := context.WithCancel(context.Background())
	p.end = cancel
	p.l.mu.Lock()
	p.l.running = append(p.l.running, p)
	p.l.mu.Unlock()
	go func() { p.done <- p.sink.Run(ctx) }()
}

// stop ends the sink in good order.
func (p *process) stop() {
	p.once.Do(func() {
		p.end()
		select {
		case p.err = <-p.done:
		case <-time.After(time.Minute):
			p.l.t.Errorf("the sink did not stop within a minute")
		}
		p.pool.Close()
	})
}

// kill ends the sink as kill -9 would look from outside: its connections break
// and it is heard of no more. The group is told at once, where a real one waits
// for the session to time out.
func (p *process) kill() {
	p.l.mu.Lock()
	p.dead = true
	p.l.mu.Unlock()
	p.click.cut()
	p.kafka.cut()
	p.click.thaw()
	p.kafka.thaw()
	p.stop()
	p.l.evictDead()
}

// evictDead tells the group that every member is gone which is no running
// sink's: the dead, and what the dead left of a join half-way.
func (l *lab) evictDead() {
	info := l.cluster.GroupInfo(group)
	if info == nil {
		return
	}
	alive := make(map[string]bool)
	l.mu.Lock()
	for _, p := range l.running {
		alive[p.member.name()] = !p.dead
	}
	l.mu.Unlock()
	for _, m := range info.Members {
		if !alive[m.MemberID] {
			l.evict(m.MemberID)
		}
	}
}

// evict tells the group that the sink is gone, whether it is or not.
func (p *process) evict() {
	if id := p.member.name(); id != "" {
		p.l.evict(id)
	}
}

// evict makes a member leave. When it was waiting for the leader's sync, the broker of
// the tests miscounts the members that join, and the next rebalance takes all its
// time-out.
func (l *lab) evict(id string) {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = group
	member := kmsg.NewLeaveGroupRequestMember()
	member.MemberID = id
	req.Members = append(req.Members, member)
	if _, err := req.RequestWith(context.Background(), l.producer); err != nil {
		l.t.Errorf("evict member: %v", err)
	}
}
