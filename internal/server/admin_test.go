package server

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"edge/internal/stat"
)

func TestAdmin(t *testing.T) {
	reg := NewRegistry("1.2.3", "abc123")
	set := new(stat.Set)
	New(defaults()).Describe(set)
	reg.MustRegister(set)
	level := new(slog.LevelVar)
	h := AdminHandler(reg, level)
	f := func(method, path, accept, body string, status int, want ...string) {
		t.Helper()
		req := httptest.NewRequest(method, path, strings.NewReader(body))
		if accept != "" {
			req.Header.Set("Accept", accept)
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		got, _ := io.ReadAll(rec.Body)
		if rec.Code != status {
			t.Errorf("%s %s: got %d; want %d", method, path, rec.Code, status)
		}
		for _, w := range want {
			if !strings.Contains(string(got), w) {
				t.Errorf("%s %s: got %.200s; want it to contain %s", method, path, got, w)
			}
		}
	}
	f("GET", "/metrics", "", "", 200,
		`edge_build_info{commit="abc123",go="`+runtime.Version()+`",version="1.2.3"} 1`,
		`edge_events_rejected_total{reason="malformed"} 0`, `edge_events_rejected_total{reason="ring_full"} 0`,
		`edge_http_requests_total{code="429",route="/events"} 0`,
		`edge_http_request_seconds_bucket{route="/events",le="+Inf"} 0`,
		"edge_events_accepted_total 0", "go_goroutines", "process_open_fds", "go_gc_pauses_seconds")
	f("GET", "/metrics", "application/openmetrics-text;version=1.0.0", "", 200, "# EOF")
	f("GET", "/debug/pprof/", "", "", 200, "goroutine")
	f("GET", "/debug/pprof/heap?debug=1", "", "", 200, "heap profile")
	f("GET", "/debug/pprof/cmdline", "", "", 200)
	f("GET", "/health", "", "", 200, `{"status":"healthy"}`)
	f("GET", "/loglevel", "", "", 200, `{"level":"info"}`)
	f("PUT", "/loglevel", "", "debug\n", 200, `{"level":"debug"}`)
	f("GET", "/loglevel", "", "", 200, `{"level":"debug"}`)
	f("PUT", "/loglevel", "", `{"level":"WARN"}`, 200, `{"level":"warn"}`)
	f("PUT", "/loglevel", "", "loud", 400, "debug, info, warn, error")
	f("PUT", "/loglevel", "", "{", 400, "debug, info, warn, error")
	f("PUT", "/loglevel", "", strings.Repeat(" ", 10_000), 400)
	f("POST", "/loglevel", "", "debug", 405)
	f("GET", "/", "", "", 404)
	f("POST", "/metrics", "", "", http.StatusMethodNotAllowed)
	if got := level.Level(); got != slog.LevelWarn {
		t.Errorf("got level %v; want warn", got)
	}
}
