package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/kafka"
)

// deadLetterCommand runs edge replay-dlq against in and returns what it printed.
func deadLetterCommand(t *testing.T, in *instance, args ...string) string {
	t.Helper()
	_, port, _ := strings.Cut(in.admin, ":")
	env := map[string]string{"ADMIN_PORT": port}
	for k, v := range in.env {
		env[k] = v
	}
	cfg, err := loadConfig(env)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := replayDead(&invocation{ctx: context.Background(), cfg: cfg, args: args, out: &out}); err != nil {
		t.Fatalf("replay-dlq %v: %v", args, err)
	}
	return out.String()
}

func TestDeadLettersGoBackOnce(t *testing.T) {
	addr := "127.0.0.1:" + freePort(t)
	in := startEdge(t, t.TempDir(), "EMBEDDED_KAFKA_LISTEN", addr)
	client, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.DefaultProduceTopic("events"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	poison := []string{
		`{"event_name":"repaired","user_id":"u1","timestamp":1708732800000,}`, // a comma too many
		"\xff\xfe not even text",
		// An event, but no record: received_at is missing. It goes back as it is.
		`{"event_name":"revived","user_id":"u2","timestamp":1708732800000}`,
	}
	for _, value := range poison {
		if err := client.ProduceSync(t.Context(), &kgo.Record{Value: []byte(value)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	// A good event behind the poison: the line goes on.
	if _, err := in.post("/events", "application/json", []byte(`{"event_name":"good","user_id":"u","timestamp":1708732800000}`)); err != nil {
		t.Fatal(err)
	}
	in.total("good", 1)

	var letters []letter
	for line := range strings.Lines(deadLetterCommand(t, in, "--list")) {
		var l letter
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		letters = append(letters, l)
	}
	if len(letters) != len(poison) {
		t.Fatalf("got %d letters; want %d: %+v", len(letters), len(poison), letters)
	}
	for i, l := range letters {
		if string(l.value()) != poison[i] || l.Reason == "" || l.Error == "" || l.Offset != int64(i) {
			t.Errorf("letter %d: got %+v; want value %q with a reason", i, l, poison[i])
		}
	}

	f := func(want replayed, args ...string) {
		t.Helper()
		var got replayed
		if err := json.Unmarshal([]byte(deadLetterCommand(t, in, args...)), &got); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("replay-dlq %v: got %+v; want %+v", args, got, want)
		}
	}
	f(replayed{Replayed: 1, StillDead: 2, Refused: map[string]int{"malformed": 2}})
	in.total("revived", 1)
	f(replayed{}) // each letter is looked at once

	value := strings.Replace(*letters[0].Value, ",}", "}", 1)
	letters[0].Value = &value
	repaired := filepath.Join(t.TempDir(), "repaired.ndjson")
	text, err := json.Marshal(letters[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(repaired, append(text, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	f(replayed{Replayed: 1}, repaired)
	in.total("repaired", 1)
	f(replayed{Replayed: 1}, repaired) // by mistake: counts once all the same
	if _, err := in.post("/events", "application/json", []byte(`{"event_name":"after","user_id":"u","timestamp":1708732800000}`)); err != nil {
		t.Fatal(err)
	}
	in.total("after", 1)
	if got := in.metrics("repaired", 0, 4e9, ""); got.TotalEvents != 1 {
		t.Errorf("a letter put back twice counts %d times; want 1", got.TotalEvents)
	}
}

func TestReplayDLQRefuses(t *testing.T) {
	f := func(want string, args ...string) {
		t.Helper()
		cfg, err := loadConfig(map[string]string{"EMBEDDED": "true", "ADMIN_PORT": freePort(t)})
		if err != nil {
			t.Fatal(err)
		}
		err = replayDead(&invocation{ctx: context.Background(), cfg: cfg, args: args, out: new(bytes.Buffer)})
		if err == nil || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("replay-dlq %v: got %v; want %q", args, err, want)
		}
	}
	f("(ADMIN_HOST, ADMIN_PORT); the embedded broker is inside it, so start it first")
	f("start it first", "--list")
	f("no such file", "/nonexistent.ndjson")
	f("wants", "a", "b")
}

// What is wrong with the file is not told as something that may be there later.
func TestRepairedLettersAreRefused(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "events"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	a := &app{kafka: kafka.Options{Brokers: cluster.ListenAddrs(), Logger: slog.New(slog.DiscardHandler)}}
	if a.cfg, err = loadConfig(nil); err != nil {
		t.Fatal(err)
	}
	const good = `{"value":"{\"event_name\":\"e\",\"user_id\":\"u\",\"timestamp\":1708732800000}"}` + "\n"
	f := func(file string, status int, want string) {
		t.Helper()
		w := httptest.NewRecorder()
		a.deadLettersHandler(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/dead-letters", strings.NewReader(file)))
		if w.Code != status || !strings.HasPrefix(w.Body.String(), want) {
			t.Errorf("%.40q: got %d %q; want %d %q", file, w.Code, w.Body.String(), status, want)
		}
	}
	f(good+"\n"+good, http.StatusOK, `{"replayed":2,"still_dead":0}`)
	f(`{"value":""}`, http.StatusOK, `{"replayed":0,"still_dead":1,"refused":{"malformed":1}}`)
	f(`{"value_base64":"//4="}`, http.StatusOK, `{"replayed":0,"still_dead":1,"refused":{"malformed":1}}`)
	f(good+"{\n", http.StatusBadRequest, "line 2: ")
	f(`{"event_name":"e","user_id":"u","timestamp":1708732800000}`, http.StatusBadRequest, "line 1: the object has no value")
	f("null", http.StatusBadRequest, "line 1: the object has no value")
	f(good+strings.Repeat("x", 17<<20), http.StatusBadRequest, "line 2: ")
	cluster.Close()
	a.kafka.Brokers = []string{"127.0.0.1:1"}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	a.deadLettersHandler(w, httptest.NewRequestWithContext(ctx, http.MethodPost, "/dead-letters", strings.NewReader(good)))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("without a broker: got %d %q; want 503", w.Code, w.Body.String())
	}
}

// A letter comes in anew, and the rules of an event hold for it: one that is too old by now
// would be counted, and its row would vanish where there is a TABLE_TTL.
func TestLettersKeepTheRules(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "events", "events.dead"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	cfg, err := loadConfig(map[string]string{"MIN_TIME": "2024-01-01T00:00:00Z", "MAX_AGE": "1h", "TABLE_TTL": "9600h", "MAX_EVENT_BYTES": "1KiB", "MAX_FIELD_BYTES": "10"})
	if err != nil {
		t.Fatal(err)
	}
	d := deadLetters{kafka.Options{Brokers: cluster.ListenAddrs(), Logger: slog.New(slog.DiscardHandler)}, &cfg}
	client, err := d.kafka.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	dead := func(user string, age time.Duration, metadata int) string {
		value := fmt.Sprintf(`{"event_name":"e","user_id":%q,"timestamp":%d,"metadata":{"pad":%q}}`,
			user, time.Now().Add(-age).UnixMilli(), strings.Repeat("x", metadata))
		r := kgo.StringRecord(value)
		r.Topic = "events.dead"
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		return value
	}
	dead("u", time.Minute, 0)
	dead("u", 2*time.Hour, 0)
	dead("u", -25*time.Hour, 0)
	dead("u", time.Minute, 2000)
	dead("01234567890", time.Minute, 0)
	text, err := json.Marshal(letter{Value: new(dead("u", 3*time.Hour, 0))})
	if err != nil {
		t.Fatal(err)
	}
	var list bytes.Buffer
	if err := d.list(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	want := []string{"", "timestamp lies before", "timestamp lies after", "the event is larger than the limit in bytes, 1024 ", "user_id is longer", "timestamp lies before"}
	for i, line := range strings.Split(strings.TrimSpace(list.String()), "\n") {
		var l letter
		if err := json.Unmarshal([]byte(line), &l); err != nil || !strings.HasPrefix(l.Refused, want[i]) || (l.Refused == "") != (want[i] == "") {
			t.Errorf("letter %d: %v, refused %q; want %q", i, err, l.Refused, want[i])
		}
	}
	f := func(repaired io.Reader, want replayed) {
		t.Helper()
		got, err := d.replay(t.Context(), repaired)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	f(nil, replayed{1, 5, map[string]int{"too_old": 2, "invalid_field": 2, "too_large": 1}})
	f(bytes.NewReader(text), replayed{0, 1, map[string]int{"too_old": 1}})
	cfg.TableTTL = 0 // nothing takes its row, and it may have waited for long
	f(bytes.NewReader(text), replayed{Replayed: 1})
}

// With no edge to ask, edge replay-dlq reaches the brokers as edge would.
func TestReplayDLQByItself(t *testing.T) {
	ca := newAuthority(t)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "events", "events.dead"), kfake.TLS(ca.server("broker")),
		kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "edge", "kafka-password"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	cfg, err := loadConfig(map[string]string{
		"KAFKA_BROKERS": cluster.ListenAddrs()[0], "KAFKA_TLS": "true", "KAFKA_TLS_CA": ca.file, "ADMIN_PORT": freePort(t),
		"KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "KAFKA_SASL_USERNAME": "edge", "KAFKA_SASL_PASSWORD": "kafka-password",
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	log := slog.New(slog.DiscardHandler)
	options, _, err := cfg.kafkaOptions()
	if err != nil {
		t.Fatal(err)
	}
	options.Logger = log
	client, err := options.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	dead := kgo.StringRecord(`{"event_name":"e","user_id":"u","timestamp":1708732800000}`)
	dead.Topic = "events.dead"
	if err := client.ProduceSync(ctx, dead).FirstErr(); err != nil {
		t.Fatal(err)
	}
	f := func(want string, args ...string) {
		t.Helper()
		var out bytes.Buffer
		err := replayDead(&invocation{ctx: ctx, cfg: cfg, args: args, out: &out, log: log})
		if err != nil || !strings.HasPrefix(out.String(), want) {
			t.Errorf("replay-dlq %v: got %q, %v; want %s", args, out.String(), err, want)
		}
	}
	repaired := writeFile(t, filepath.Join(t.TempDir(), "repaired.ndjson"), `{"value":"no event"}`)
	f(`{"partition":0,"offset":0,`, "--list")
	f(`{"replayed":1,"still_dead":0}`)
	f(`{"replayed":0,"still_dead":1,"refused":{"malformed":1}}`, repaired)
}
