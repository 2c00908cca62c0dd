package server

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"

	"edge/internal/query"
)

func TestKeys(t *testing.T) {
	digest := sha256.Sum256([]byte("second"))
	e := start(t, func(c *Config) {
		c.WriteKeys = []string{"first", "sha256:" + strings.ToUpper(hex.EncodeToString(digest[:]))}
		c.ReadKeys = []string{"reader"}
		c.Query = func(context.Context, query.Request) (*query.Result, error) { return new(query.Result), nil }
	})
	f := func(key, value string, writes, reads bool) {
		t.Helper()
		h := header(key, value)
		one := func(a answer, ok bool, status int) {
			t.Helper()
			if ok {
				a.check(t, status, "")
				return
			}
			a.check(t, 401, "API key")
			if got := a.Header.Get("WWW-Authenticate"); got != `Bearer realm="edge"` {
				t.Errorf("got WWW-Authenticate %q", got)
			}
		}
		one(e.do("POST", "/events", h, []byte(good)), writes, 202)
		one(e.do("POST", "/events/bulk", h, []byte("["+good+"]")), writes, 202)
		one(e.do("GET", "/metrics?event_name=a", h, nil), reads, 200)
		e.do("GET", "/health", h, nil).check(t, 200, "")
		e.do("GET", "/ready", h, nil).check(t, 200, "")
	}
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	f("Authorization", "Bearer first", true, false)
	f("authorization", "bearer  first ", true, false)
	f("Authorization", "Bearer second", true, false)
	f("X-API-Key", "first", true, false)
	f("x-api-key", "second", true, false)
	f("Authorization", basic("first:"), true, false)
	f("Authorization", basic("first:ignored:too"), true, false)
	f("Authorization", basic("second"), true, false)
	f("Authorization", "Bearer reader", false, true)
	f("X-API-Key", "reader", false, true)

	f("X-Other", "first", false, false)
	f("X-API-Key", "", false, false)
	f("X-API-Key", "firs", false, false)
	f("X-API-Key", "first ", true, false) // white space around a value is not part of it
	f("X-API-Key", "FIRST", false, false)
	f("X-API-Key", hex.EncodeToString(digest[:]), false, false)
	f("X-API-Key", strings.Repeat("first", 200), false, false)
	f("Authorization", "first", false, false)
	f("Authorization", "Digest first", false, false)
	f("Authorization", "Bearer", false, false)
	f("Authorization", "Basic !!!", false, false)
	f("Authorization", basic(":first"), false, false)
	f("Authorization", basic(strings.Repeat("x", 2000)), false, false)
	if got := e.rejections()["unauthorized"]; got == 0 {
		t.Error("refusals are not counted")
	}
	e.do("OPTIONS", "/events", header("Origin", "https://shop.example"), nil).check(t, 204, "")
}

func TestParseKeysNeverQuotesAKey(t *testing.T) {
	for _, list := range [][]string{{"sha256:secret"}, {"ok", strings.Repeat("secret", 100)}, {"sha256:" + strings.Repeat("se", 32)}} {
		_, err := parseKeys(list)
		if err == nil || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "sese") {
			t.Errorf("got %v; want an error without the key", err)
		}
	}
}

func TestCORS(t *testing.T) {
	const shop = "https://shop.example"
	f := func(origins []string, origin, want, vary string) {
		t.Helper()
		e := start(t, func(c *Config) { c.Origins = origins })
		h := header("Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type")
		if origin != "" {
			h["Origin"] = origin
		}
		hold := func(a answer, key, want string) {
			t.Helper()
			if got := a.Header.Get(key); got != want {
				t.Errorf("%v asked by %q: got %d with %s %q; want %q", origins, origin, a.StatusCode, key, got, want)
			}
		}
		preflight := e.do("OPTIONS", "/events/bulk/", h, nil)
		preflight.check(t, 204, "")
		also := func(s string) string {
			if want == "" {
				return ""
			}
			return s
		}
		hold(preflight, "Access-Control-Allow-Methods", also("OPTIONS, POST"))
		hold(preflight, "Access-Control-Allow-Headers", also("content-type, content-encoding, authorization, x-api-key, x-retry-count"))
		hold(preflight, "Access-Control-Max-Age", also("7200"))
		for _, a := range []answer{
			preflight,
			e.do("POST", "/events", h, []byte(good)),
			e.do("POST", "/events", h, []byte("{")),
			e.do("GET", "/nope", h, nil),
		} {
			hold(a, "Access-Control-Allow-Origin", want)
			hold(a, "Access-Control-Expose-Headers", also("Retry-After"))
			hold(a, "Access-Control-Allow-Credentials", "")
			hold(a, "Vary", vary)
		}
	}
	f([]string{"*"}, shop, "*", "")
	f([]string{"*"}, "null", "*", "")
	f([]string{"*"}, "", "", "")
	f([]string{"https://a.example", shop}, shop, shop, "Origin")
	f([]string{"https://a.example"}, shop, "", "Origin")
	f([]string{shop}, shop+".evil.example", "", "Origin")
	f([]string{shop}, strings.ToUpper(shop), "", "Origin")
	f(nil, shop, "", "Origin")
}
