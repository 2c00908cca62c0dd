package main

import (
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"testing"
)

// TestConfigRefusesBadFiles holds that every setting that names a file, or that
// means nothing by itself, is one sentence at the start.
func TestConfigRefusesBadFiles(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue("edge")
	_, otherKey := ca.issue("other")
	away := filepath.Join(t.TempDir(), "away")
	text := writeFile(t, filepath.Join(t.TempDir(), "text"), "hello\n")
	empty := writeFile(t, filepath.Join(t.TempDir(), "empty"), "\n")
	const noFile = "no such file"
	f := func(want string, pairs ...string) {
		t.Helper()
		_, err := loadConfig(header(pairs...))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), pairs[0]) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: got %v; want one sentence that names %s and says %q", pairs, err, pairs[0], want)
		}
	}
	for _, name := range []string{"SERVER_TLS", "KAFKA_TLS", "CLICKHOUSE_TLS"} {
		on := []string{name, "true"} // SERVER_TLS is no setting, and is ignored
		g := func(want string, pairs ...string) { t.Helper(); f(want, append(pairs, on...)...) }
		g("need each other", name+"_CERT", cert)
		g("need each other", name+"_KEY", key)
		g(noFile, name+"_CERT", away, name+"_KEY", key)
		g(noFile, name+"_KEY", away, name+"_CERT", cert)
		g("are no pair", name+"_CERT", cert, name+"_KEY", otherKey)
		g("are no pair", name+"_CERT", text, name+"_KEY", key)
		if name == "SERVER_TLS" {
			continue
		}
		g(noFile, name+"_CA", away)
		g("no certificate in PEM", name+"_CA", text)
		f("need "+name+"=true", name+"_CA", ca.file)
		f("EMBEDDED=true", name, "true", "EMBEDDED", "true")
	}
	f("KAFKA_SASL_USERNAME", "KAFKA_SASL_MECHANISM", "PLAIN")
	f("KAFKA_SASL_PASSWORD", "KAFKA_SASL_MECHANISM", "PLAIN", "KAFKA_SASL_USERNAME", "edge")
	f("KAFKA_SASL_USERNAME", "KAFKA_SASL_MECHANISM", "PLAIN", "KAFKA_SASL_PASSWORD", "hunter2")
	f("need KAFKA_SASL_MECHANISM", "KAFKA_SASL_PASSWORD", "hunter2")
	f("SCRAM-SHA-256", "KAFKA_SASL_MECHANISM", "GSSAPI", "KAFKA_SASL_USERNAME", "edge", "KAFKA_SASL_PASSWORD", "hunter2")
	f(noFile, "KEYS_FILE", away)
	f("lets nobody in", "KEYS_FILE", empty)
	f("line 1", "KEYS_FILE", text)
	f("both set", "WRITE_KEYS_FILE", text, "WRITE_KEYS", "k")
	f(noFile, "READ_KEYS_FILE", away)
	f("empty", "CLICKHOUSE_PASSWORD_FILE", empty)
	f("EMBEDDED=true", "KAFKA_SASL_MECHANISM", "PLAIN", "KAFKA_SASL_USERNAME", "edge", "KAFKA_SASL_PASSWORD", "x", "EMBEDDED", "true")
}

func header(pairs ...string) map[string]string {
	m := make(map[string]string)
	for i := 0; i+1 < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

// TestSecretsFromFiles holds that each secret can come from a file, and that the
// engine's process gets only the one that is its own.
func TestSecretsFromFiles(t *testing.T) {
	dir := t.TempDir()
	env := header("KAFKA_SASL_MECHANISM", "PLAIN", "KAFKA_SASL_USERNAME", "edge", "CLICKHOUSE_PASSWORD", "")
	want := header("WRITE_KEYS", "a,b,c", "READ_KEYS", "a,b,c", "REPLAY_KEY", "two words", "KAFKA_SASL_PASSWORD", "two words", "CLICKHOUSE_PASSWORD", "two words")
	got := make(map[string]string)
	eachSecret(func(name string, list bool) {
		text := "two words\n"
		if list {
			text = "a,b\r\nc\n"
		}
		env[name+"_FILE"] = writeFile(t, filepath.Join(dir, name), text)
	})
	c, err := loadConfig(env)
	if err != nil {
		t.Fatal(err)
	}
	got["WRITE_KEYS"], got["READ_KEYS"] = strings.Join(c.WriteKeys, ","), strings.Join(c.ReadKeys, ",")
	got["REPLAY_KEY"], got["KAFKA_SASL_PASSWORD"], got["CLICKHOUSE_PASSWORD"] = string(c.ReplayKey), string(c.SASLPassword), string(c.ClickHousePassword)
	if !maps.Equal(got, want) {
		t.Errorf("got %v; want %v", got, want)
	}

	cc, err := c.engineConfig(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	child := maps.Clone(env)
	for _, kv := range cc.Env {
		name, value, _ := strings.Cut(kv, "=")
		child[name] = value
	}
	delete(child, "KAFKA_SASL_MECHANISM") // embedded mode refuses it
	delete(child, "KAFKA_SASL_USERNAME")
	again, err := loadConfig(child)
	if err != nil {
		t.Fatalf("the engine's process would not start: %v", err)
	}
	if again.ClickHousePassword != "two words" || len(again.WriteKeys)+len(again.ReadKeys) > 0 || again.SASLPassword != "" || again.ReplayKey != "" {
		t.Errorf("the engine's process gets %v", cc.Env)
	}
}
