package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"edge/internal/kafka"
	"edge/internal/server"
)

// checkKafka adds the check of Kafka for a process that only consumes: a sink
// that lost its broker has nothing to store that it knows of.
func (a *app) checkKafka(ctx context.Context) error {
	client, err := a.kafka.Client()
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, client.Close)
	a.check(ctx, "kafka", func(ctx context.Context) error {
		return a.kafka.Explain(kafka.CheckTopics(ctx, client, a.cfg.KafkaTopic))
	})
	return nil
}

// until repeats f until it succeeds or ctx ends. failed is the log's message when it
// does not.
func until(ctx context.Context, log *slog.Logger, failed string, f func(context.Context) error) {
	const pause = 2 * time.Second
	for attempt := 1; ctx.Err() == nil; attempt++ {
		err := f(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		log.Error(failed, "err", err, "attempt", attempt, "pause_ms", pause.Milliseconds())
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// check adds a readiness check that a goroutine keeps up to date: /ready itself
// never waits for anybody.
func (a *app) check(ctx context.Context, name string, ping func(context.Context) error) {
	const every, timeout = time.Second, 3 * time.Second
	p := &probe{err: errors.New("not asked yet")}
	a.checks = append(a.checks, server.Check{Name: name, Func: p.load})
	a.background.Go(func() {
		for ctx.Err() == nil {
			pingCtx, cancel := context.WithTimeout(ctx, timeout)
			p.store(ping(pingCtx))
			cancel()
			select {
			case <-ctx.Done():
			case <-time.After(every):
			}
		}
	})
}

type probe struct {
	mu  sync.Mutex
	err error
}

func (p *probe) load() error     { p.mu.Lock(); defer p.mu.Unlock(); return p.err }
func (p *probe) store(err error) { p.mu.Lock(); defer p.mu.Unlock(); p.err = err }
