package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/goccy/go-json"

	"edge/internal/clickhouse"
	engine "edge/internal/embedded/clickhouse"
	"edge/internal/sink"
)

// errNotAddingUp makes edge verify's exit status say what its report says.
var errNotAddingUp = errors.New("what is stored does not add up")

// verify proves that every record is stored once and that the rollups are its
// sums. A running edge does it itself, asked over its admin listener; otherwise
// this process asks ClickHouse, starting the embedded engine when there is one.
func verify(in *invocation) error {
	report, err := verifyRunning(in)
	if errors.Is(err, syscall.ECONNREFUSED) {
		report, err = verifyStored(in)
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
	url := "http://" + net.JoinHostPort(in.cfg.AdminHost, strconv.Itoa(int(in.cfg.AdminPort))) + "/verify"
	req, err := http.NewRequestWithContext(in.ctx, http.MethodPost, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, fmt.Errorf("%s answered %s: %s", url, resp.Status, text)
	}
	report := new(sink.Report)
	return report, json.NewDecoder(resp.Body).Decode(report)
}

func verifyStored(in *invocation) (*sink.Report, error) {
	c := &in.cfg
	opts, _, err := c.clickHouseOptions()
	if err != nil {
		return nil, err
	}
	if c.Embedded {
		cc, err := c.engineConfig(in.log)
		if err != nil {
			return nil, err
		}
		child, err := engine.StartChild(in.ctx, cc)
		if err != nil {
			return nil, err
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(in.ctx), 10*time.Second)
			defer cancel()
			_ = child.Close(ctx)
		}()
		opts.Dialer = child
	}
	pool, err := clickhouse.Open(opts)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	audit := sink.Audit{ClickHouse: pool}
	if !c.Embedded { // the embedded log is inside a running edge
		log, _, err := c.kafkaOptions()
		if err != nil {
			return nil, err
		}
		log.Logger = in.log
		audit.Log = &sink.Log{Kafka: log, Topic: c.KafkaTopic, Group: c.KafkaGroup}
	}
	return audit.Run(in.ctx)
}

// verifyHandler serves POST /verify on the admin listener.
func (a *app) verifyHandler(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "use POST: the audit reads every row", http.StatusMethodNotAllowed)
		return
	}
	audit := sink.Audit{ClickHouse: a.pool, Log: &sink.Log{Kafka: a.kafka, Topic: a.cfg.KafkaTopic, Group: a.cfg.KafkaGroup, Incarnation: a.incarnation()}}
	report, err := audit.Run(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(report)
}
