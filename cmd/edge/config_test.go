package main

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestConfigDefaults(t *testing.T) {
	c, err := loadConfig(map[string]string{})
	if err != nil {
		t.Fatal(err)
	}
	if c.ServerPort != 8080 || c.KafkaBrokers[0] != "localhost:19092" || c.clickHouseAddr() != "localhost:9000" ||
		c.ClickHouseDatabase != "events_db" || c.Embedded || !c.has(roleIngest) || !c.has(roleSink) || !c.has(roleQuery) {
		t.Errorf("defaults are not those of the contract:\n%s", c)
	}
}

func TestConfigRefusesLessThanTheLeast(t *testing.T) {
	typ := reflect.TypeFor[config]()
	f := func(field reflect.StructField, value, want string) {
		t.Helper()
		if field.Type == reflect.TypeFor[time.Duration]() {
			value += "s"
		}
		name := field.Tag.Get("env")
		if _, err := loadConfig(map[string]string{name: value}); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s=%s: got %v; want it refused, %q", name, value, err, want)
		}
	}
	for i := range typ.NumField() {
		field := typ.Field(i)
		switch least := field.Tag.Get("min"); {
		case least == "1":
			f(field, "0", "positive")
			f(field, "-1", "")
		case least == "0":
			f(field, "-1", "negative")
		case reflect.Zero(field.Type).CanInt(): // -1 may be a word of its own
			f(field, "-3", "")
		}
	}
}

func TestConfigOverruledByEmbedded(t *testing.T) {
	f := func(env map[string]string, want string) {
		t.Helper()
		c, err := loadConfig(env)
		if got := strings.Join(c.overruled(), " "); err != nil || got != want {
			t.Errorf("%v: got %q, %v; want %q", env, got, err, want)
		}
	}
	f(map[string]string{}, "")
	f(map[string]string{"KAFKA_BROKERS": "localhost:19092", "CLICKHOUSE_HOST": "localhost"}, "")
	f(map[string]string{"KAFKA_BROKERS": "k1:9092"}, "KAFKA_BROKERS")
	f(map[string]string{"KAFKA_BROKERS": "k1:9092", "CLICKHOUSE_HOST": "ch"}, "KAFKA_BROKERS CLICKHOUSE_HOST")
}

func TestConfigCORSOrigins(t *testing.T) {
	f := func(value, want string) {
		t.Helper()
		c, err := loadConfig(map[string]string{"CORS_ORIGINS": value})
		if got := strings.Join(c.origins(), ","); err != nil || got != want {
			t.Errorf("CORS_ORIGINS=%q: got %q, %v; want %q", value, got, err, want)
		}
	}
	f("", "*")
	f("none", "")
	f("https://a.example,https://b.example", "https://a.example,https://b.example")
}

func TestConfigListsMayHaveBlanks(t *testing.T) {
	c, err := loadConfig(map[string]string{"ROLES": "ingest, sink", "KAFKA_BROKERS": " a:1 ,[::1]:65535", "CORS_ORIGINS": "https://a.example, https://b.example", "WRITE_KEYS": "w1, w2", "READ_KEYS": " r1 "})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%q", [][]string{c.Roles, c.KafkaBrokers, c.origins(), c.WriteKeys, c.ReadKeys}); got != `[["ingest" "sink"] ["a:1" "[::1]:65535"] ["https://a.example" "https://b.example"] ["w1" "w2"] ["r1"]]` {
		t.Errorf("got %s", got)
	}
}

func TestConfigReportsEveryProblemAtOnce(t *testing.T) {
	_, err := loadConfig(map[string]string{"ACK": "x", "ROLES": "y", "FLUSH_ROWS": "0"})
	for _, name := range []string{"ACK", "ROLES", "FLUSH_ROWS"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v; want it to name %s too", err, name)
		}
	}
}

func TestConfigDependentAges(t *testing.T) {
	f := func(ttl, maxAge, retention, window, ids string, ok bool) {
		t.Helper()
		set := map[string]string{"TABLE_TTL": ttl, "MAX_AGE": maxAge, "KAFKA_RETENTION": retention, "DEDUP_WINDOW": window, "DEDUP_MAX_IDS": ids}
		if _, err := loadConfig(set); (err == nil) != ok {
			t.Errorf("%v: got %v; want ok=%v", set, err, ok)
		}
	}
	f("0s", "0s", "168h", "240h", "1", true)
	f("240h", "24h", "168h", "168h", "1", true)
	f("239h", "24h", "168h", "24h", "1", false)
	f("9000h", "24h", "0s", "24h", "1", false)
	f("264h", "24h", "168h", "192h", "1", true)
	f("263h", "24h", "168h", "192h", "1", false)
	f("263h", "24h", "168h", "192h", "0", true) // the window is off
	f("1h", "720h", "2562047h", "24h", "1", false)
	f("1h", "2562047h", "168h", "24h", "1", false)
	f("1h", "2562047h", "2562047h", "24h", "1", false)
}

func TestConfigNeverShowsSecrets(t *testing.T) {
	env := map[string]string{"CLICKHOUSE_PASSWORD": "hunter2", "WRITE_KEYS": "wkey1,wkey2", "READ_KEYS": "rkey"}
	c, err := loadConfig(env)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{c.String(), fmt.Sprintf("%v %+v", c, c)} {
		for _, s := range []string{"hunter2", "wkey", "rkey"} {
			if strings.Contains(shown, s) {
				t.Errorf("%q is shown in %s", s, shown)
			}
		}
	}
	if c.ClickHousePassword != "hunter2" || c.WriteKeys[1] != "wkey2" {
		t.Errorf("secrets were not read")
	}
}

func TestConfigRoundTrip(t *testing.T) {
	c, err := loadConfig(map[string]string{"MAX_BODY_BYTES": "3MB", "KAFKA_BROKERS": "a:1,b:2", "MAX_AGE": "36h"})
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for line := range strings.Lines(c.String()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		env[name] = value
	}
	again, err := loadConfig(env)
	if err != nil {
		t.Fatal(err)
	}
	if c.String() != again.String() {
		t.Errorf("edge config is not its own input:\n%s\n%s", c, again)
	}
}

// The README's table is the reference; it must be the code's.
func TestREADMEListsEverySetting(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for line := range strings.Lines(string(readme)) {
		if strings.HasPrefix(line, "| `") {
			rows = append(rows, strings.TrimSpace(line))
		}
	}
	typ := reflect.TypeFor[config]()
	for i := range typ.NumField() {
		tag := typ.Field(i).Tag
		value := tag.Get("envDefault")
		if value == "" {
			value = "(empty)"
		}
		want := fmt.Sprintf("| `%s` | %s | %s |", tag.Get("env"), value, tag.Get("doc"))
		found := false
		for j, row := range rows {
			if row == want {
				rows = append(rows[:j], rows[j+1:]...)
				found = true
				break
			}
		}
		if !found {
			t.Errorf("README has no row\n%s", want)
		}
	}
	for _, row := range rows {
		t.Errorf("README has a row for no setting: %s", row)
	}
}
