package server

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"edge/internal/codec"
	"edge/internal/producer"
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

// TestKeyRate holds that a key over its rate is refused before its body is
// read, that other keys are not, and that it is let in again when it has waited.
func TestKeyRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		noisy, quiet := newBucket(100), newBucket(100)
		f := func(b *bucket, want time.Duration) {
			t.Helper()
			if got := b.wait(time.Now()); got != want {
				t.Errorf("got a wait of %v; want %v", got, want)
			}
		}
		take := func(b *bucket, n int, want time.Duration) {
			t.Helper()
			if got := b.take(n, time.Now()); got != want {
				t.Errorf("%d events: got a wait of %v; want %v", n, got, want)
			}
		}
		f(noisy, 0)
		take(noisy, 100, 0) // the burst
		f(noisy, 0)
		take(noisy, 50, 0)
		take(noisy, 1, 500*time.Millisecond) // and nothing is charged
		f(noisy, 500*time.Millisecond)
		f(quiet, 0)
		<-time.After(499 * time.Millisecond)
		f(noisy, time.Millisecond)
		<-time.After(time.Millisecond)
		f(noisy, 0)
		<-time.After(time.Hour) // rest is not saved up beyond the burst
		take(noisy, 101, 0)
		f(noisy, 10*time.Millisecond)
		noisy.giveBack(101)
		f(noisy, 0)
		take(noisy, 1e6, 0) // more than a burst may have: once
		take(noisy, 1, 1e6*10*time.Millisecond-burst)
	})

	var full atomic.Bool
	e := start(t, func(c *Config) {
		c.WriteKeys, c.KeyRate = []string{"noisy", "quiet"}, 1
		c.Publish = func(*codec.Batch) error {
			if full.Load() {
				return producer.ErrFull
			}
			return nil
		}
	})
	bulk := []byte("[" + strings.Repeat(good+",", 9) + good + "]")
	full.Store(true)
	for range 3 { // not charged: nothing was kept
		e.do("POST", "/events/bulk", header("X-API-Key", "noisy"), bulk).check(t, 429, "nothing of the request was kept")
	}
	full.Store(false)
	e.do("POST", "/events/bulk", header("X-API-Key", "noisy"), bulk).check(t, 202, `"accepted":10`)
	a := e.do("POST", "/events", header("X-API-Key", "noisy"), []byte(good))
	if a.StatusCode != 429 || a.Header.Get("Retry-After") != "9" || !strings.Contains(a.body, "again in 9 s") {
		t.Errorf("got %d, Retry-After %q, %s; want 429 and 9", a.StatusCode, a.Header.Get("Retry-After"), a.body)
	}
	e.do("POST", "/events", header("X-API-Key", "quiet"), []byte(good)).check(t, 202, "accepted")
	if got := e.rejections()["rate_limited"]; got != 1 {
		t.Errorf("got %d refused over the rate; want 1", got)
	}
}

// TestKeyRateOfManyAtOnce holds that requests whose headers were all in before the
// first was charged do not all pass: what is over the rate is refused when it is decoded.
func TestKeyRateOfManyAtOnce(t *testing.T) {
	e := start(t, func(c *Config) { c.WriteKeys, c.KeyRate = []string{"k"}, 1 })
	const events, n = 100, 8
	body := "[" + strings.Repeat(good+",", events-1) + good + "]"
	var held []*conn
	for range n {
		c := e.dial()
		c.send("POST /events/bulk HTTP/1.1\r\nHost: a\r\nX-API-Key: k\r\nTransfer-Encoding: chunked\r\n\r\n" +
			itohex(len(body)) + "\r\n" + body[:len(body)-1])
		held = append(held, c)
	}
	eventually(t, "all headers are in", func() bool { return e.memory.used.Load() == n*16<<10 })
	var accepted, refused int
	for _, c := range held {
		c.send("]\r\n0\r\n\r\n")
		switch a := c.answer(); {
		case a.StatusCode == 202 && strings.Contains(a.body, `"accepted":100`):
			accepted++
		case a.StatusCode == 429 && strings.Contains(a.body, "over its rate") && a.Header.Get("Retry-After") != "":
			refused++
		default:
			t.Errorf("got %d %s", a.StatusCode, a.body)
		}
	}
	if accepted != 1 || refused != n-1 || e.published.Load() != events {
		t.Errorf("got %d accepted, %d refused, %d events published; want 1, %d, %d", accepted, refused, e.published.Load(), n-1, events)
	}
	if got := e.rejections()["rate_limited"]; got != (n-1)*events {
		t.Errorf("got %d events refused over the rate; want %d", got, (n-1)*events)
	}
}
