package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestBadConfig: a setting that cannot be is a sentence that names it and exit
// status 2, before anything is opened, and no secret is in it, be it the bad one.
func TestBadConfig(t *testing.T) {
	const secret = "correct-horse-battery"
	f := func(name, value string) {
		t.Helper()
		t.Run(name+"="+value, func(t *testing.T) {
			t.Setenv("CLICKHOUSE_PASSWORD", secret)
			t.Setenv("SERVER_HOST", "192.0.2.1") // nobody's: what is taken ends there
			if name == "KAFKA_PARTITIONS" {
				t.Setenv("EMBEDDED", "true")
			}
			t.Setenv(name, value)
			var out, errOut bytes.Buffer
			if status := command([]string{"serve"}, &out, &errOut); status != exitUsage {
				t.Errorf("exit status %d; want %d", status, exitUsage)
			}
			said := errOut.String()
			if strings.Count(strings.TrimSpace(said), "\n") != 0 || !strings.HasPrefix(said, "edge: ") || !strings.Contains(said, name) {
				t.Errorf("it says %q; want one sentence that names %s", said, name)
			}
			if strings.Contains(said, "horse") || out.Len() != 0 {
				t.Errorf("it says %q and prints %q", said, out.String())
			}
		})
	}
	f("SERVER_PORT", "eighty")
	f("ACK", "maybe")
	f("ROLES", "ingest,sing")
	f("MAX_BODY_BYTES", "-1")
	f("TABLE_TTL", "24h")
	f("FLUSH_ROWS", "10000000")
	f("LOG_LEVEL", "chatty")
	f("KAFKA_TOPIC", "my events")
	f("KAFKA_TOPIC", ".")
	f("KAFKA_TOPIC", "..")
	f("KAFKA_RETENTION", "10ms")
	f("KAFKA_BROKERS", ",")
	f("KAFKA_BROKERS", ":9092")
	f("KAFKA_BROKERS", "k1:9092, k2:0")
	f("KAFKA_BROKERS", "k1:65536")
	f("KAFKA_BROKERS", "k1:kafka")
	f("KAFKA_REPLICATION", "0")
	f("KAFKA_REPLICATION", "-2")
	f("KAFKA_PARTITIONS", "1025")
	f("CLICKHOUSE_PORT", "0")
	f("CLICKHOUSE_DATABASE", "system")
	f("CLICKHOUSE_DATABASE", "INFORMATION_SCHEMA")
	f("CLICKHOUSE_DATABASE", "a/b")
	f("CLICKHOUSE_DATABASE", strings.Repeat("d", 65))
	f("EMBEDDED_KAFKA_LISTEN", "127.0.0.1:http")
	f("DEDUP_MAX_IDS", "1000000000000000")
	f("EMBEDDED_CLICKHOUSE_LISTEN", "127.0.0.1:70000")
	f("MAX_CONNS_PER_IP", "-1")
	f("QUERY_TIMEOUT", "100ms")
	f("WRITE_KEYS", secret+",,"+secret)
	f("READ_KEYS", "sha256:"+secret)
}

// TestListenFails: what is in the way of a listener may go away, so it is no bad
// setting; but the error names the ones to look at.
func TestListenFails(t *testing.T) {
	f := func(host, want string) {
		t.Helper()
		t.Run(host, func(t *testing.T) {
			t.Setenv("SERVER_HOST", "127.0.0.1")
			t.Setenv("SERVER_PORT", "0")
			t.Setenv("ADMIN_PORT", "0")
			t.Setenv(host, "192.0.2.1")
			var out, errOut bytes.Buffer
			status := command([]string{"serve"}, &out, &errOut)
			if said := errOut.String(); status != exitFailed || strings.Count(said, "\n") != 1 || !strings.HasPrefix(said, "edge: "+want) {
				t.Errorf("status %d, %q; want %d and one sentence with %q", status, said, exitFailed, want)
			}
		})
	}
	f("SERVER_HOST", "SERVER_HOST, SERVER_PORT: listen tcp 192.0.2.1:0")
	f("ADMIN_HOST", "ADMIN_HOST, ADMIN_PORT: listen tcp 192.0.2.1:0")
}
