package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

func TestArguments(t *testing.T) {
	f := func(line string, status int, out, errOut string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if got := command(strings.Fields(line), &stdout, &stderr); got != status || !strings.HasPrefix(stdout.String(), out) || !strings.HasPrefix(stderr.String(), errOut) {
			t.Errorf("edge %s: status %d, %q, %q; want %d, %q, %q", line, got, stdout.String(), stderr.String(), status, out, errOut)
		}
	}
	const help = "edge ingests events"
	f("help", 0, help, "")
	f("--help", 0, help, "")
	f("kafka -h", 0, "edge kafka: run the embedded broker alone\n", "") // and does not do it
	f("replay --help", 0, "edge replay: post an NDJSON file", "")
	f("serv --help", 0, help, "")
	for name := range subcommands {
		f(name+" --help", 0, "edge "+name+": ", "")
	}
	f("version", 0, "edge ", "")
	f("--version", 0, "edge ", "")
	f("-v", 0, "edge ", "")
	f("--version now", exitUsage, "", "edge: version takes no argument")
	f("clickhouse now", exitUsage, "", `edge: clickhouse takes no argument, and got "now"`)
	f("verify --fast", exitUsage, "", `edge: verify takes no argument`)
	f("serv", exitUsage, "", `edge: unknown command "serv"`)
	f("replay", exitUsage, "", "edge: ")
	f("replay --fast", exitUsage, "", "edge: replay wants one argument, the file")
	f("replay -", exitUsage, "", "edge: replay wants one argument, the file")
	f("replay-dlq --lits", exitUsage, "", "edge: replay-dlq wants --list, a file")
	f("replay-dlq -", exitUsage, "", "edge: replay-dlq wants --list, a file")
	f("replay-dlq ./-", exitFailed, "", "edge: open ./-: no such file")
}

// What edge knows of its clients may be broken on disk, which a running one survives, and
// whoever looks into that has the same settings.
func TestClientFilesAreIgnored(t *testing.T) {
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/verify" {
			_, _ = io.WriteString(w, "{}")
		}
	}))
	defer admin.Close()
	_, port, _ := strings.Cut(admin.Listener.Addr().String(), ":")
	t.Setenv("ADMIN_PORT", port)
	f := func(line string, status int) {
		t.Helper()
		var out, errOut bytes.Buffer
		if got := command(strings.Fields(line), &out, &errOut); got != status {
			t.Errorf("edge %s: status %d, %q; want %d", line, got, errOut.String(), status)
		}
	}
	t.Setenv("KEYS_FILE", "/nonexistent")
	f("verify", 0)
	f("replay-dlq", 0)
	f("replay-dlq --list", 0)
	f("key new write shop", 0)
	f("replay "+os.DevNull, 0)
	f("config", exitUsage)
	t.Setenv("SERVER_TLS_CERT", "/nonexistent")
	t.Setenv("SERVER_TLS_KEY", "/nonexistent")
	f("verify", 0)
	f("replay "+os.DevNull, exitUsage)
}

// Embedded, the ClickHouse at CLICKHOUSE_HOST is somebody else's.
func TestMigrateIsNotForTheEmbeddedEngine(t *testing.T) {
	t.Setenv("EMBEDDED", "true")
	t.Setenv("CLICKHOUSE_HOST", "127.0.0.1")
	t.Setenv("CLICKHOUSE_PORT", "1") // where nobody listens
	var out, errOut bytes.Buffer
	status := command([]string{"migrate"}, &out, &errOut)
	if said := errOut.String(); status != exitUsage || strings.Count(said, "\n") != 1 || !strings.Contains(said, "EMBEDDED") {
		t.Errorf("status %d, %q; want %d and one sentence that names EMBEDDED", status, said, exitUsage)
	}
}
