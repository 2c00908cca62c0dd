//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/server"
)

const (
	kafkaPassword      = "kafka-hunter2"
	clickHousePassword = "clickhouse-hunter2"
)

// lockedLog is a log that is written while it is read.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// secured is edge run with env, its log kept.
type secured struct {
	*instance
	cfg  config
	log  lockedLog
	http *http.Client
	base string
}

func runSecured(t *testing.T, env map[string]string, client *http.Client) *secured {
	t.Helper()
	public, admin := listen(t), listen(t)
	env["SERVER_PORT"] = strconv.Itoa(public.Addr().(*net.TCPAddr).Port)
	env["SERVER_HOST"] = "127.0.0.1"
	cfg, err := loadConfig(env)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &secured{
		instance: &instance{t: t, env: env, public: public.Addr().String(), admin: admin.Addr().String(), stop: cancel, done: make(chan error, 1)},
		cfg:      cfg, http: client, base: "http://" + public.Addr().String(),
	}
	if cfg.ServerTLSCert != "" {
		s.base = "https://" + s.public
	}
	level := new(slog.LevelVar)
	level.Set(slog.LevelDebug)
	log := slog.New(slog.NewTextHandler(&s.log, &slog.HandlerOptions{Level: level}))
	go func() { s.done <- run(ctx, cfg, listeners{public, admin}, log, level) }()
	t.Cleanup(func() {
		s.close()
		if t.Failed() {
			t.Log(s.log.String())
		}
	})
	return s
}

