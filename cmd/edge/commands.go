package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"edge/internal/clickhouse"
	"edge/internal/embedded"
	engine "edge/internal/embedded/clickhouse"
	"edge/internal/server"
)

// migrate is for a ClickHouse that is a server: the engine's directory belongs to
// the process that runs it.
func migrate(in *invocation) error {
	if in.cfg.Embedded {
		return &usageError{"migrate has nothing to do with EMBEDDED=true: every start of edge lays down the schema"}
	}
	o, _, err := in.cfg.clickHouseOptions()
	if err != nil {
		return err
	}
	m := in.cfg.migrateOptions(in.log)
	// Who migrates by hand may know the server and not every setting of the sinks.
	m.KeepTTL = os.Getenv("TABLE_TTL") == ""
	return clickhouse.Migrate(in.ctx, o, m)
}

// health is a container's HEALTHCHECK: the image needs no shell and no curl. It
// sends no secret, so any certificate will do, and it reads no file: one that the
// running server rightly ignores would get it killed.
func health(in *invocation) error {
	url, client := in.cfg.self(3*time.Second, nil)
	url += "/health"
	req, err := http.NewRequestWithContext(in.ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
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

// keyCommand prints a new API key and, below it, its line for KEYS_FILE. The key
// is nowhere else: who loses it makes another.
func keyCommand(in *invocation) error {
	asked := &usageError{"key wants: edge key new write|read [id]"}
	if len(in.args) < 2 || len(in.args) > 3 || in.args[0] != "new" {
		return asked
	}
	scope, err := server.ParseScope(in.args[1])
	if err != nil {
		return asked
	}
	id := ""
	if len(in.args) == 3 {
		id = in.args[2]
	}
	key, line, err := server.NewKey(scope, id)
	if err != nil {
		return &usageError{"key: " + err.Error()}
	}
	_, err = fmt.Fprintf(in.out, "%s\n%s\n", key, line)
	return err
}

// brokerBallast makes Go collect garbage less often. The collector runs when the heap has
// doubled, and the heap of a broker alone is some ten MB, which a few fetches allocate:
// collecting was half the CPU time of reading a record. The ballast is never written to, so
// it takes address space and no resident memory, but GOMEMLIMIT counts it. Resident memory
// grows by the garbage that now gathers between collections, about as much as the ballast.
const brokerBallast = 32 << 20

// runBroker serves the embedded broker alone, on KAFKA_BROKERS' default address
// unless EMBEDDED_KAFKA_LISTEN names another.
func runBroker(in *invocation) error {
	ballast := make([]byte, brokerBallast)
	defer runtime.KeepAlive(ballast)
	c := in.cfg
	if c.EmbeddedKafkaListen == "" {
		c.EmbeddedKafkaListen = "127.0.0.1:19092"
	}
	b, err := embedded.StartBroker(in.ctx, c.brokerConfig(in.log))
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
	var serving func()
	if !ok {
		addr := c.EmbeddedClickHouseListen
		if addr == "" {
			addr = "127.0.0.1:9000"
		}
		var err error
		if ln, err = net.Listen("tcp", addr); err != nil {
			return err
		}
		serving = func() { in.log.Info("engine serving", "addr", ln.Addr().String()) }
	}
	return engine.Run(in.ctx, engine.Config{
		Dir: c.engineDir(), User: c.ClickHouseUsername, Password: string(c.ClickHousePassword),
		Lifeline: lifeline, Serving: serving, Log: in.log.With("component", "engine"),
	}, ln)
}

// engineConfig starts this binary again as the engine's process.
func (c *config) engineConfig(log *slog.Logger) (engine.ChildConfig, error) {
	self, err := os.Executable()
	if err != nil {
		return engine.ChildConfig{}, err
	}
	// It inherits the environment, and gets no secret and no file of it that it
	// has no use for: a file that is away later must not keep it from a restart.
	var none []string
	for _, name := range clientFiles {
		none = append(none, name+"=")
	}
	eachSecret(func(name string, _ bool) { none = append(none, name+"=", name+"_FILE=") })
	return engine.ChildConfig{
		Command: []string{self, "clickhouse"},
		Env: append(none,
			"DATA_DIR="+c.DataDir,
			"CLICKHOUSE_USERNAME="+c.ClickHouseUsername,
			"CLICKHOUSE_PASSWORD="+string(c.ClickHousePassword),
			"LOG_LEVEL="+c.LogLevel,
		),
		Listen: c.EmbeddedClickHouseListen,
		Log:    log.With("component", "engine"),
	}, nil
}
