//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	engine "edge/internal/embedded/clickhouse"
)

// guarded are a broker and a ClickHouse that want TLS and a password each.
type guarded struct {
	t          *testing.T
	ca         *authority
	broker     *kfake.Cluster
	kafka      string
	clickHouse string // host:port
}

func startGuarded(t *testing.T, mechanism string, brokerTLS func(*tls.Config)) *guarded {
	t.Helper()
	needEngine(t)
	g := &guarded{t: t, ca: newAuthority(t)}
	conf := g.ca.server("broker")
	if brokerTLS != nil {
		brokerTLS(conf)
	}
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.TLS(conf), kfake.EnableSASL(), kfake.Superuser(mechanism, "edge", kafkaPassword))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	g.broker, g.kafka = c, c.ListenAddrs()[0]
	g.startClickHouse()
	return g
}

// startClickHouse runs the engine and lets TLS in to it.
func (g *guarded) startClickHouse() {
	t := g.t
	t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	child, err := engine.StartChild(context.Background(), engine.ChildConfig{
		Command: []string{os.Args[0], "clickhouse"}, Log: log,
		Env: []string{"DATA_DIR=" + t.TempDir(), "CLICKHOUSE_USERNAME=edge", "CLICKHOUSE_PASSWORD=" + clickHousePassword},
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", g.ca.server("clickhouse"))
	if err != nil {
		t.Fatal(err)
	}
	g.clickHouse = ln.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { splice(in, child) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := child.Close(ctx); err != nil {
			t.Error(err)
		}
	})
}

// splice joins in to the engine until either side is done.
func splice(in net.Conn, child *engine.Child) {
	defer in.Close()
	out, err := child.DialContext(context.Background(), "tcp", "")
	if err != nil {
		return
	}
	defer out.Close()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() {
			_, _ = io.Copy(way[1], way[0])
			done <- struct{}{}
		}()
	}
	<-done
}

// settings are how to reach g, changed by pairs.
func (g *guarded) settings(mechanism string, pairs ...string) map[string]string {
	host, port, err := net.SplitHostPort(g.clickHouse)
	if err != nil {
		g.t.Fatal(err)
	}
	env := map[string]string{
		"EMBEDDED": "false", "LOG_LEVEL": "debug", "SHUTDOWN_TIMEOUT": "20s",
		"KAFKA_BROKERS": g.kafka, "KAFKA_TLS": "true", "KAFKA_TLS_CA": g.ca.file, "KAFKA_PARTITIONS": "2",
		"KAFKA_SASL_MECHANISM": mechanism, "KAFKA_SASL_USERNAME": "edge", "KAFKA_SASL_PASSWORD": kafkaPassword,
		"CLICKHOUSE_HOST": host, "CLICKHOUSE_PORT": port, "CLICKHOUSE_TLS": "true", "CLICKHOUSE_TLS_CA": g.ca.file,
		"CLICKHOUSE_USERNAME": "edge", "CLICKHOUSE_PASSWORD": clickHousePassword,
	}
	for i := 0; i < len(pairs); i += 2 {
		env[pairs[i]] = pairs[i+1]
	}
	return env
}
