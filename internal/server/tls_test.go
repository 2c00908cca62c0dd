package server

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestTLS holds that a TLS listener is served like any other, and that clients
// that never finish their handshake hold up nobody.
func TestTLS(t *testing.T) {
	borrowed := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	defer borrowed.Close()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: borrowed.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	e := startOn(t, ln, func(c *Config) { c.MaxConns, c.ReadTimeout = 2, 200*time.Millisecond })
	client := &http.Client{Transport: borrowed.Client().Transport.(*http.Transport).Clone()}
	client.Transport.(*http.Transport).DialContext = nil
	defer client.CloseIdleConnections()
	post := func() {
		t.Helper()
		res, err := client.Post("https://"+e.addr+"/events", "application/json", strings.NewReader(good))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body) // a body left unread costs the connection
		res.Body.Close()
		if res.StatusCode != http.StatusAccepted {
			t.Errorf("got %d; want 202", res.StatusCode)
		}
		if got := res.Header.Get("Strict-Transport-Security"); got != "max-age=31536000" {
			t.Errorf("got Strict-Transport-Security %q", got)
		}
	}
	post()
	silent, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	eventually(t, "both places are taken", func() bool { return e.gate.open.Load() == 2 })
	over := e.dial()
	over.closed() // at once and without a word, which would need a handshake
	post()
	eventually(t, "the silent one is closed", func() bool { return e.gate.open.Load() == 1 })
	post()
}

// TestBrokenHandshakeIsExplained holds that whoever turns on debug reads why a
// client gets no TLS connection, and nothing of what a request held.
func TestBrokenHandshakeIsExplained(t *testing.T) {
	borrowed := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	defer borrowed.Close()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: borrowed.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	e := startOn(t, ln, func(c *Config) {
		c.Log = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	f := func(use func(), want string) {
		t.Helper()
		use()
		eventually(t, want, func() bool { return strings.Contains(log.String(), want) })
	}
	f(func() {
		if c, err := tls.Dial("tcp", e.addr, nil); err == nil {
			c.Close()
			t.Error("an unknown certificate was trusted")
		}
	}, `"err":"remote error: tls: bad certificate"`)
	f(func() { plain := e.dial(); plain.send("GET /health HTTP/1.1\r\nX-API-Key: hunter2\r\n\r\n") },
		`"err":"tls: first record does not look like a TLS handshake"`)
	f(func() {
		if c, err := tls.Dial("tcp", e.addr, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11, InsecureSkipVerify: true}); err == nil {
			c.Close()
			t.Error("TLS 1.1 was taken")
		}
	}, `"err":"tls: client offered only unsupported versions`)
	f(func() {
		c, err := tls.Dial("tcp", e.addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "GET / hunter2\r\n\r\n")
		_, _ = io.Copy(io.Discard, c)
	}, `"msg":"fasthttp: error when serving connection"`)
	if text := log.String(); strings.Contains(text, "hunter2") || strings.Contains(text, "%q") {
		t.Errorf("the log has a request or a format:\n%s", text)
	}
}
