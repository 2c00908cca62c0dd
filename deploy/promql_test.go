package deploy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// metric is one row of deploy/prometheus/metrics.md, which cmd/edge's
// TestMetricsAreThePromisedOnes compares with a running edge.
type metric struct {
	kind   string
	labels []string
}

func promised(t testing.TB) map[string]metric {
	t.Helper()
	out := make(map[string]metric)
	for _, m := range regexp.MustCompile("(?m)^\\| `(edge_\\w+)` \\| (\\w+) \\| ([^|]*) \\|").FindAllStringSubmatch(read(t, "deploy/prometheus/metrics.md"), -1) {
		out[m[1]] = metric{m[2], strings.FieldsFunc(m[3], func(r rune) bool { return r == ',' || r == ' ' })}
	}
	if len(out) < 50 {
		t.Fatalf("metrics.md lists %d metrics; edge has more", len(out))
	}
	return out
}

type rulesFile struct {
	Groups []struct {
		Name  string
		Rules []rule
	}
}

type rule struct {
	Record, Alert, Expr, For string
	Labels, Annotations      map[string]string
}

func rules(t testing.TB, text string) (out []rule) {
	t.Helper()
	var f rulesFile
	d := yaml.NewDecoder(strings.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&f); err != nil {
		t.Fatal(err)
	}
	for _, g := range f.Groups {
		out = append(out, g.Rules...)
	}
	return out
}

// names is what expressions may name: the promised metrics, what every Go
// program and Prometheus itself export, and what rules record.
type names struct {
	metrics  map[string]metric
	recorded []string
}

func allNames(t testing.TB) names {
	n := names{metrics: promised(t)}
	for _, f := range files(t, "deploy/prometheus/rules", ".yml") {
		for _, r := range rules(t, read(t, f)) {
			if r.Record != "" {
				n.recorded = append(n.recorded, r.Record)
			}
		}
	}
	return n
}

// foreign are names that edge's own catalogue does not have.
var foreign = regexp.MustCompile(`^(up|ALERTS|process_(start_time|cpu)_seconds(_total)?|process_resident_memory_bytes|go_goroutines|go_memstats_heap_inuse_bytes)$`)

// An expression is taken apart by what these find; a grammar would find the same
// in rules that promtool has already parsed.
var (
	quoted    = regexp.MustCompile(`"[^"]*"`)
	ranges    = regexp.MustCompile(`\[[^\]]*\]`)
	grouping  = regexp.MustCompile(`\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
	selector  = regexp.MustCompile(`([a-zA-Z_:][a-zA-Z0-9_:]*)\s*\{([^}]*)\}`)
	word      = regexp.MustCompile(`[0-9.]+[smhdwy]?|[a-zA-Z_:][a-zA-Z0-9_:]*(\s*\()?`)
	keywords  = []string{"and", "or", "unless", "bool", "offset"}
	byScraper = []string{"job", "instance", "le", "alertname", "alertstate"}
)

// checkExpression names what expr asks for that nobody exports: metrics, and
// labels in a selector or a grouping.
func (n *names) checkExpression(expr string) (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	bare := ranges.ReplaceAllString(quoted.ReplaceAllString(expr, `""`), "")
	var labels []string // of every metric in it
	check := func(name string) (own []string) {
		base := name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if b := strings.TrimSuffix(name, suffix); n.metrics[b].kind == "histogram" {
				base = b
			}
		}
		m, ok := n.metrics[base]
		switch {
		case ok && m.kind == "histogram" && base == name:
			bad("%s is a histogram; ask for %s_bucket, _sum or _count", name, name)
		case ok:
			labels = append(labels, m.labels...)
		case slices.Contains(n.recorded, name):
			level, _, _ := strings.Cut(name, ":")
			m.labels = strings.Split(level, "_")
			labels = append(labels, m.labels...)
		case !foreign.MatchString(name):
			bad("nobody exports %s", name)
		}
		return append(slices.Clone(byScraper), m.labels...)
	}
	for _, m := range selector.FindAllStringSubmatch(bare, -1) {
		own := check(m[1])
		for _, l := range regexp.MustCompile(`(\w+)\s*(=~|!~|!=|=)`).FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(own, l[1]) {
				bad("%s has no label %s", m[1], l[1])
			}
		}
	}
	bare = selector.ReplaceAllString(bare, "$1")
	groups := grouping.FindAllStringSubmatch(bare, -1)
	for _, w := range word.FindAllString(grouping.ReplaceAllString(bare, " "), -1) {
		if !strings.HasSuffix(w, "(") && !slices.Contains(keywords, w) && !strings.Contains("0123456789.", w[:1]) {
			check(w)
		}
	}
	for _, g := range groups {
		for _, l := range strings.FieldsFunc(g[2], func(r rune) bool { return r == ',' || r == ' ' }) {
			if !slices.Contains(byScraper, l) && !slices.Contains(labels, l) {
				bad("%s (%s): no metric in it has that label", g[1], l)
			}
		}
	}
	return problems
}

func TestRulesNameWhatIsExported(t *testing.T) {
	n := allNames(t)
	seen := 0
	for _, f := range files(t, "deploy/prometheus/rules", ".yml") {
		for _, r := range rules(t, read(t, f)) {
			seen++
			for _, p := range n.checkExpression(r.Expr) {
				t.Errorf("%s, %s%s: %s", f, r.Record, r.Alert, p)
			}
		}
	}
	if seen < 25 {
		t.Errorf("looked at %d rules; there are more", seen)
	}
}

func TestWrongExpressionsAreRefused(t *testing.T) {
	n := allNames(t)
	f := func(expr, want string) {
		t.Helper()
		oneProblem(t, n.checkExpression(expr), want)
	}
	f(`rate(edge_events_acepted_total[5m])`, "nobody exports edge_events_acepted_total")
	f(`edge_sink_stuck > 60`, "nobody exports edge_sink_stuck")
	f(`sum by (shard) (edge_sink_lag_records)`, "no metric in it has that label")
	f(`edge_sink_lag_records{topic="x"}`, "has no label topic")
	f(`rate(edge_produce_seconds[5m])`, "is a histogram")
	f(`edge_ring_used / on (job, partition) edge_ring_capacity`, "no metric in it has that label")
	f(`job:edge_nothing:rate5m > 1`, "nobody exports job:edge_nothing:rate5m")
	if p := n.checkExpression(`histogram_quantile(0.99, sum by (job, le) (rate(edge_produce_seconds_bucket{job="edge"}[5m]))) > 0.2 and on (job) up == 1 or vector(1) offset 5m`); len(p) > 0 {
		t.Errorf("got %v for an expression that is fine", p)
	}
}

func TestAlertsSayWhatToDo(t *testing.T) {
	runbook := read(t, "docs/operations.md")
	for _, r := range rules(t, read(t, "deploy/prometheus/rules/alerts.yml")) {
		if got := slices.Sorted(maps.Keys(r.Annotations)); !slices.Equal(got, []string{"action", "runbook", "summary"}) {
			t.Errorf("%s has the annotations %v; want summary, action and runbook", r.Alert, got)
		}
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s has severity %q", r.Alert, s)
		}
		if want := "docs/operations.md#" + strings.ToLower(r.Alert); r.Annotations["runbook"] != want {
			t.Errorf("%s: runbook is %s; want %s", r.Alert, r.Annotations["runbook"], want)
		}
		if !regexp.MustCompile(`(?m)^#+ ` + r.Alert + `$`).MatchString(runbook) {
			t.Errorf("docs/operations.md has no heading %s", r.Alert)
		}
		if strings.Contains(r.Alert, " ") || !strings.HasPrefix(r.Alert, "Edge") {
			t.Errorf("%q is no name for an alert of edge", r.Alert)
		}
	}
}

