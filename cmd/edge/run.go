package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"edge/internal/clickhouse"
	"edge/internal/codec"
	"edge/internal/embedded"
	engine "edge/internal/embedded/clickhouse"
	"edge/internal/kafka"
	"edge/internal/producer"
	"edge/internal/query"
	"edge/internal/server"
	"edge/internal/sink"
	"edge/internal/stat"
	"edge/migrations"
)

// The parts of a process, numbered in the order they start. They stop in the
// reverse order, front to back, so that each still finds what it drains into.
//
//	                    ┌────────────────────── edge ──────────────────────┐
//	SDKs ── POST ──▶ 8 server ─▶ 7 producer ─▶┐                            │
//	                    │                     ├─▶ 2 broker (or Kafka)      │
//	                    │         6 sink  ◀───┘                            │
//	                    │            └─────────▶┐                          │
//	dashboards ─ GET ─▶ 8 server ─▶ 5 query ───▶├─▶ 3 engine (or ClickHouse)
//	                    │           4 schema ──▶┘                          │
//	Prometheus ── GET ──▶ 1 admin                                          │
//	                    └──────────────────────────────────────────────────┘
//
// 2 and 3 exist only in embedded mode; 5 to 7 as ROLES says. Nothing but their
// two start functions knows which mode it is: it shows in how kafka.Options and
// clickhouse.Options dial.
type app struct {
	cfg      config
	ln       listeners
	log      *slog.Logger
	level    *slog.LevelVar
	registry *prometheus.Registry

	kafka      kafka.Options
	clickhouse clickhouse.Options

	admin    *http.Server
	routes   *http.ServeMux // of admin; takes routes while it serves
	lock     *embedded.DirLock
	broker   *embedded.Broker
	engine   *engine.Child
	pool     *clickhouse.Pool
	query    *query.Engine
	producer *producer.Producer
	server   *server.Server
	sink     *sink.Sink
	checks   []server.Check

	reloads       reloads // files that may change while the process runs
	stopFollowing func()

	background sync.WaitGroup // the sink and what waits for a dependency
	stopSink   context.CancelFunc
	failed     chan error // a listener that broke
}

// listeners are bound by the caller, so that a test runs the program on port 0.
type listeners struct{ public, admin net.Listener }

type step struct {
	name        string
	start, stop func(context.Context) error
}

// run is the program: it returns when ctx has ended and everything is stopped,
// or when it could not start.
func run(ctx context.Context, cfg config, ln listeners, log *slog.Logger, level *slog.LevelVar) error {
	a := &app{cfg: cfg, ln: ln, log: log, level: level, failed: make(chan error, 2)}
	steps := []step{
		{"admin", a.startAdmin, a.stopAdmin},
		{"broker", a.startBroker, a.stopBroker},
		{"engine", a.startEngine, a.stopEngine},
		{"schema", a.startSchema, a.stopSchema},
		{"query", a.startQuery, a.stopQuery},
		{"sink", a.startSink, a.stopSinkAndWait},
		{"producer", a.startProducer, a.stopProducer},
		{"server", a.startServer, a.stopServer},
	}
	var err error
	started := 0
	for _, s := range steps {
		if err = s.start(ctx); err != nil {
			err = fmt.Errorf("start %s: %w", s.name, err)
			break
		}
		started++
	}
	if err == nil {
		log.Info("serving", "addr", ln.public.Addr().String(), "admin", ln.admin.Addr().String(), "embedded", cfg.Embedded, "roles", cfg.Roles)
		select {
		case <-ctx.Done():
			log.Info("stopping")
		case err = <-a.failed:
		}
	}
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.ShutdownTimeout+cfg.PrestopDelay)
	defer cancel()
	for i := started - 1; i >= 0; i-- {
		began := time.Now()
		stopErr := steps[i].stop(stopCtx)
		log.Info("stopped", "part", steps[i].name, "took_ms", time.Since(began).Milliseconds())
		if stopErr != nil {
			err = errors.Join(err, fmt.Errorf("stop %s: %w", steps[i].name, stopErr))
		}
	}
	return err
}

func (a *app) describe(parts ...interface{ Describe(*stat.Set) }) {
	set := new(stat.Set)
	for _, p := range parts {
		p.Describe(set)
	}
	a.registry.MustRegister(set)
}

