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
	f("KAFKA_RETENTION", "10ms")
	f("WRITE_KEYS", secret+",,"+secret)
	f("READ_KEYS", "sha256:"+secret)
}
