package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// promtool is Prometheus's own checker. Tests that need it are skipped where it
// is not installed, unless the environment promises it.
func promtool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("EDGE_REQUIRE_PROMETHEUS") == "1" {
			t.Fatal(err)
		}
		t.Skip("promtool is not installed: Debian's package prometheus has it")
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = filepath.Join(root, "deploy", "prometheus")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestPromtool(t *testing.T) {
	f := func(args ...string) {
		t.Helper()
		if out, err := promtool(t, args...); err != nil || strings.Contains(out, "WARNING") {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	f("check", "config", "prometheus.yml")
	f("check", "rules", "rules/recording.yml", "rules/alerts.yml")
	f("test", "rules", "tests/alerts.yml", "tests/recording.yml")
}

// The cases notice a rule that says something else. Each mutation is shown only
// to the cases named after its alert: all of them take seconds.
func TestBrokenRulesFailTheirCases(t *testing.T) {
	head, cases, ok := strings.Cut(read(t, "deploy/prometheus/tests/alerts.yml"), "\ntests:\n")
	if !ok {
		t.Fatal("tests/alerts.yml has no tests")
	}
	alerts, recording := read(t, "deploy/prometheus/rules/alerts.yml"), read(t, "deploy/prometheus/rules/recording.yml")
	f := func(alert, old, new string) {
		t.Helper()
		own := head + "\ntests:\n"
		for _, c := range strings.SplitAfter(cases, "\n\n") {
			if strings.HasPrefix(c, "  - name: "+alert) {
				own += c
			}
		}
		dir := t.TempDir()
		for name, text := range map[string]string{
			"rules/alerts.yml": mutate(t, alerts, old, new), "rules/recording.yml": recording, "tests/alerts.yml": own,
		} {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := promtool(t, "test", "rules", filepath.Join(dir, "tests/alerts.yml")); err == nil {
			t.Errorf("%q in place of %q passes the cases of %s:\n%s", new, old, alert, out)
		} else if !strings.Contains(out, "FAILED") || !strings.Contains(out, "exp:") {
			t.Errorf("%q in place of %q: %s", new, old, out)
		}
	}
	f("EdgeDown", `or absent(up{job="edge"})`, "")
	f("EdgeRetentionHeadroomLow", "edge_retention_headroom_ratio) < 0.75", "edge_retention_headroom_ratio) < 0.7")
	f("EdgeRecordsLost", "edge_sink_lost_records_total[1h]) > 0", "edge_sink_lost_records_total[1h]) > 1000")
	f("EdgeRecordsLost", "edge_sink_lost_records_total > 0 and on (job, instance) time() - process_start_time_seconds < 3600\n            or", "")
	f("EdgeRecordsLost", "edge_sink_lost_records_total > 0 and on (job, instance) time() - process_start_time_seconds < 3600", "edge_sink_lost_records_total > 0")
	f("EdgeLogRegression", "or edge_log_regressions_total > 0 and on (job, instance) time() - process_start_time_seconds < 3600", "")
	f("EdgeUncleanStart", "or edge_unclean_starts_total > 0 and on (job, instance) time() - process_start_time_seconds < 3600", "or edge_unclean_starts_total > 0")
	f("EdgeAuditMismatch", "or edge_audit_extra_rows > 0", "")
	f("EdgeAuditMismatch", "for: 2m # two audits", "for: 30s # two audits")
	f("EdgeLedgerOff", "> (max_over_time(job:edge_sink_lag_records:sum[30m]) or on (job) 0 * job:edge_ledger_gap_events:increase30m)", "> 0")
	f("EdgeLedgerOff", " or on (job) 0 * job:edge_ledger_gap_events:increase30m", "")
	f("EdgeServerErrors", `code=~"5.."}[5m])) > 5`, `code=~"5.."}[5m])) > 0`)
	f("EdgeLedgerOff", "0.01 * sum by (job)", "0.03 * sum by (job)")
	f("EdgeNoSink", "rate5m > 0\n            unless on (job) edge_sink_stuck_seconds", "rate5m > 0")
	f("EdgeNoSink", "unless on () (edge_sink_stuck_seconds unless on (job) edge_produce_inflight_records)", "")
	f("EdgeNoSink", "(edge_sink_stuck_seconds unless on (job) edge_produce_inflight_records)", "edge_sink_stuck_seconds")
	f("EdgeNoSink", "unless on (job) edge_produce_inflight_records", "unless on (job) edge_events_accepted_total")
	f("EdgeNoSink", "rate5m > 0", "rate5m >= 0")
	f("EdgeNoSink", "for: 5m # sinks", "for: 3m # sinks")
	f("EdgeSinkStuck", "edge_sink_stuck_seconds > 60", "edge_sink_stuck_seconds > 40")
	f("EdgeSinkLagging", "> 60\n        for: 5m", "> 60\n        for: 3m")
	f("EdgeAuditStale", "> 600\n        for: 5m", "> 600\n        for: 1m")
	f("EdgeDeadLetters", "increase(edge_dlq_records_total[10m])", "edge_dlq_records_total")
	f("EdgeDeadLetters", "edge_dlq_records_total and on (job, instance) time() - process_start_time_seconds < 600\n              or", "")
	f("EdgeDeadLetters", "process_start_time_seconds < 600", "process_start_time_seconds < 6000")
	f("EdgeServerErrors", "ratio_rate5m > 0.01", "ratio_rate5m > 0.004")
	f("EdgeSlow", `{route=~"/events|/events/bulk"}`, "")
	f("EdgeRingSaturated", "ratio > 0.8", "ratio > 0.7")
	f("EdgeOverloaded", `{reason=~"ring_full|memory_full"}`, "")
	f("EdgeDiskLow", "edge_disk_size_bytes < 0.15", "edge_disk_size_bytes < 0.2")
	f("EdgeBrokerRefusing", "edge_broker_refusing > 0", "edge_broker_refusing > 1")
	f("EdgeEngineRestarting", "> 2.5", "> 1.5")
	f("EdgePanics", "edge_http_panics_total[1h]) > 0", "edge_http_panics_total[1h]) > 2")
	f("EdgeReloadFailed", `result="error"}[15m]`, `result="ok"}[15m]`)
	f("EdgeCertificateExpires", "7 * 86400", "30 * 86400")
}
