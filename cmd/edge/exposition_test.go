//go:build linux

package main

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// exposition is what a scrape brings: the type of each metric of ours, and the
// labels its samples carry.
type exposition struct {
	types  map[string]string
	labels map[string][]string
}

func scrape(t testing.TB, admin string) (exposition, []byte) {
	t.Helper()
	text, err := request(http.MethodGet, "http://"+admin+"/metrics", "", nil, http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	e := exposition{make(map[string]string), make(map[string][]string)}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (edge_\w+) (\w+)$`).FindAllSubmatch(text, -1) {
		e.types[string(m[1])] = string(m[2])
	}
	for _, m := range regexp.MustCompile(`(?m)^(edge_\w+)(?:\{(.*)\})? \S+$`).FindAllSubmatch(text, -1) {
		name := string(m[1])
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base := strings.TrimSuffix(name, suffix); e.types[base] == "histogram" {
				name = base
			}
		}
		labels := []string{}
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllSubmatch(m[2], -1) {
			if label := string(l[1]); label != "le" {
				labels = append(labels, label)
			}
		}
		slices.Sort(labels)
		e.labels[name] = labels
	}
	return e, text
}

// deploy/prometheus/metrics.md is a promise to dashboards and alerts. A metric
// that is not in it may come and go.
func TestMetricsAreThePromisedOnes(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte("write nobody 32e5968800fa7ebcf35ec29a280ac58be4c967e409bdc6430207a8ae16eb5dcb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	in := startEdge(t, t.TempDir(), "KEYS_FILE", keys)
	got, text := scrape(t, in.admin)
	table, err := os.ReadFile(filepath.Join(deployed, "prometheus", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `(edge_\\w+)` \\| (\\w+) \\| ([^|]*) \\| ([^|]*) ?\\|").FindAllStringSubmatch(string(table), -1)
	if len(rows) < 50 {
		t.Fatalf("metrics.md lists %d metrics; it had more", len(rows))
	}
	for _, row := range rows {
		if strings.TrimSpace(row[4]) == "certificates" {
			continue // TestEverythingEncrypted has some
		}
		labels := strings.FieldsFunc(row[3], func(r rune) bool { return r == ',' || r == ' ' })
		slices.Sort(labels)
		switch has, samples := got.labels[row[1]]; {
		case got.types[row[1]] == "":
			t.Errorf("%s is promised and not exported", row[1])
		case !samples:
			t.Errorf("%s has no sample: a rate of it cannot see the first", row[1])
		case got.types[row[1]] != row[2] || !slices.Equal(has, labels):
			t.Errorf("%s is a %s with the labels %v; promised is a %s with %v", row[1], got.types[row[1]], has, row[2], labels)
		}
	}
	if path, err := exec.LookPath("promtool"); err == nil {
		check := exec.Command(path, "check", "metrics")
		check.Stdin = bytes.NewReader(text)
		if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool check metrics: %v\n%s", err, out)
		}
	}
}