func (a *app) startAdmin(context.Context) error {
	version, commit := buildVersion()
	a.registry = server.NewRegistry(version, commit)
	a.routes = http.NewServeMux()
	a.routes.Handle("/", server.AdminHandler(a.registry, a.level))
	a.admin = &http.Server{Handler: a.routes, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := a.admin.Serve(a.ln.admin); !errors.Is(err, http.ErrServerClosed) {
			a.failed <- fmt.Errorf("admin listener: %w", err)
		}
	}()
	return nil
}

// stopAdmin lets a scrape finish. A profile or trace that somebody asked a
// minute of does not hold up the stop.
func (a *app) stopAdmin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := a.admin.Shutdown(ctx); err != nil {
		return a.admin.Close()
	}
	return nil
}

// startBroker sets a.kafka, and in embedded mode starts what it dials.
func (a *app) startBroker(ctx context.Context) error {
	c := &a.cfg
	errs := new(kafka.Errors)
	a.describe(errs)
	var own *certificate
	var err error
	if a.kafka, own, err = c.kafkaOptions(); err != nil {
		return err
	}
	a.kafka.Logger, a.kafka.Errors = a.log.With("component", "kafka"), errs
	if !c.Embedded {
		if c.SASLMechanism == "PLAIN" && !c.KafkaTLS {
			a.log.Warn("KAFKA_SASL_MECHANISM=PLAIN without KAFKA_TLS: the password crosses the network as it is")
		}
		return a.followCertificate(own)
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return err
	}
	if a.lock, err = embedded.LockDir(c.DataDir); err != nil {
		return err
	}
	a.broker, err = embedded.StartBroker(ctx, c.brokerConfig(a.lock, a.log))
	if err != nil {
		return errors.Join(err, a.lock.Close())
	}
	a.describe(a.broker)
	a.checks = append(a.checks, server.Check{Name: "broker", Func: a.broker.Ready})
	a.kafka.Brokers, a.kafka.Dial = a.broker.Seeds(), a.broker.Dial
	return nil
}

func (c *config) brokerConfig(lock *embedded.DirLock, log *slog.Logger) embedded.BrokerConfig {
	return embedded.BrokerConfig{
		Dir: c.DataDir, Lock: lock, Listen: c.EmbeddedKafkaListen, NoSync: !c.EmbeddedSync,
		Topics: map[string]int32{c.KafkaTopic: c.partitions(), c.deadLetterTopic(): 1},
		Retention: map[string]embedded.Retention{
			c.KafkaTopic: {Group: c.KafkaGroup, Age: c.EmbeddedRetention},
		},
		Logger: log.With("component", "broker"),
	}
}

func (a *app) stopBroker(ctx context.Context) error {
	if a.broker == nil {
		return nil
	}
	return errors.Join(a.broker.Close(ctx), a.lock.Close())
}

// startEngine sets a.clickhouse, and in embedded mode starts the engine's process.
func (a *app) startEngine(ctx context.Context) error {
	c := &a.cfg
	var own *certificate
	var err error
	if a.clickhouse, own, err = c.clickHouseOptions(); err != nil {
		return err
	}
	if !c.Embedded {
		return a.followCertificate(own)
	}
	cc, err := c.engineConfig(a.log)
	if err != nil {
		return err
	}
	child, err := engine.StartChild(ctx, cc)
	if err != nil {
		return err
	}
	a.engine = child
	a.clickhouse.Dialer = child
	a.clickhouse.Addr = "(embedded)" // errors name it; it has no address
	a.describe(engineStats{child})
	return nil
}

type engineStats struct{ *engine.Child }

func (e engineStats) Describe(set *stat.Set) {
	set.CounterVec("edge_engine_restarts_total", "Times the embedded ClickHouse engine died and was started again.", nil,
		func(emit stat.Emit) { emit(float64(e.Restarts())) })
}

func (a *app) stopEngine(ctx context.Context) error {
	if a.engine == nil {
		return nil
	}
	return a.engine.Close(ctx)
}

// startSchema opens the pool and lays down the schema. Embedded, everything is
// here and must work; otherwise ClickHouse may be away, which is no reason to
// refuse events, so startSink waits for it.
func (a *app) startSchema(ctx context.Context) (err error) {
	if a.pool, err = clickhouse.Open(a.clickhouse); err != nil {
		return err
	}
	a.routes.HandleFunc("/verify", a.verifyHandler)
	a.routes.HandleFunc("/dead-letters", a.deadLettersHandler)
	if !a.cfg.Embedded {
		return nil
	}
	if err = a.migrate(ctx); err == nil {
		err = a.checkLog(ctx)
	}
	if err != nil {
		a.pool.Close()
	}
	return err
}

