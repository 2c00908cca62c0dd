package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"edge/internal/clickhouse"
	"edge/internal/embedded"
	engine "edge/internal/embedded/clickhouse"
	"edge/internal/kafka"
	"edge/internal/producer"
	"edge/internal/query"
	"edge/internal/server"
	"edge/internal/sink"
	"edge/internal/stat"
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
// 2 and 3 exist only in embedded mode; 5 to 7 as ROLES says. All others reach
// Kafka and ClickHouse by kafka.Options and clickhouse.Options, in either mode.
// What else differs in embedded mode: 4 lays down the schema and compares the log
// with what is stored before 5 starts, 6 is told to scan the log after the machine
// has died, topics are there from the start, and config.go has two of its defaults.
type app struct {
	cfg      config
	ln       listeners
	log      *slog.Logger
	level    *slog.LevelVar
	registry *prometheus.Registry

	kafka      kafka.Options
	clickhouse clickhouse.Options

	admin     *http.Server
	routes    *http.ServeMux // of admin; takes routes while it serves
	broker    *embedded.Broker
	engine    *engine.Child
	pool      *clickhouse.Pool // of all but metrics queries
	queryPool *clickhouse.Pool
	query     *query.Engine
	producer  *producer.Producer
	server    *server.Server
	sink      *sink.Sink
	checks    []server.Check

	looksOnly bool // at an embedded log, which nobody serves

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

// brokerClose is the last part of SHUTDOWN_TIMEOUT, which those that stop before the
// embedded broker do not get: its close is what makes the next start a clean one, and takes
// a few fsyncs. An engine that hangs would have it all.
func (c *config) brokerClose() time.Duration {
	if !c.Embedded {
		return 0
	}
	return min(3*time.Second, c.ShutdownTimeout/4)
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
	hangup := make(chan os.Signal, 1)
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		signal.Notify(hangup, syscall.SIGHUP)
		defer signal.Stop(hangup)
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
	switch {
	case err == nil:
		version, commit := buildVersion()
		log.Info("serving", "addr", ln.public.Addr().String(), "admin", ln.admin.Addr().String(), "embedded", cfg.Embedded, "roles", cfg.Roles,
			"version", version, "commit", commit)
		ends := hangup
		if len(a.reloads) > 0 {
			ends = nil // it means to read them again
		}
		select {
		case <-ctx.Done():
			log.Info("stopping")
		case <-ends:
			log.Info("stopping", "signal", "hangup")
		case err = <-a.failed:
		}
	case ctx.Err() != nil:
		log.Info("stopping before everything was started", "err", err)
		err = nil
	}
	timeout := cfg.ShutdownTimeout + cfg.PrestopDelay
	wholeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	stopCtx, cancel := context.WithTimeout(wholeCtx, timeout-cfg.brokerClose())
	defer cancel()
	for i := started - 1; i >= 0; i-- {
		began := time.Now()
		if steps[i].name == "broker" {
			stopCtx = wholeCtx
		}
		stopErr := steps[i].stop(stopCtx)
		if !a.has(steps[i].name) {
			continue
		}
		log.Info("stopped", "part", steps[i].name, "took_ms", time.Since(began).Milliseconds())
		if stopErr != nil {
			err = errors.Join(err, fmt.Errorf("stop %s: %w", steps[i].name, stopErr))
		}
	}
	return err
}

// has tells whether this process has a part of that name: "stopped broker" of a process
// that has none would alarm whoever reads it, and so would "stop sink" when time was up.
func (a *app) has(part string) bool {
	switch part {
	case "broker":
		return a.broker != nil
	case "engine":
		return a.engine != nil
	case "query":
		return a.cfg.has(roleQuery)
	case "sink":
		return a.cfg.has(roleSink)
	case "producer":
		return a.cfg.has(roleIngest)
	}
	return true
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
	// It has no keys, but a page in an operator's browser is no operator.
	a.admin = &http.Server{Handler: http.NewCrossOriginProtection().Handler(a.routes), ReadHeaderTimeout: 5 * time.Second}
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