// ask sends one request with key and wants status.
func (s *secured) ask(method, path, key, body string, status int) ([]byte, error) {
	req, err := http.NewRequest(method, s.base+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-API-Key", key)
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != status {
		err = fmt.Errorf("%s %s: status %d; want %d: %s", method, path, resp.StatusCode, status, text)
	}
	return text, err
}

// TestEverythingEncrypted runs an event from a client to an answer with TLS and
// a password on every way, and all secrets from files; renews the certificate
// and the keys under way; and looks for every secret in the log at debug level
// and in edge config.
func TestEverythingEncrypted(t *testing.T) {
	g := startGuarded(t, "SCRAM-SHA-512", func(c *tls.Config) { c.ClientAuth = tls.RequireAndVerifyClientCert })
	dir := t.TempDir()
	file := func(name, text string) string { return writeFile(t, filepath.Join(dir, name), text) }
	newKey := func(scope server.Scope, id string) (string, string) {
		key, line, err := server.NewKey(scope, id)
		if err != nil {
			t.Fatal(err)
		}
		return key, line + "\n"
	}
	writer, writerLine := newKey(server.Write, "shop")
	second, secondLine := newKey(server.Write, "shop-2")
	reader, readerLine := newKey(server.Read, "board")
	keys := file("keys", writerLine+readerLine)
	cert, key := g.ca.issue("edge.example")
	clientCert, clientKey := g.ca.issue("client")

	env := g.settings("SCRAM-SHA-512",
		"KAFKA_TLS_CERT", clientCert, "KAFKA_TLS_KEY", clientKey,
		"KAFKA_SASL_PASSWORD", "", "KAFKA_SASL_PASSWORD_FILE", file("kafka", kafkaPassword+"\n"),
		"CLICKHOUSE_PASSWORD", "", "CLICKHOUSE_PASSWORD_FILE", file("clickhouse", clickHousePassword),
		"KEYS_FILE", keys, "WRITE_KEYS_FILE", file("write", "legacy-hunter2\n"), "REPLAY_KEY_FILE", file("replay", writer),
		"SERVER_TLS_CERT", cert, "SERVER_TLS_KEY", key)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: g.ca.pool(), ServerName: "edge.example"}, DisableKeepAlives: true}
	s := runSecured(t, env, &http.Client{Transport: transport})
	s.eventually("ready", func() error { _, err := s.ask("GET", "/ready", "", "", 200); return err })

	event := func(i int) string {
		return fmt.Sprintf(`{"event_name":"signup","user_id":"u%d","timestamp":%d}`, i, time.Now().UnixMilli())
	}
	must := func(method, path, key, body string, status int) []byte {
		t.Helper()
		text, err := s.ask(method, path, key, body, status)
		if err != nil {
			t.Error(err)
		}
		return text
	}
	must("POST", "/events", writer, event(1), 202)
	must("POST", "/events", "legacy-hunter2", event(2), 202)
	must("POST", "/events", reader, event(3), 401)
	must("POST", "/events", second, event(3), 401)
	must("GET", "/metrics?event_name=signup", writer, "", 401)

	// The commands that talk to the running server find their way too.
	var out bytes.Buffer
	in := &invocation{ctx: context.Background(), cfg: s.cfg, out: &out, log: slog.New(slog.DiscardHandler)}
	if err := health(in); err != nil {
		t.Errorf("edge health: %v", err)
	}
	in.args = []string{file("events.ndjson", event(4)+"\n"+event(5)+"\n")}
	if err := replay(in); err != nil {
		t.Errorf("edge replay: %v", err)
	}
	s.eventually("four events are stored", func() error {
		text, err := s.ask("GET", "/metrics?event_name=signup", reader, "", 200)
		if err == nil && !strings.Contains(string(text), `"total_events":4`) {
			err = fmt.Errorf("got %s", text)
		}
		return err
	})

	// A key is revoked and another comes, by a change of the file; a file that
	// is broken changes nothing; a certificate is renewed, on SIGHUP.
	file("keys", secondLine+readerLine)
	s.eventually("the new key works", func() error { _, err := s.ask("POST", "/events", second, event(6), 202); return err })
	must("POST", "/events", writer, event(7), 401)
	file("keys", second)
	s.eventually("the broken file is noticed", func() error { return s.metric(`edge_reloads_total{result="error",setting="KEYS_FILE"} 1`) })
	must("POST", "/events", second, event(8), 202)
	writeFile(t, cert, "no certificate")
	s.eventually("the broken certificate is noticed", func() error { return s.metric(`edge_reloads_total{result="error",setting="SERVER_TLS_CERT"} 1`) })
	for name, value := range env {
		t.Setenv(name, value)
	}
	if status := command([]string{"health"}, &out, &out); status != 0 {
		t.Errorf("with broken files that are not in force edge health says %d, %s", status, &out)
	}
	g.ca.issue("edge.example") // in the same place
	if err := s.metric(`edge_certificate_expires_timestamp_seconds{setting="SERVER_TLS_CERT"} 1.`); err != nil {
		t.Error(err)
	}
	old := transport.TLSClientConfig.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if c, err := tls.Dial("tcp", s.public, old); err == nil {
		c.Close()
		t.Error("TLS 1.1 is served")
	}
	before := s.serial()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.eventually("the new certificate is served", func() error {
		if s.serial() == before {
			return fmt.Errorf("serial %s", before)
		}
		return nil
	})

	s.close()
	// With nobody to ask, edge verify asks ClickHouse and Kafka itself.
	http.DefaultClient.CloseIdleConnections() // of a process that lived on
	in.cfg.AdminPort = netip.MustParseAddrPort(s.admin).Port()
	if err := verify(in); err != nil {
		t.Errorf("edge verify: %v", err)
	}
	shown := s.log.String() + s.cfg.String() + out.String()
	if !strings.Contains(shown, "level=DEBUG") {
		t.Error("nothing was logged at debug level")
	}
	for _, secret := range []string{kafkaPassword, clickHousePassword, "hunter2", writer, second, reader, strings.Fields(writerLine)[2]} {
		if strings.Contains(shown, secret) {
			t.Errorf("%s is in the log or in edge config", secret)
		}
	}
}

