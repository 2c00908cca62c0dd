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
	f := func(name, value, want string) {
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
			if strings.Count(strings.TrimSpace(said), "\n") != 0 || !strings.HasPrefix(said, "edge: ") || !strings.Contains(said, name) || !strings.Contains(said, want) {
				t.Errorf("it says %q; want one sentence that names %s and says %q", said, name, want)
			}
			if strings.Contains(said, "horse") || out.Len() != 0 {
				t.Errorf("it says %q and prints %q", said, out.String())
			}
		})
	}
	f("SERVER_PORT", "http", `SERVER_PORT is "http"; it must be a whole number from 0 to 65535`)
	f("SERVER_PORT", "70000", "a whole number from 0 to 65535")
	f("SERVER_READ_TIMEOUT", "5", `SERVER_READ_TIMEOUT is "5"; it must be a duration such as`)
	f("MAX_EVENTS", "1e4", `MAX_EVENTS is "1e4"; it must be a whole number, at most 9223372036854775807`)
	f("KAFKA_REPLICATION", "40000", "at most 32767")
	f("EMBEDDED", "yes", `EMBEDDED is "yes"; it must be true or false`)
	f("SERVER_READ_TIMEOUT", "-5s", "positive")
	f("SERVER_LOOPS", "-2", "between -1 and 256")
	f("SERVER_LOOPS", "257", "between -1 and 256")
	f("ROLES", "ingest,sync", `"sync"`)
	f("ACK", "maybe", "broker or memory")
	f("LOG_LEVEL", "chatty", "debug, info")
	f("MAX_BODY_BYTES", "ten", "number of bytes")
	f("MAX_BODY_BYTES", "-1", "number of bytes")
	f("MAX_EVENT_BYTES", "1MiB", "512KiB")
	f("MAX_INFLIGHT_BYTES", "1MiB", "134MiB")
	f("MAX_CONNS_PER_IP", "-1", "negative")
	f("MIN_TIME", "yesterday", `MIN_TIME is "yesterday"; it must be a time such as`)
	f("MIN_TIME", "1970-01-01T00:00:00Z", "1970")
	f("MIN_TIME", "2200-01-01T00:00:00Z", "every event would be refused")
	f("MAX_AHEAD", "0s", "positive")
	f("SHARDS", "-1", "negative")
	f("SHARDS", "100000", "256")
	f("RING_REQUESTS", "2000000000", "1048576")
	f("KEY_RATE", "2000000000", "1000000000")
	f("WRITE_KEYS", secret+",,"+secret, "key 2 is empty")
	f("READ_KEYS", " ", "key 1 is empty")
	f("READ_KEYS", "sha256:"+secret, "64 hex digits")
	f("READ_KEYS", "sha256:zz", "64 hex digits")
	f("CORS_ORIGINS", "example.com", "scheme://host")
	f("CORS_ORIGINS", "none,https://a.example", "none")
	f("KAFKA_TOPIC", "my events", "letters")
	f("KAFKA_TOPIC", strings.Repeat("x", 245), "244")
	f("KAFKA_TOPIC", ".", "directory")
	f("KAFKA_TOPIC", "..", "directory")
	f("KAFKA_RETENTION", "999ms", "for ever")
	f("KAFKA_BROKERS", ",", "host:port")
	f("KAFKA_BROKERS", ":9092", "host:port")
	f("KAFKA_BROKERS", "k1:9092, k2:0", `"k2:0"`)
	f("KAFKA_BROKERS", "k1:65536", "host:port")
	f("KAFKA_BROKERS", "k1:kafka", "host:port")
	f("KAFKA_REPLICATION", "0", "at least 1")
	f("KAFKA_REPLICATION", "-2", "at least 1")
	f("KAFKA_PARTITIONS", "1025", "at most 1024")
	f("CLICKHOUSE_HOST", "ch:9000", "CLICKHOUSE_PORT")
	f("CLICKHOUSE_HOST", "http://ch", "CLICKHOUSE_PORT")
	f("CLICKHOUSE_HOST", "[::1]", "a host alone")
	f("CLICKHOUSE_PORT", "0", "")
	f("CLICKHOUSE_DATABASE", "system", "ClickHouse's own")
	f("CLICKHOUSE_DATABASE", "INFORMATION_SCHEMA", "ClickHouse's own")
	f("CLICKHOUSE_DATABASE", "a/b", "letters")
	f("CLICKHOUSE_DATABASE", strings.Repeat("d", 65), "64")
	f("TABLE_TTL", "24h", "MAX_AGE")
	f("TABLE_TTL", "-1h", "negative")
	f("FLUSH_ROWS", "600000", "one block")
	f("FLUSH_BYTES", "1GiB", "one block")
	f("FLUSH_INTERVAL", "15001ms", "STUCK_AFTER, 1m0s")
	f("STUCK_AFTER", "399ms", "at most STUCK_AFTER, 399ms")
	f("LINGER", "2s", "ACK_TIMEOUT, 2s")
	f("INSERT_TIMEOUT", "10ms", "1s")
	f("DEDUP_MAX_IDS", "1000000000000000", "at most")
	f("QUERY_TIMEOUT", "999ms", "1s")
	f("QUERY_TIMEOUT", "0s", "1s")
	f("QUERY_KEEP", "2m", "at most 1m")
	f("EMBEDDED_KAFKA_LISTEN", "0.0.0.0:19092", "loopback")
	f("EMBEDDED_KAFKA_LISTEN", "127.0.0.1:http", "loopback")
	f("EMBEDDED_CLICKHOUSE_LISTEN", "9000", "loopback")
	f("EMBEDDED_CLICKHOUSE_LISTEN", "127.0.0.1:70000", "loopback")
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
