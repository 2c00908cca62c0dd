package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVerifyOfAStoppedEdge has edge verify look at an embedded log and engine that no edge
// serves: what is in the log and not stored is pending, what only the group has passed is
// missing, and no data is no proof.
func TestVerifyOfAStoppedEdge(t *testing.T) {
	t.Parallel()
	needEngine(t)
	dir := t.TempDir()
	p := newNode(t, "DATA_DIR", dir)
	body := []byte(`{"event_name":"a","user_id":"u1","timestamp":1708732800000}
{"event_name":"a","user_id":"u2","timestamp":1708732800000}`)
	ingest := func(stored int64, settings ...string) {
		t.Helper()
		served := p.settings
		p.settings = append(served[:len(served):len(served)], settings...)
		p.start()
		p.ready()
		if !postBody("http://"+p.public, body) {
			t.Fatal("not accepted")
		}
		p.verify(stored) // until they are
		p.terminate()
		p.settings = served
	}
	says := func(ok bool, want string) {
		t.Helper()
		report, err := runSubcommand(p.settings, "verify")
		if (err == nil) != ok || !strings.Contains(report, want) {
			t.Errorf("edge verify says %v and\n%s\nwant %q", err, report, want)
		}
	}
	engine, copied := filepath.Join(dir, "clickhouse"), filepath.Join(t.TempDir(), "clickhouse")
	says(false, "nothing is stored in DATA_DIR")
	ingest(2)
	says(true, "2 rows + 0 duplicates + 0 dead; missing 0, extra 0")
	copyDir(t, copied, engine)
	ingest(2, "ROLES", "ingest")
	says(true, "pending: 2 records are in the log and not stored yet")
	ingest(6)
	says(true, "6 rows + 0 duplicates + 0 dead; missing 0, extra 0")
	if err := os.RemoveAll(engine); err != nil {
		t.Fatal(err)
	}
	copyDir(t, engine, copied)
	says(false, "the group is at offset 6, and what is stored ends at 2")

	// It leaves no trace: not of a topic that is not there, nor of how the run before ended.
	served := p.settings
	p.settings = append(served[:len(served):len(served)], "KAFKA_TOPIC", "other")
	says(false, "UNKNOWN_TOPIC")
	p.settings = served
	if left, err := filepath.Glob(filepath.Join(dir, "kafka", "partitions", "other*")); err != nil || len(left) > 0 {
		t.Errorf("it made %q, %v", left, err)
	}
	p.start()
	p.ready()
	p.kill()
	p.awaitEngineGone()
	says(false, "the group is at offset 6")
	p.start()
	p.ready()
	served = p.settings // one runs, and is looked for in another place
	p.settings = append(served[:len(served):len(served)], "ADMIN_PORT", freePort(t))
	says(false, "(ADMIN_HOST, ADMIN_PORT), and without it: start broker: start the embedded broker: data directory")
	p.settings = served
	metrics, err := request(http.MethodGet, "http://"+p.admin+"/metrics", "", nil, http.StatusOK)
	if err != nil || !strings.Contains(string(metrics), "\nedge_unclean_starts_total 1\n") {
		t.Errorf("after edge verify the run before counts as one that was stopped, %v", err)
	}
}