// metric is nil when the admin listener shows line.
func (s *secured) metric(line string) error {
	resp, err := http.Get("http://" + s.admin + "/metrics")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && !strings.Contains(string(text), line) {
		err = fmt.Errorf("no %s", line)
	}
	return err
}

// serial is the number of the certificate that is served now.
func (s *secured) serial() string {
	s.t.Helper()
	c, err := tls.Dial("tcp", s.public, s.http.Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// TestReadySaysWhatIsRefused holds that a wrong CA, a wrong password and a
// missing TLS are told apart, by the sentence of /ready, and that none of them
// shows the password.
func TestReadySaysWhatIsRefused(t *testing.T) {
	g := startGuarded(t, "PLAIN", nil)
	stranger := newAuthority(t)
	f := func(roles, kafka, clickHouse string, pairs ...string) (log string) {
		t.Helper()
		s := runSecured(t, g.settings("PLAIN", append(pairs, "ROLES", roles)...), http.DefaultClient)
		s.eventually(fmt.Sprintf("kafka %q, clickhouse %q", kafka, clickHouse), func() error {
			text, err := s.ask("GET", "/ready", "", "", 503)
			if err != nil {
				return err
			}
			var got struct{ Checks map[string]string }
			if err := json.Unmarshal(text, &got); err != nil {
				return err
			}
			if !strings.Contains(got.Checks["kafka"], kafka) || !strings.Contains(got.Checks["clickhouse"], clickHouse) {
				return fmt.Errorf("got %s", text)
			}
			return nil
		})
		s.close()
		if text := s.log.String(); strings.Contains(text, "hunter") {
			t.Errorf("the password is in the log:\n%s", text)
		}
		return s.log.String()
	}
	const both, loggedIn = "ingest,query", "events_db does not exist"
	const unknown = "certificate signed by unknown authority"
	f(both, unknown, unknown, "KAFKA_TLS_CA", stranger.file, "CLICKHOUSE_TLS_CA", stranger.file)
	f("sink,query", unknown, unknown, "KAFKA_TLS_CA", "", "CLICKHOUSE_TLS_CA", "")
	// This broker refuses a login by closing the connection; Apache Kafka says so.
	const closed = "as some do when user, password or mechanism (PLAIN) is wrong"
	f(both, closed, "Authentication failed", "KAFKA_SASL_PASSWORD", "hunter3", "CLICKHOUSE_PASSWORD", "hunter3")
	f("sink,query", closed, "Authentication failed", "KAFKA_SASL_USERNAME", "egde", "CLICKHOUSE_USERNAME", "egde")
	f(both, "(SCRAM-SHA-256) is wrong", loggedIn, "KAFKA_SASL_MECHANISM", "SCRAM-SHA-256")
	log := f(both, "TLS", "", "KAFKA_TLS", "false", "KAFKA_TLS_CA", "", "CLICKHOUSE_TLS", "false", "CLICKHOUSE_TLS_CA", "")
	if !strings.Contains(log, "the password crosses the network as it is") {
		t.Error("a password in the clear, and no word about it")
	}
	mutual := g.ca.server("mutual")
	mutual.ClientAuth = tls.RequireAndVerifyClientCert
	wantsCert, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.TLS(mutual))
	if err != nil {
		t.Fatal(err)
	}
	defer wantsCert.Close()
	f(both, "certificate required", loggedIn, "KAFKA_BROKERS", wantsCert.ListenAddrs()[0],
		"KAFKA_SASL_MECHANISM", "", "KAFKA_SASL_USERNAME", "", "KAFKA_SASL_PASSWORD", "")
	g.broker.ControlKey(int16(kmsg.SASLAuthenticate), func(req kmsg.Request) (kmsg.Response, error, bool) {
		g.broker.KeepControl()
		resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		resp.ErrorCode = kerr.SaslAuthenticationFailed.Code
		return resp, nil, true
	})
	f(both, "SASL_AUTHENTICATION_FAILED", loggedIn)
	f("sink,query", "SASL_AUTHENTICATION_FAILED", loggedIn)
}
