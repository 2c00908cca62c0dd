//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"edge/internal/logging"
)

// TestRoles runs every role as processes of its own against one Kafka and one
// ClickHouse, which are processes too, and kills each of the six while clients
// send. What stands in for Kafka here is the embedded broker; TestKafka holds
// the same processes to the real one.
func TestRoles(t *testing.T) {
	n := startOwnCluster(t, "roles").tenant(t, "roles")
	// A sink first: it lays down the schema, without which query is not ready.
	a, b := n.start("sink a", "sink", restless...), n.start("sink b", "sink", restless...)
	ingest, query := n.start("ingest", "ingest"), n.start("query", "query")
	n.joined(a, b)
	l := startLoad(t, ingest.public)
	n.progress()
	all := []*edgeProcess{ingest, query, a, b}

	// Each names what it depends on and nothing else.
	needs := map[*edgeProcess][]string{ingest: {"kafka"}, query: {"clickhouse"}, a: {"clickhouse", "kafka", "sink"}, b: {"clickhouse", "kafka", "sink"}}
	for _, p := range all {
		p.awaitReady()
		if got := p.away(t, needs[p]); len(got) > 0 {
			t.Errorf("%s: %v are not ok", p.name, got)
		}
	}

	for _, p := range all {
		l.more(200)
		var member string
		if p == a || p == b {
			member = n.memberOf(p)
		}
		p.kill()
		if member != "" {
			n.evict(member)
		}
		if p != ingest {
			l.more(200) // nobody else minds
		}
		n.again(p)
		p.awaitReady()
		n.progress()
		n.rounds++
	}
	n.joined(a, b)

	// outage takes a server away, wants readiness of all to be right within
	// seconds, and brings it back.
	outage := func(name string, server *process, start func(), hit ...*edgeProcess) {
		t.Helper()
		l.more(200)
		server.kill()
		for _, p := range all {
			hurt := slices.Contains(hit, p)
			within(t, 30*time.Second, fmt.Sprintf("%s is right about %s, away: %t", p.name, name, hurt), func() error {
				if got := p.away(t, needs[p]); hurt != slices.Contains(got, name) || !hurt && len(got) > 0 {
					return fmt.Errorf("it says that %v are not ok", got)
				}
				return nil
			}, p.process)
		}
		start()
		for _, p := range all {
			p.awaitReady()
		}
		l.more(200)
		n.progress()
		n.rounds++
	}
	outage("kafka", n.broker, func() { n.startBroker() }, ingest, a, b)
	outage("clickhouse", n.engine, func() { n.spawnEngine(); n.awaitEngine() }, query, a, b)

	n.balance(l)
	if report, err := a.command("verify"); err != nil {
		t.Errorf("edge verify: %v\n%s", err, report)
	}
	// The process that only queries has what the one that only ingests took.
	in := &instance{t: t, public: query.public}
	var total int64
	for _, name := range []string{"view", "cart", "purchase"} {
		total += in.metrics(name, 0, 4e9, "").TotalEvents
	}
	if rows := n.stored("SELECT count() AS s FROM events"); fmt.Sprint(total) != rows[0] {
		t.Errorf("GET /metrics counts %d events; %s are stored", total, rows[0])
	}
	for _, p := range all {
		p.terminate()
		p.wantCalmLog(t)
		if status := p.cmd.ProcessState.ExitCode(); status != 0 {
			t.Errorf("%s ended with %d after SIGTERM; want 0", p.name, status)
		}
	}
}

// away returns the dependencies that /ready says are not ok, and fails the test
// when it names others than needs, or its status says something else.
func (p *edgeProcess) away(t *testing.T, needs []string) (away []string) {
	t.Helper()
	resp, err := clients.Get("http://" + p.public + "/ready")
	if err != nil {
		t.Fatalf("%s: %v", p.name, err)
	}
	defer resp.Body.Close()
	var got struct{ Checks map[string]string }
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatalf("%s: %v", p.name, err)
	}
	if names := slices.Sorted(maps.Keys(got.Checks)); !slices.Equal(names, needs) {
		t.Errorf("%s: /ready names %v; want %v", p.name, names, needs)
	}
	for name, state := range got.Checks {
		if state != "ok" {
			away = append(away, name)
		}
	}
	if ready := resp.StatusCode == http.StatusOK; ready != (len(away) == 0) {
		t.Errorf("%s: status %d while %v are not ok", p.name, resp.StatusCode, away)
	}
	return away
}

// wantCalmLog holds that no warning or error is written twice in ten seconds,
// whatever was away for however long. A line that only closes a storm's sum does
// not count.
func (p *edgeProcess) wantCalmLog(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	const slack = 2 * time.Second // from making a record to counting it, on a busy machine
	last := make(map[string]time.Time)
	for line := range strings.Lines(string(text)) {
		var r struct {
			Time                  time.Time
			Level, Msg, Component string
			Partition             any
			Suppressed            int
			Err                   *string
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Errorf("%s logs what is not JSON: %s", p.name, line)
			continue
		}
		if r.Level != "WARN" && r.Level != "ERROR" || r.Err == nil {
			continue
		}
		kind := fmt.Sprint(r.Level, r.Msg, r.Component, r.Partition)
		if since := r.Time.Sub(last[kind]); since < logging.Period-slack {
			t.Errorf("%s logs again after %s: %s", p.name, since, line)
		}
		last[kind] = r.Time
	}
}

// command runs another subcommand with p's settings.
func (p *edgeProcess) command(args ...string) (string, error) {
	return runSubcommand(p.settings, args...)
}

// runSubcommand runs one with settings (name, value, …) on top of the environment.
func runSubcommand(settings []string, args ...string) (string, error) {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = os.Environ()
	for i := 0; i < len(settings); i += 2 {
		cmd.Env = append(cmd.Env, settings[i]+"="+settings[i+1])
	}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// A sink alone has a lower goal for the collector, unless whoever runs it says otherwise.
func TestSinkAloneCollectsSooner(t *testing.T) {
	t.Parallel()
	f := func(roles, gogc string, want int) {
		t.Helper()
		admin := freePort(t)
		p := spawn(t, "edge", []string{"ROLES", roles, "GOGC", gogc, "KAFKA_BROKERS", "127.0.0.1:1", "CLICKHOUSE_HOST", "127.0.0.1", "CLICKHOUSE_PORT", "1",
			"SERVER_HOST", "127.0.0.1", "SERVER_PORT", freePort(t), "ADMIN_PORT", admin}, os.Args[0], "serve")
		within(t, time.Minute, "metrics are served", func() error {
			text, err := request(http.MethodGet, "http://127.0.0.1:"+admin+"/metrics", "", nil, http.StatusOK)
			if line := fmt.Sprintf("\ngo_gc_gogc_percent %d\n", want); err == nil && !strings.Contains(string(text), line) {
				t.Errorf("ROLES=%s GOGC=%s: no%s", roles, gogc, line)
			}
			return err
		}, p)
	}
	f("sink", "", sinkGOGC)
	f("sink", "200", 200)
	f("sink,query", "", 100)
	f("ingest,sink,query", "", 100)
}
