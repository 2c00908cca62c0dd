package server

import (
	"crypto/tls"
	"io"
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