func (a *app) stopSchema(context.Context) error { a.pool.Close(); return nil }

func (a *app) migrate(ctx context.Context) error {
	return clickhouse.Migrate(ctx, a.clickhouse, a.cfg.migrateOptions(a.log))
}

func (c *config) migrateOptions(log *slog.Logger) clickhouse.MigrateOptions {
	return clickhouse.MigrateOptions{
		Files: migrations.FS, Cluster: c.ClickHouseCluster, TTL: c.TableTTL, Exclusive: c.Embedded,
		Logger: log.With("component", "schema"),
	}
}

// checkLog compares the embedded log with what ClickHouse holds of it, before
// anything is produced or consumed.
func (a *app) checkLog(ctx context.Context) error {
	topic := a.cfg.KafkaTopic
	id, _ := a.broker.TopicID(topic)
	src := sink.SourceID(a.broker.ClusterID(), id, a.broker.Incarnation())
	ends := make(map[int32]int64)
	for _, p := range a.broker.Partitions(topic) {
		ends[p.ID] = p.HighWatermark
	}
	stored, err := sink.StoredBeyond(ctx, a.pool, src, ends)
	if err != nil {
		return err
	}
	_, err = a.broker.Check(ctx, embedded.CheckConfig{
		Group: a.cfg.KafkaGroup, Topics: []string{topic}, Stored: map[string]map[int32]int64{topic: stored},
	})
	if err != nil {
		return err
	}
	a.broker.Open()
	return nil
}

// incarnation is the life of the log that this process serves.
func (a *app) incarnation() uint32 {
	if a.broker == nil {
		return 0
	}
	return a.broker.Incarnation()
}

func (a *app) startQuery(context.Context) error {
	if !a.cfg.has(roleQuery) {
		return nil
	}
	a.query = query.New(a.pool, query.Options{Timeout: a.cfg.QueryTimeout, Keep: a.cfg.QueryKeep})
	a.describe(a.query)
	return nil
}

func (a *app) stopQuery(context.Context) error { return nil }

// startSink starts the sink, behind a ClickHouse that may still be starting,
// and the probe of ClickHouse that readiness reads.
func (a *app) startSink(ctx context.Context) error {
	ctx, a.stopSink = context.WithCancel(context.WithoutCancel(ctx))
	if a.cfg.has(roleSink) || a.cfg.has(roleQuery) {
		a.check(ctx, "clickhouse", a.pool.Ping)
	}
	if !a.cfg.has(roleSink) {
		return nil
	}
	if !a.cfg.has(roleIngest) { // else the producer's own ping tells
		if err := a.checkKafka(ctx); err != nil {
			return err
		}
	}
	c := &a.cfg
	var rescan func()
	if a.broker != nil && a.broker.UncleanHostBoot() {
		rescan = func() {
			if err := a.broker.Scanned(); err != nil {
				a.log.Error("note that the log was scanned", "err", err)
			}
		}
	}
	log := a.log.With("component", "sink")
	a.sink = sink.New(sink.Config{
		Kafka: a.kafka, Topic: c.KafkaTopic, DeadLetterTopic: c.deadLetterTopic(), Group: c.KafkaGroup,
		Incarnation: a.incarnation(), ClickHouse: a.pool, Logger: log,
		FlushInterval: c.FlushInterval, FlushRows: c.FlushRows, FlushBytes: int(c.FlushBytes),
		InsertTimeout: c.InsertTimeout, RevokeTimeout: 20 * time.Second,
		SessionTimeout: c.SessionTimeout, Retention: c.sinkRetention(), Rescan: rescan,
		DedupIDs: c.DedupIDs, DedupAge: c.DedupWindow,
	})
	auditor := &sink.Auditor{ClickHouse: a.pool, Logger: log, Every: time.Minute, Look: time.Hour}
	a.describe(a.sink, auditor)
	a.background.Go(func() { auditor.Run(ctx) })
	a.checks = append(a.checks, server.Check{Name: "sink", Func: func() error { return a.sink.Ready(c.StuckAfter) }})
	a.background.Go(func() {
		until(ctx, log, "ensure topics", a.ensureTopics)
		until(ctx, log, "migrate", a.migrate)
		until(ctx, log, "sink", a.sink.Run)
	})
	return nil
}

