package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	engine "edge/internal/embedded/clickhouse"
)

// The embedded engine is this binary started again, and tests that kill edge
// need it as a process: the test binary is then edge.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		os.Exit(command(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// needEngine skips without libchdb, unless the environment promises it.
func needEngine(t testing.TB) {
	t.Helper()
	if _, err := engine.FindLibrary(); err != nil {
		if os.Getenv("EDGE_REQUIRE_ENGINE") == "1" {
			t.Fatal(err)
		}
		t.Skip("no embedded engine: ", err)
	}
}

// sharedData returns a recorded set of real events, which live beside the
// repository.
func sharedData(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join("..", "..", "..", "shared", "data", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%s is not here: this test needs the recorded events", name)
	}
	return path
}

// instance is a running edge on ports of its own.
type instance struct {
	t      testing.TB
	env    map[string]string
	public string // host:port
	admin  string
	stop   context.CancelFunc
	done   chan error
}

// startEdge runs the whole program in this process, embedded, on dir.
func startEdge(t testing.TB, dir string, settings ...string) *instance {
	t.Helper()
	needEngine(t)
	env := map[string]string{"EMBEDDED": "true", "DATA_DIR": dir, "LOG_LEVEL": "warn", "SHUTDOWN_TIMEOUT": "20s"}
	for i := 0; i < len(settings); i += 2 {
		env[settings[i]] = settings[i+1]
	}
	return startWith(t, env)
}

func startWith(t testing.TB, env map[string]string) *instance {
	t.Helper()
	public, admin := listen(t), listen(t)
	env["SERVER_PORT"] = strconv.Itoa(public.Addr().(*net.TCPAddr).Port)
	cfg, err := loadConfig(env)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	in := &instance{t: t, env: env, public: public.Addr().String(), admin: admin.Addr().String(), stop: cancel, done: make(chan error, 1)}
	var level slog.LevelVar
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: &level}))
	go func() { in.done <- run(ctx, cfg, listeners{public, admin}, log, &level) }()
	t.Cleanup(in.close)
	in.eventually("ready", func() error {
		_, err := in.get("/ready")
		return err
	})
	return in
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimRight(p, "\n"))
	return len(p), nil
}

// close stops the program in good order and fails the test when that fails.
func (in *instance) close() {
	if in.stop == nil {
		return
	}
	in.stop()
	in.stop = nil
	select {
	case err := <-in.done:
		if err != nil {
			in.t.Errorf("edge ended with: %v", err)
		}
	case <-time.After(time.Minute):
		in.t.Errorf("edge did not stop within a minute")
	}
}

// eventually repeats f until it is content; the deadline is for a broken program.
func (in *instance) eventually(what string, f func() error) {
	in.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			in.t.Fatalf("%s: still not so after a minute: %v", what, err)
		case err := <-in.done:
			in.stop = nil
			in.t.Fatalf("%s: edge ended: %v", what, err)
		case <-tick.C:
		}
	}
}

// get returns the body of a 200 answer and an error for every other.
func (in *instance) get(path string) ([]byte, error) {
	return in.do(http.MethodGet, path, "", nil, http.StatusOK)
}

// post sends a body and wants 202.
func (in *instance) post(path, contentType string, body []byte) ([]byte, error) {
	return in.do(http.MethodPost, path, contentType, body, http.StatusAccepted)
}

func (in *instance) do(method, path, contentType string, body []byte, want int) ([]byte, error) {
	req, err := http.NewRequest(method, "http://"+in.public+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != want {
		return text, fmt.Errorf("%s %s: status %d, want %d: %s", method, path, resp.StatusCode, want, text)
	}
	return text, nil
}

// answer is GET /metrics decoded.
type answer struct {
	EventName   string `json:"event_name"`
	From        int64  `json:"from"`
	To          int64  `json:"to"`
	GroupedBy   string `json:"grouped_by"`
	TotalEvents int64  `json:"total_events"`
	UniqueUsers int64  `json:"unique_users"`
	Data        []struct {
		Group       string `json:"group"`
		TotalEvents int64  `json:"total_events"`
		UniqueUsers int64  `json:"unique_users"`
	} `json:"data"`
}

func (in *instance) metrics(event string, from, to int64, groupBy string) answer {
	in.t.Helper()
	text, err := in.get(fmt.Sprintf("/metrics?event_name=%s&from=%d&to=%d&group_by=%s", event, from, to, groupBy))
	if err != nil {
		in.t.Fatal(err)
	}
	var a answer
	if err := json.Unmarshal(text, &a); err != nil {
		in.t.Fatalf("%v in %s", err, text)
	}
	return a
}

// total waits until event has want events over all time.
func (in *instance) total(event string, want int64) {
	in.t.Helper()
	in.eventually(fmt.Sprintf("%d events of %s", want, event), func() error {
		if got := in.metrics(event, 0, 4e9, "").TotalEvents; got != want {
			return fmt.Errorf("got %d", got)
		}
		return nil
	})
}
