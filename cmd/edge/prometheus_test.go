//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

var deployed = filepath.Join("..", "..", "deploy")

// prom is a real Prometheus that scrapes and evaluates several times a second.
type prom struct {
	*process
	t   testing.TB
	url string
}

// startPrometheus runs the rules of deploy on what targets export. change may
// edit their text; it is there to shorten waits.
func startPrometheus(t testing.TB, change func(string) string, targets ...string) *prom {
	t.Helper()
	path, err := exec.LookPath("prometheus")
	if err != nil {
		if os.Getenv("EDGE_REQUIRE_PROMETHEUS") == "1" {
			t.Fatal(err)
		}
		t.Skip("no prometheus: Debian's package of that name has it")
	}
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"recording.yml", "alerts.yml"} {
		text, err := os.ReadFile(filepath.Join(deployed, "prometheus", "rules", name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "alerts.yml" && change != nil {
			text = []byte(change(string(text)))
		}
		write(name, string(text))
	}
	write("prometheus.yml", `
global: {scrape_interval: 200ms, evaluation_interval: 200ms}
rule_files: [recording.yml, alerts.yml]
scrape_configs:
  - job_name: edge
    static_configs: [{targets: ["`+strings.Join(targets, `", "`)+`"]}]
`)
	port := freePort(t)
	p := &prom{t: t, url: "http://127.0.0.1:" + port}
	p.process = spawn(t, "prometheus", nil, path, "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:"+port, "--log.level=warn")
	within(t, time.Minute, "Prometheus is ready", func() error {
		_, err := request(http.MethodGet, p.url+"/-/ready", "", nil, http.StatusOK)
		return err
	}, p.process)
	return p
}

// get decodes the data of one answer of Prometheus's API.
func (p *prom) get(path string, data any) error {
	text, err := request(http.MethodGet, p.url+path, "", nil, http.StatusOK)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, &struct{ Data any }{data})
}

// query returns how many series expr has, and the sum of their values.
func (p *prom) query(expr string) (series int, sum float64, err error) {
	var r struct {
		Result []struct{ Value [2]any }
	}
	if err := p.get("/api/v1/query?query="+url.QueryEscape(expr), &r); err != nil {
		return 0, 0, err
	}
	for _, s := range r.Result {
		v, err := strconv.ParseFloat(s.Value[1].(string), 64)
		if err != nil {
			return 0, 0, err
		}
		sum += v
	}
	return len(r.Result), sum, nil
}

// becomes waits until expr has a value that is content.
func (p *prom) becomes(what, expr string, content func(float64) bool) {
	p.t.Helper()
	within(p.t, time.Minute, what, func() error {
		n, v, err := p.query(expr)
		if err == nil && (n == 0 || !content(v)) {
			err = fmt.Errorf("%s: %d series, %v", expr, n, v)
		}
		return err
	}, p.process)
}

