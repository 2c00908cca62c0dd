//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestReadyNamesEveryDependency runs each set of roles with nothing to talk to:
// /ready must have a reason for everything that those roles need. At the end the log has
// what was stopped, and nothing that the process never had.
func TestReadyNamesEveryDependency(t *testing.T) {
	f := func(roles, stopped string, want ...string) {
		t.Helper()
		nobody := "127.0.0.1:" + freePort(t)
		cfg, err := loadConfig(map[string]string{
			"ROLES": roles, "KAFKA_BROKERS": nobody, "CLICKHOUSE_HOST": "127.0.0.1", "CLICKHOUSE_PORT": freePort(t),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		ln := listeners{listen(t), listen(t)}
		var log bytes.Buffer
		go func() { done <- run(ctx, cfg, ln, slog.New(slog.NewTextHandler(&log, nil)), new(slog.LevelVar)) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("ROLES=%s: stop: %v", roles, err)
			}
			var parts []string
			for _, m := range regexp.MustCompile(`msg=stopped part=(\w+)`).FindAllStringSubmatch(log.String(), -1) {
				parts = append(parts, m[1])
			}
			if got := strings.Join(parts, " "); got != stopped {
				t.Errorf("ROLES=%s: stopped %s; want %s", roles, got, stopped)
			}
		}()
		deadline := time.Now().Add(30 * time.Second)
		for {
			var got struct{ Checks map[string]string }
			resp, err := http.Get("http://" + ln.public.Addr().String() + "/ready")
			if err == nil {
				var text []byte
				text, err = io.ReadAll(resp.Body)
				resp.Body.Close()
				if err == nil {
					err = json.Unmarshal(text, &got)
				}
				if err == nil && resp.StatusCode == http.StatusServiceUnavailable && names(got.Checks, want) {
					return
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("ROLES=%s: got checks %v, %v; want a reason for each of %v", roles, got.Checks, err, want)
			}
		}
	}
	f("ingest", "server producer schema admin", "kafka")
	f("query", "server query schema admin", "clickhouse")
	f("sink", "server sink schema admin", "clickhouse", "kafka", "sink")
	f("ingest,sink,query", "server producer sink query schema admin", "clickhouse", "kafka", "sink")
}

// names reports whether checks are those of want, each asked and away.
func names(checks map[string]string, want []string) bool {
	for _, w := range want {
		if v := checks[w]; v == "" || v == "ok" || strings.Contains(v, "not asked") {
			return false
		}
	}
	return len(checks) == len(want)
}
