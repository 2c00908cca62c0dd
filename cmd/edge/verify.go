package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/goccy/go-json"
	"github.com/prometheus/client_golang/prometheus"

	"edge/internal/clickhouse"
	"edge/internal/sink"
)

// errNotAddingUp makes edge verify's exit status say what its report says.
var errNotAddingUp = errors.New("what is stored does not add up")

// verify proves that every record is stored once and that the rollups are its
// sums. A running edge does it itself, asked over its admin listener; otherwise
// this process asks Kafka and ClickHouse, or starts the embedded ones.
func verify(in *invocation) error {
	report, err := verifyRunning(in)
	if errors.Is(err, syscall.ECONNREFUSED) {
		if report, err = verifyStored(in); err != nil {
			err = fmt.Errorf("%s, and without it: %w", in.noneRuns(), err)
		}
	}
	if err != nil {
		return err
	}
	if _, err := fmt.Fprint(in.out, report); err != nil {
		return err
	}
	if !report.OK() {
		return errNotAddingUp
	}
	return nil
}

func verifyRunning(in *invocation) (*sink.Report, error) {
	answer, err := in.askAdmin(http.MethodPost, "/verify", nil)
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	report := new(sink.Report)
	return report, json.NewDecoder(answer).Decode(report)
}

func verifyStored(in *invocation) (_ *sink.Report, err error) {
	if c := &in.cfg; c.Embedded {
		if _, err := os.Stat(c.engineDir()); err != nil {
			return nil, fmt.Errorf("nothing is stored in DATA_DIR: %w", err)
		}
		c.EmbeddedKafkaListen, c.EmbeddedClickHouseListen = "", "" // nobody else is to come in meanwhile
	}
	a := &app{cfg: in.cfg, log: in.log, registry: prometheus.NewRegistry(), looksOnly: true}
	steps := []step{{"broker", a.startBroker, a.stopBroker}, {"engine", a.startEngine, a.stopEngine}}
	for _, s := range steps {
		if err := s.start(in.ctx); err != nil {
			return nil, fmt.Errorf("start %s: %w", s.name, err)
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(in.ctx), 10*time.Second)
			defer cancel()
			err = errors.Join(err, s.stop(ctx))
		}()
	}
	if a.pool, err = clickhouse.Open(a.clickhouse); err != nil {
		return nil, err
	}
	defer a.pool.Close()
	return a.audit().Run(in.ctx)
}

// audit is of everything that is stored, and of the log it came from.
func (a *app) audit() *sink.Audit {
	return &sink.Audit{ClickHouse: a.pool, MaxAge: a.cfg.MaxAge, Log: &sink.Log{Kafka: a.kafka, Topic: a.cfg.KafkaTopic, Group: a.cfg.KafkaGroup, Lives: a.lives()}}
}

// verifyHandler serves POST /verify on the admin listener.
func (a *app) verifyHandler(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "use POST: the audit reads every row", http.StatusMethodNotAllowed)
		return
	}
	report, err := a.audit().Run(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(report)
}