// Every alert has a case in which it fires, and every case is about an alert
// that exists. That the cases hold is promtool's to say.
func TestEveryAlertIsFired(t *testing.T) {
	cases := read(t, "deploy/prometheus/tests/alerts.yml")
	fired := make(map[string]bool)
	for _, m := range regexp.MustCompile(`exp_samples: \[\{labels: '\{alertname="(\w+)"`).FindAllStringSubmatch(cases, -1) {
		fired[m[1]] = true
	}
	for _, r := range rules(t, read(t, "deploy/prometheus/rules/alerts.yml")) {
		if !fired[r.Alert] {
			t.Errorf("no case fires %s", r.Alert)
		}
		delete(fired, r.Alert)
	}
	for name := range fired {
		t.Errorf("a case fires %s, which is no alert", name)
	}
}

type prometheusConfig struct {
	RuleFiles  []string `yaml:"rule_files"`
	ScrapeJobs []struct {
		Name    string                       `yaml:"job_name"`
		Path    string                       `yaml:"metrics_path"`
		Targets []struct{ Targets []string } `yaml:"static_configs"`
	} `yaml:"scrape_configs"`
}

// Prometheus scrapes services of the compose file, on ports somebody listens on,
// and the job the rules ask for is there.
func TestPrometheusScrapesWhatRuns(t *testing.T) {
	c := &composeCheck{t: t, file: new(composeFile), settings: settings(t)}
	if err := yaml.Unmarshal([]byte(read(t, "docker-compose.yml")), c.file); err != nil {
		t.Fatal(err)
	}
	var p prometheusConfig
	if err := yaml.Unmarshal([]byte(read(t, "deploy/prometheus/prometheus.yml")), &p); err != nil {
		t.Fatal(err)
	}
	jobs := make(map[string]bool)
	for _, j := range p.ScrapeJobs {
		jobs[j.Name] = true
		for _, targets := range j.Targets {
			for _, target := range targets.Targets {
				host, port, _ := strings.Cut(target, ":")
				if host == "localhost" {
					host = "prometheus"
				}
				if s := c.file.Services[host]; s == nil || !slices.Contains(c.listens(s), port) {
					t.Errorf("job %s scrapes %s, where nobody listens", j.Name, target)
				}
			}
		}
	}
	for _, m := range regexp.MustCompile(`job="(\w+)"`).FindAllStringSubmatch(read(t, "deploy/prometheus/rules/alerts.yml"), -1) {
		if !jobs[m[1]] {
			t.Errorf("a rule asks for job %s, which is not scraped", m[1])
		}
	}
	for _, dir := range p.RuleFiles {
		if !strings.HasPrefix(dir, "rules/") || !slices.Contains(c.file.Services["prometheus"].Volumes, "./deploy/prometheus/rules:/etc/prometheus/rules:ro") {
			t.Errorf("rule files %s are not mounted", dir)
		}
	}
}
