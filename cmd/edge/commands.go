package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"edge/internal/clickhouse"
	"edge/internal/embedded"
	engine "edge/internal/embedded/clickhouse"
)

func migrate(in *invocation) error {
	c := &in.cfg
	return clickhouse.Migrate(in.ctx, clickhouse.Options{
		Addr: c.clickHouseAddr(), Database: c.ClickHouseDatabase, Username: c.ClickHouseUsername, Password: string(c.ClickHousePassword),
	}, c.migrateOptions(in.log))
}

// health is a container's HEALTHCHECK: the image needs no shell and no curl.
func health(in *invocation) error {
	ctx, cancel := context.WithTimeout(in.ctx, 3*time.Second)
	defer cancel()
	host := in.cfg.ServerHost
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	url := "http://" + net.JoinHostPort(host, strconv.Itoa(int(in.cfg.ServerPort))) + "/health"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, resp.Status)
	}
	_, err = fmt.Fprintln(in.out, "healthy")
	return err
}

// runBroker serves the embedded broker alone, on KAFKA_BROKERS' default address
// unless EMBEDDED_KAFKA_LISTEN names another.
func runBroker(in *invocation) error {
	c := in.cfg
	if c.EmbeddedKafkaListen == "" {
		c.EmbeddedKafkaListen = "127.0.0.1:19092"
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return err
	}
	b, err := embedded.StartBroker(in.ctx, c.brokerConfig(nil, in.log))
	if err != nil {
		return err
	}
	b.Open()
	in.log.Info("broker serving", "addr", c.EmbeddedKafkaListen)
	<-in.ctx.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(in.ctx), c.ShutdownTimeout)
	defer cancel()
	return b.Close(ctx)
}

// engineDir is where the embedded engine keeps its data.
func (c *config) engineDir() string { return filepath.Join(c.DataDir, "clickhouse") }

// runEngine serves the embedded ClickHouse engine: as the child of edge serve,
// which hands down the listener, or alone.
func runEngine(in *invocation) error {
	c := in.cfg
	ln, lifeline, ok := engine.ListenerFromParent()
	if !ok {
		addr := c.EmbeddedClickHouseListen
		if addr == "" {
			addr = "127.0.0.1:9000"
		}
		var err error
		if ln, err = net.Listen("tcp", addr); err != nil {
			return err
		}
		in.log.Info("engine serving", "addr", addr)
	}
	return engine.Run(in.ctx, engine.Config{
		Dir: c.engineDir(), User: c.ClickHouseUsername, Password: string(c.ClickHousePassword),
		Lifeline: lifeline, Log: in.log.With("component", "engine"),
	}, ln)
}

// engineConfig starts this binary again as the engine's process.
func (c *config) engineConfig(log *slog.Logger) (engine.ChildConfig, error) {
	self, err := os.Executable()
	if err != nil {
		return engine.ChildConfig{}, err
	}
	return engine.ChildConfig{
		Command: []string{self, "clickhouse"},
		Env: []string{
			"DATA_DIR=" + c.DataDir,
			"CLICKHOUSE_USERNAME=" + c.ClickHouseUsername,
			"CLICKHOUSE_PASSWORD=" + string(c.ClickHousePassword),
			"LOG_LEVEL=" + c.LogLevel,
		},
		Listen: c.EmbeddedClickHouseListen,
		Log:    log.With("component", "engine"),
	}, nil
}
