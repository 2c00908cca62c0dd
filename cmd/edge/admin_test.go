package main

import (
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestAdminListenerObeysNoPage has a page in a browser ask for what changes something. No
// browser asks such a request's permission first.
func TestAdminListenerObeysNoPage(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &app{ln: listeners{admin: ln}, level: new(slog.LevelVar), failed: make(chan error, 1)}
	if err := a.startAdmin(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer a.admin.Close()
	put := func(origin string, want int) {
		t.Helper()
		req, err := http.NewRequest(http.MethodPut, "http://"+ln.Addr().String()+"/loglevel", strings.NewReader("debug"))
		if err != nil {
			t.Fatal(err)
		}
		if origin != "" {
			req.Header.Set("Origin", origin)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("from %q: status %d; want %d", origin, resp.StatusCode, want)
		}
	}
	put("http://evil.example", http.StatusForbidden)
	if a.level.Level() != slog.LevelInfo {
		t.Error("a page has changed the level")
	}
	put("", http.StatusOK)
}
