//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"edge/bench/rival"
	"edge/internal/codec"
	"edge/internal/kafka"
	"edge/internal/producer"
)

// filledTopic is a broker with n records of g, produced as edge does, and the first of
// them as a ready block.
func (b *bench) filledTopic(f *fleet, g *generated, n int64) (*broker, *rival.Block, error) {
	to, err := f.broker(1)
	if err != nil {
		return nil, nil, err
	}
	p, err := producer.New(producer.Config{
		Kafka: kafka.Options{Brokers: []string{to.addr}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))},
		Topic: topic, Ack: producer.AckBroker, AckTimeout: 20 * time.Second, Shards: 2, RingBatches: 16384, RingBytes: 32 << 20,
		MaxInflight: 200_000, MaxInflightBytes: 64 << 20,
	})
	if err != nil {
		return nil, nil, err
	}
	pool := codec.NewPool(codec.Rules{})
	ready := rival.NewBlock()
	var d codec.Decoder
	const size = 5000
	err = nil
	for done := int64(0); done < n && err == nil; done += size {
		var body []byte
		for range min(size, n-done) {
			body = append(g.append(body), '\n')
		}
		batch := pool.Get()
		if bad := batch.DecodeLines(body, time.Now()); bad != nil || len(batch.Rejected()) > 0 {
			err = errors.New("a made-up event is no event")
		}
		for i := 0; i < batch.Len() && ready.Rows() < blockRows && err == nil; i++ {
			err = ready.Append(batch.Record(i), &d)
		}
		if err == nil {
			err = p.Publish(batch) // and its reference
		} else {
			batch.Release()
		}
	}
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	if err = errors.Join(err, p.Close(ctx)); err != nil {
		return nil, nil, fmt.Errorf("fill the topic: %w", err)
	}
	if held, err := to.count(); err != nil || held != n {
		return nil, nil, errors.Join(err, fmt.Errorf("the topic holds %d records, %d were put into it", held, n))
	}
	return to, ready, nil
}