func (a *app) stopSinkAndWait(ctx context.Context) error {
	a.stopSink()
	done := make(chan struct{})
	go func() { a.background.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *app) startProducer(ctx context.Context) (err error) {
	c := &a.cfg
	if !c.has(roleIngest) {
		return nil
	}
	ack := producer.AckBroker
	if c.Ack == "memory" {
		ack = producer.AckMemory
	}
	shards := c.Shards
	if shards <= 0 {
		shards = runtime.GOMAXPROCS(0)
	}
	a.producer, err = producer.New(producer.Config{
		Kafka: a.kafka, Topic: c.KafkaTopic, Ack: ack, AckTimeout: c.AckTimeout,
		Shards: shards, RingBatches: c.RingRequests, RingBytes: int64(c.RingBytes),
		MaxInflight: c.MaxInflight, MaxInflightBytes: int(c.MaxBufferedBytes), Linger: c.Linger,
	})
	if err != nil {
		return err
	}
	a.describe(a.producer)
	ctx = context.WithoutCancel(ctx)
	probing, cancel := context.WithCancel(ctx)
	stopSink := a.stopSink
	a.stopSink = func() { cancel(); stopSink() }
	a.background.Go(func() { until(probing, a.log, "ensure topics", a.ensureTopics) })
	a.check(probing, "kafka", func(ctx context.Context) error { return a.kafka.Explain(a.producer.Ping(ctx)) })
	return nil
}

// ensureTopics creates the topics of a real cluster; the embedded broker made
// its own.
func (a *app) ensureTopics(ctx context.Context) error {
	if a.broker != nil {
		return nil
	}
	client, err := a.kafka.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	config := map[string]string{"retention.ms": fmt.Sprint(a.cfg.KafkaRetention.Milliseconds())}
	_, err = kafka.EnsureTopics(ctx, client,
		kafka.Topic{Name: a.cfg.KafkaTopic, Partitions: a.cfg.partitions(), Replicas: a.cfg.KafkaReplication, Config: config},
		kafka.Topic{Name: a.cfg.deadLetterTopic(), Partitions: 1, Replicas: a.cfg.KafkaReplication, Config: map[string]string{"retention.ms": "-1"}})
	return a.kafka.Explain(err)
}

func (a *app) stopProducer(ctx context.Context) error {
	if a.producer == nil {
		return nil
	}
	return a.producer.Close(ctx)
}

func (a *app) startServer(context.Context) error {
	c := &a.cfg
	sc := server.Defaults()
	sc.Events = codec.NewPool(codec.Rules{
		MaxEventBytes: int(c.MaxEventBytes), MaxEvents: c.MaxEvents, MaxFieldBytes: int(c.MaxFieldBytes),
		MinTime: c.MinTime.UnixMilli(), MaxAge: c.MaxAge, MaxAhead: c.MaxAhead,
	})
	sc.Log = a.log.With("component", "http")
	sc.Checks = a.checks
	sc.MaxEventBytes, sc.MaxBodyBytes = int(c.MaxEventBytes), int(c.MaxBodyBytes)
	sc.MaxInflatedBytes, sc.MaxInflightBytes = int(c.MaxInflatedBytes), int64(c.MaxInflightBytes)
	sc.MaxConns, sc.MaxConnsPerIP = c.MaxConns, c.MaxConnsPerIP
	if c.ServerLoops != 0 {
		sc.Loops = max(c.ServerLoops, 0)
	}
	sc.ReadTimeout, sc.WriteTimeout, sc.IdleTimeout = c.ServerReadTimeout, c.ServerWriteTimeout, c.ServerIdleTimeout
	sc.QueryTimeout = c.QueryTimeout
	sc.KeyRate, sc.RetryAfter = c.KeyRate, c.RetryAfter
	sc.WriteKeys, sc.ReadKeys, sc.Origins = c.WriteKeys, c.ReadKeys, c.origins()
	if a.producer != nil {
		sc.Publish, sc.Start, sc.AckTimeout = a.producer.Publish, a.producer.Start, c.AckTimeout
	}
	if a.query != nil {
		sc.Query = a.query.Query
	}
	ln, err := a.newServer(sc)
	if err != nil {
		return err
	}
	a.describe(a.server)
	a.follow()
	go func() {
		if err := a.server.Serve(ln); err != nil {
			a.failed <- fmt.Errorf("public listener: %w", err)
		}
	}()
	return nil
}

// stopServer turns readiness off first and keeps serving while load balancers
// look away.
func (a *app) stopServer(ctx context.Context) error {
	a.server.Drain()
	select {
	case <-ctx.Done():
	case <-time.After(a.cfg.PrestopDelay):
	}
	a.stopFollowing()
	return a.server.Shutdown(ctx)
}
