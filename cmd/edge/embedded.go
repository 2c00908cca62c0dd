package main

import (
	"context"
	"log/slog"

	"edge/internal/embedded"
	engine "edge/internal/embedded/clickhouse"
	"edge/internal/kafka"
	"edge/internal/server"
	"edge/internal/stat"
)

// startBroker sets a.kafka, and in embedded mode starts what it dials. The lock of DATA_DIR
// is the broker's, which starts before the engine and stops after it.
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
	bc := c.brokerConfig(a.log)
	if a.looksOnly {
		// Settings are those of a shell, perhaps: nothing is made or removed by them.
		bc.LookOnly, bc.Topics, bc.Retention = true, nil, nil
	} else if names := c.overruled(); len(names) > 0 {
		a.log.Warn("settings are not used: with EMBEDDED=true the broker and ClickHouse are this process's own", "settings", names)
	}
	if a.broker, err = embedded.StartBroker(ctx, bc); err != nil {
		return err
	}
	a.describe(a.broker)
	a.checks = append(a.checks, server.Check{Name: "broker", Func: a.broker.Ready})
	a.kafka.Brokers, a.kafka.Dial = a.broker.Seeds(), a.broker.Dial
	return nil
}

func (c *config) brokerConfig(log *slog.Logger) embedded.BrokerConfig {
	return embedded.BrokerConfig{
		Dir: c.DataDir, Listen: c.EmbeddedKafkaListen, NoSync: !c.EmbeddedSync,
		// The engine reserves a block's bytes before it writes a part of it.
		MinFree: 64<<20 + min(int64(c.FlushBytes)*int64(c.FlushInserts+1), 1<<30),
		Topics:  map[string]int32{c.KafkaTopic: c.partitions(), c.deadLetterTopic(): 1},
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
	return a.broker.Close(ctx)
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
