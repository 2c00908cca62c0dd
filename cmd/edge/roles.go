package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"edge/internal/clickhouse"
	"edge/internal/codec"
	"edge/internal/kafka"
	"edge/internal/producer"
	"edge/internal/query"
	"edge/internal/server"
	"edge/internal/sink"
)

// startQuery opens a pool for metrics queries alone: when they occupy all of its
// connections, neither the readiness check nor the audit has to wait. It does not compress,
// because what these queries fetch is mostly states, which do not shrink.
func (a *app) startQuery(context.Context) (err error) {
	if !a.cfg.has(roleQuery) {
		return nil
	}
	o := a.clickhouse
	o.MaxConns, o.Compress = a.cfg.ClickHouseConns, false
	if a.queryPool, err = clickhouse.Open(o); err != nil {
		return err
	}
	a.query = query.New(a.queryPool, query.Options{Timeout: a.cfg.QueryTimeout, Keep: a.cfg.QueryKeep, TTL: a.cfg.TableTTL, States: int(a.cfg.QueryStates)})
	a.describe(a.query)
	return nil
}

func (a *app) stopQuery(ctx context.Context) error {
	if a.queryPool == nil {
		return nil
	}
	return closePool(ctx, a.queryPool)
}

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
	if a.broker != nil && a.broker.Unscanned() {
		rescan = func() {
			if err := a.broker.Scanned(); err != nil {
				a.log.Error("embedded log was scanned and that could not be noted; the next start scans it again", "err", err)
			}
		}
	}
	log := a.log.With("component", "sink")
	a.sink = sink.New(sink.Config{
		Kafka: a.kafka, Topic: c.KafkaTopic, DeadLetterTopic: c.deadLetterTopic(), Group: c.KafkaGroup,
		Lives: a.lives(), ClickHouse: a.pool, Logger: log,
		FlushInterval: c.FlushInterval, FlushRows: c.FlushRows, FlushBytes: int(c.FlushBytes), Inserts: c.FlushInserts,
		InsertTimeout: c.InsertTimeout, RevokeTimeout: 20 * time.Second,
		SessionTimeout: c.SessionTimeout, Retention: c.sinkRetention(), Rescan: rescan,
		DedupIDs: c.DedupIDs, DedupAge: c.DedupWindow,
	})
	auditor := &sink.Auditor{ClickHouse: a.pool, Log: a.audit().Log, Logger: log, Every: time.Minute, Look: time.Hour}
	a.describe(a.sink, auditor)
	a.background.Go(func() { auditor.Run(ctx) })
	a.checks = append(a.checks, server.Check{Name: "sink", Func: func() error { return a.sink.Ready(c.StuckAfter) }})
	a.background.Go(func() {
		first := func(failed, step string, f func(context.Context) error) {
			until(ctx, log, failed, func(ctx context.Context) error {
				err := f(ctx)
				if err != nil {
					a.sink.Failed(fmt.Errorf("%s: %w", step, err))
				}
				return err
			})
		}
		first("topics not created; trying again", "create topics", a.ensureTopics)
		a.checkRetention(ctx, log)
		first("schema not laid down, nothing is stored until it is; trying again", "lay down the schema", a.migrate)
		until(ctx, log, "sink ended, nothing is stored; starting it again", a.sink.Run)
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

// orCores is n, or one per core when n is 0.
func orCores(n int) int { return cmp.Or(n, runtime.GOMAXPROCS(0)) }

func (a *app) startProducer(ctx context.Context) (err error) {
	c := &a.cfg
	if !c.has(roleIngest) {
		return nil
	}
	ack := producer.AckBroker
	if c.Ack == "memory" {
		ack = producer.AckMemory
	}
	a.producer, err = producer.New(producer.Config{
		Kafka: a.kafka, Topic: c.KafkaTopic, Ack: ack, AckTimeout: c.AckTimeout,
		Shards: orCores(c.Shards), RingBatches: c.RingRequests, RingBytes: int64(c.RingBytes),
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
	a.background.Go(func() { until(probing, a.log, "topics not created; trying again", a.ensureTopics) })
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
	config := map[string]string{"retention.ms": a.cfg.topicRetention()}
	return a.kafka.Explain(kafka.EnsureTopics(ctx, client,
		kafka.Topic{Name: a.cfg.KafkaTopic, Partitions: a.cfg.partitions(), Replicas: a.cfg.KafkaReplication, Config: config},
		kafka.Topic{Name: a.cfg.deadLetterTopic(), Partitions: 1, Replicas: a.cfg.KafkaReplication, Config: map[string]string{"retention.ms": "-1"}}))
}

// checkRetention warns of a topic, which somebody else made or changed, that removes events
// before KAFKA_RETENTION is over: edge_retention_headroom_ratio counts with that.
func (a *app) checkRetention(ctx context.Context, log *slog.Logger) {
	if a.broker != nil {
		return
	}
	client, err := a.kafka.Client()
	if err != nil {
		return
	}
	defer client.Close()
	c, err := kafka.TopicCleanup(ctx, client, a.cfg.KafkaTopic)
	if err != nil {
		log.Info("how long the topic keeps events is not known", "err", err)
		return
	}
	if shorter := c.Shorter(a.cfg.sinkRetention()); shorter != "" {
		log.Warn("the topic may remove events before KAFKA_RETENTION is over, stored or not, and sooner than alerts expect",
			"topic", a.cfg.KafkaTopic, "it_has", shorter, "kafka_retention", a.cfg.KafkaRetention.String())
	}
}

func (a *app) stopProducer(ctx context.Context) error {
	if a.producer == nil {
		return nil
	}
	return a.producer.Close(ctx)
}

// rules are what an event has to keep on its way in.
func (c *config) rules() codec.Rules {
	return codec.Rules{
		MaxEventBytes: int(c.MaxEventBytes), MaxEvents: c.MaxEvents, MaxFieldBytes: int(c.MaxFieldBytes),
		MinTime: c.MinTime.UnixMilli(), MaxAge: c.MaxAge, MaxAhead: c.MaxAhead,
	}
}

func (a *app) startServer(context.Context) error {
	c := &a.cfg
	sc := server.Config{
		Events: codec.NewPool(c.rules()),
		Checks: a.checks, Log: a.log.With("component", "http"),
		MaxEventBytes: int(c.MaxEventBytes), MaxBodyBytes: int(c.MaxBodyBytes),
		MaxInflatedBytes: int(c.MaxInflatedBytes), MaxInflightBytes: int64(c.MaxInflightBytes),
		MaxConns: c.MaxConns, MaxConnsPerIP: c.MaxConnsPerIP, Loops: max(orCores(c.ServerLoops), 0),
		ReadTimeout: c.ServerReadTimeout, WriteTimeout: c.ServerWriteTimeout, IdleTimeout: c.ServerIdleTimeout,
		AckTimeout: c.AckTimeout, QueryTimeout: c.QueryTimeout, RetryAfter: c.RetryAfter,
		WriteKeys: c.WriteKeys, ReadKeys: c.ReadKeys, KeyRate: c.KeyRate, Origins: c.origins(),
	}
	if a.producer != nil {
		sc.Publish, sc.Start = a.producer.Publish, a.producer.Start
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