// firing lists the alerts that fire, each once.
func (p *prom) firing() []string {
	p.t.Helper()
	var r struct {
		Alerts []struct {
			State  string
			Labels struct{ Alertname string }
		}
	}
	if err := p.get("/api/v1/alerts", &r); err != nil {
		p.t.Fatal(err)
	}
	var names []string
	for _, a := range r.Alerts {
		if a.State == "firing" {
			names = append(names, a.Labels.Alertname)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (p *prom) fires(alert string) {
	p.t.Helper()
	took := within(p.t, time.Minute, alert+" fires", func() error {
		if f := p.firing(); !slices.Contains(f, alert) {
			return fmt.Errorf("firing are %v", f)
		}
		return nil
	}, p.process)
	p.t.Logf("%s fires after %s", alert, short(took))
}

func (p *prom) resolves(alert string) {
	p.t.Helper()
	within(p.t, time.Minute, alert+" resolves", func() error {
		if f := p.firing(); slices.Contains(f, alert) {
			return fmt.Errorf("firing are %v", f)
		}
		return nil
	}, p.process)
}

// A real Prometheus scrapes an edge under load, adds up to what was posted, and
// has an answer for everything that rules and dashboards ask.
func TestPrometheus(t *testing.T) {
	t.Parallel() // it waits more than it works
	needEngine(t)
	n := newNode(t, "DATA_DIR", t.TempDir())
	n.start()
	n.ready()
	p := startPrometheus(t, nil, n.admin)
	l := &promises{promised: make(map[string]struct{})}
	stop := make(chan struct{})
	wg := l.load(func() string { return "http://" + n.public }, 2, stop)
	p.becomes("ten scrapes under load", `sum(count_over_time(up{job="edge"}[1m]))`, func(v float64) bool { return v >= 10 })
	p.becomes("a rate", `job:edge_events_accepted:rate5m`, func(v float64) bool { return v > 0 })
	close(stop)
	wg.Wait()
	if l.refused.Load() != 0 {
		t.Fatalf("%d requests were refused", l.refused.Load())
	}
	posted := float64(len(l.promised))
	equal := func(want float64) func(float64) bool { return func(v float64) bool { return v == want } }
	p.becomes("what was posted is accepted", `sum(edge_events_accepted_total)`, equal(posted))
	p.becomes("what was accepted is stored", `sum(edge_sink_rows_total)`, equal(posted))
	p.becomes("up", `up{job="edge"}`, equal(1))
	p.becomes("a quantile", `histogram_quantile(0.99, sum by (le) (rate(edge_http_request_seconds_bucket{route="/events/bulk"}[1m])))`,
		func(v float64) bool { return v > 0 && v < 30 })

	var loaded struct {
		Groups []struct {
			Rules []struct{ Name, Type, Health, LastError, State string }
		}
	}
	if err := p.get("/api/v1/rules", &loaded); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, g := range loaded.Groups {
		for _, r := range g.Rules {
			kinds[r.Type]++
			if r.Health != "ok" || r.State == "firing" {
				t.Errorf("rule %s is %s, %s: %s", r.Name, r.Health, r.State, r.LastError)
			}
		}
	}
	if kinds["alerting"] < 15 || kinds["recording"] < 10 {
		t.Errorf("Prometheus loaded the rules %v; there are more", kinds)
	}
	asked := 0
	for _, s := range selectors(t) {
		if strings.HasPrefix(s, "edge_reloads_total") || strings.HasPrefix(s, "edge_certificate_") {
			continue // this edge has no file to read again
		}
		asked++
		if n, _, err := p.query(s); err != nil || n == 0 {
			t.Errorf("%s finds nothing: %v", s, err)
		}
	}
	if asked < 50 {
		t.Errorf("asked for %d selectors; rules and dashboards have more", asked)
	}

	// A process that is killed says so after its next start.
	n.kill()
	p.becomes("down", `up{job="edge"}`, equal(0))
	n.start()
	p.fires("EdgeUncleanStart")
}

// selectors are the metrics that rules and dashboards ask for, with the values
// of the labels they ask for: a value that edge never has would find nothing,
// and an alert on it would never fire.
func selectors(t testing.TB) (out []string) {
	t.Helper()
	prose := regexp.MustCompile(`(?m)^\s*("?(action|summary|description)"?:|#).*$`)
	metric := regexp.MustCompile(`(?m)(?:^|[^:\w])((?:edge|process|go)_\w+(?:\{[^{}]*\})?)`) // a colon is before a recorded name
	var text []string
	for _, pattern := range []string{"prometheus/rules/*.yml", "grafana/dashboards/*.json"} {
		names, err := filepath.Glob(filepath.Join(deployed, pattern))
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, strings.NewReplacer(`\"`, `"`, "$instance", ".+").Replace(prose.ReplaceAllString(string(b), "")))
		}
	}
	for _, m := range metric.FindAllStringSubmatch(strings.Join(text, "\n"), -1) {
		out = append(out, m[1])
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// shorter replaces what each alert waits for. Nothing else of a rule may change,
// and every replacement must find its text.
func shorter(t testing.TB, pairs ...string) func(string) string {
	return func(text string) string {
		for i := 0; i < len(pairs); i += 2 {
			if !strings.Contains(text, pairs[i]) {
				t.Fatalf("the rules do not say %q", pairs[i])
			}
			text = strings.Replace(text, pairs[i], pairs[i+1], 1)
		}
		return text
	}
}

// Each fault is really made, and the alert for it fires; where the fault can be
// mended, it resolves.
func TestAlertsOfRealFaults(t *testing.T) {
	t.Parallel()
	needEngine(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	brokerPort, enginePort, engineDir := freePort(t), freePort(t), t.TempDir()
	broker := spawn(t, "kafka", []string{"DATA_DIR", t.TempDir(), "EMBEDDED_KAFKA_LISTEN", "127.0.0.1:" + brokerPort, "LOG_LEVEL", "warn"}, self, "kafka")
	startEngine := func() *process {
		return spawn(t, "clickhouse", []string{"DATA_DIR", engineDir, "EMBEDDED_CLICKHOUSE_LISTEN", "127.0.0.1:" + enginePort, "LOG_LEVEL", "warn"}, self, "clickhouse")
	}
	engine := startEngine()
	for name, port := range map[string]string{"Kafka": brokerPort, "ClickHouse": enginePort} {
		within(t, time.Minute, name+" listens", func() error {
			conn, err := net.Dial("tcp", "127.0.0.1:"+port)
			if err == nil {
				err = conn.Close()
			}
			return err
		}, broker, engine)
	}
	n := newNode(t)
	n.settings = append(n.settings, "EMBEDDED", "false", "KAFKA_BROKERS", "127.0.0.1:"+brokerPort,
		"CLICKHOUSE_HOST", "127.0.0.1", "CLICKHOUSE_PORT", enginePort, "ACK_TIMEOUT", "500ms")
	n.start()
	n.ready()
	p := startPrometheus(t, shorter(t,
		"edge_sink_stuck_seconds > 60", "edge_sink_stuck_seconds > 2",
		"(edge_sink_oldest_seconds) > 60\n        for: 5m", "(edge_sink_oldest_seconds) > 2\n        for: 1s",
		`code=~"5.."}[5m])) > 5`+"\n        for: 2m", `code=~"5.."}[5m])) > 5`+"\n        for: 1s",
		`absent(up{job="edge"})`+"\n        for: 1m", `absent(up{job="edge"})`+"\n        for: 1s",
	), n.admin)
	id := 0
	post := func(want int) error {
		id++
		body := fmt.Sprintf(`{"event_name":"e","user_id":"u","event_id":"p-%d","timestamp":%d}`, id, time.Now().UnixMilli())
		_, err := request(http.MethodPost, "http://"+n.public+"/events", "application/json", []byte(body), want)
		return err
	}
	if err := post(http.StatusAccepted); err != nil {
		t.Fatal(err)
	}
	p.becomes("the first event is stored", `sum(edge_sink_rows_total)`, func(v float64) bool { return v == 1 })
	p.resolves("EdgeDown") // which nobody is, before the first scrape
	if f := p.firing(); len(f) > 0 {
		t.Errorf("with nothing wrong %v fire", f)
	}

	// Somebody else writes to the topic.
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:" + brokerPort))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(context.Background(), &kgo.Record{Topic: "events", Value: []byte("no event")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	p.fires("EdgeDeadLetters")

	// ClickHouse is gone, and events are still taken.
	engine.kill()
	for range 20 {
		if err := post(http.StatusAccepted); err != nil {
			t.Errorf("while ClickHouse is away: %v", err)
		}
	}
	p.fires("EdgeSinkStuck")
	p.fires("EdgeSinkLagging")
	startEngine()
	p.resolves("EdgeSinkStuck")
	p.resolves("EdgeSinkLagging")
	p.becomes("everything is stored", `sum(edge_sink_rows_total)`, func(v float64) bool { return v == 21 })

	// Kafka is gone.
	if f := p.firing(); slices.Contains(f, "EdgeServerErrors") {
		t.Errorf("firing are %v before Kafka is away", f)
	}
	broker.kill()
	for range 12 { // over 5 between two scrapes, the first of which may see some already
		if err := post(http.StatusServiceUnavailable); err != nil {
			t.Errorf("while Kafka is away: %v", err)
		}
	}
	p.fires("EdgeServerErrors")

	// edge is gone.
	n.kill()
	p.fires("EdgeDown")
}
