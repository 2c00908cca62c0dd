package main

import (
	"context"
	"fmt"
	"log/slog"

	"edge/internal/clickhouse"
	"edge/internal/sink"
	"edge/migrations"
)

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

func (a *app) stopSchema(ctx context.Context) error { return closePool(ctx, a.pool) }

// closePool waits for the connections that are in use, but not for those of a server that
// hangs, beyond ctx: when its process is killed, or this one ends, they are free.
func closePool(ctx context.Context, p *clickhouse.Pool) error {
	closed := make(chan struct{})
	go func() { p.Close(); close(closed) }()
	select {
	case <-closed:
		return nil
	case <-ctx.Done():
		if p.InUse() == 0 { // a part before had all the time
			return nil
		}
		return fmt.Errorf("wait for connections in use: %w", ctx.Err())
	}
}

func (a *app) migrate(ctx context.Context) error {
	return clickhouse.Migrate(ctx, a.clickhouse, a.cfg.migrateOptions(a.log))
}

func (c *config) migrateOptions(log *slog.Logger) clickhouse.MigrateOptions {
	return clickhouse.MigrateOptions{
		Files: migrations.FS, Cluster: c.ClickHouseCluster, TTL: c.TableTTL, MaxAge: c.MaxAge, Exclusive: c.Embedded,
		Logger: log.With("component", "schema"),
	}
}

// checkLog compares the embedded log with what ClickHouse holds of it, before
// anything is produced or consumed.
func (a *app) checkLog(ctx context.Context) error {
	topic := a.cfg.KafkaTopic
	ends := make(map[int32]int64)
	for _, p := range a.broker.Partitions(topic) {
		ends[p.ID] = p.HighWatermark
	}
	stored, err := a.lives().StoredBeyond(ctx, a.pool, a.broker.ClusterID(), a.broker.TopicID(topic), ends)
	if err != nil {
		return err
	}
	known, err := sink.KnownIncarnation(ctx, a.pool, a.broker.ClusterID(), a.broker.TopicID(topic))
	if err != nil {
		return err
	}
	if err := a.broker.Check(ctx, a.cfg.KafkaGroup, topic, known, stored, sink.Declared); err != nil {
		return err
	}
	a.broker.Open()
	return nil
}

// lives are those of the log that this process serves.
func (a *app) lives() sink.Lives {
	if a.broker == nil {
		return sink.Lives{}
	}
	return sink.Lives{Incarnation: a.broker.Incarnation(), Until: a.broker.Until(a.cfg.KafkaTopic)}
}
