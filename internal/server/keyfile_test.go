package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"edge/internal/logging"
	"edge/internal/query"
)

// newTestKey returns a key and its line.
func newTestKey(t *testing.T, scope Scope, id string) (key, line string) {
	t.Helper()
	key, line, err := NewKey(scope, id)
	if err != nil {
		t.Fatal(err)
	}
	return key, line
}

func keyFile(t *testing.T, lines ...string) *KeyFile {
	t.Helper()
	f, err := ParseKeyFile([]byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestKeyFile(t *testing.T) {
	_, shop := newTestKey(t, Write, "shop")
	_, grafana := newTestKey(t, Read, "")
	f := keyFile(t, "# who posts", "", "  "+shop+"\t250  ", strings.Replace(shop, "shop", "Shop-2", 1)+"\r", grafana)
	if f.Len(Write) != 2 || f.Len(Read) != 1 {
		t.Errorf("got %d write keys and %d read keys; want 2 and 1", f.Len(Write), f.Len(Read))
	}
	if got := f.keys[Write]["shop"].rate; got != 250 {
		t.Errorf("got a rate of %d; want 250", got)
	}

	digest := strings.Fields(shop)[2]
	bad := func(text, want string) {
		t.Helper()
		_, err := ParseKeyFile([]byte(text))
		if err == nil || err.Error() != want {
			t.Errorf("%q: got %v; want %s", text, err, want)
		}
		for word := range strings.FieldsSeq(text) {
			if err != nil && len(word) > 20 && strings.Contains(err.Error(), word) {
				t.Errorf("the error quotes the file: %v", err)
			}
		}
	}
	const shape = "want scope, id, SHA-256 and perhaps a rate"
	const empty = "it is empty; a comment and no key lets nobody in"
	bad("", empty)
	bad(" \r\n\n\t", empty)
	bad("\nwrite shop", "line 2: "+shape)
	bad("edge_w_shop_ABCDEFGHIJKLMNOPQRSTUVWXYZ", "line 1: "+shape)
	bad(shop+" 1 2", "line 1: "+shape)
	bad("admin shop "+digest, "line 1: the scope must be write or read")
	bad("edge_w_shop_ABCDEFGHIJKLMNOPQRSTUVWXYZ shop "+digest, "line 1: the scope must be write or read")
	bad("write my_shop "+digest, "line 1: "+errBadID.Error())
	bad("write "+strings.Repeat("x", 65)+" "+digest, "line 1: "+errBadID.Error())
	bad("write shop edge_w_shop_ABCDEFGHIJKLMNOPQRSTUVWXYZ", "line 1: the SHA-256 of the key must be 64 hex digits")
	bad("write shop "+digest[:62], "line 1: the SHA-256 of the key must be 64 hex digits")
	bad(shop+" -1", "line 1: the rate must be a number from 0 to 1000000000")
	bad(shop+" fast", "line 1: the rate must be a number from 0 to 1000000000")
	bad(grafana+"\n"+shop+"\n"+shop, "line 3: there is another write key of the same id")
}

// FuzzKeyFile holds that no text is more than an error, and that a line which is
// taken can be written again.
func FuzzKeyFile(f *testing.F) {
	digest := strings.Repeat("0123456789abcdef", 4)
	f.Add("write shop " + digest + " 250\n# x\nread a " + digest)
	f.Add("write shop\r\n\x00\xff \u2028 1")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := ParseKeyFile([]byte(text))
		if err != nil {
			return
		}
		for scope, keys := range file.keys {
			for id, k := range keys {
				if _, err := ParseKeyFile(fmt.Appendf(nil, "%s %s %x", Scope(scope), id, k.digest)); err != nil || k.rate < defaultRate {
					t.Errorf("%s %s: rate %d, %v", Scope(scope), id, k.rate, err)
				}
			}
		}
	})
}

func TestNewKey(t *testing.T) {
	key, line := newTestKey(t, Write, "shop")
	if !strings.HasPrefix(key, "edge_w_shop_") || len(key) < len("edge_w_shop_")+26 || strings.Contains(line, key[len("edge_w_shop_"):]) {
		t.Errorf("got key %s and line %s", key, line)
	}
	again, _ := newTestKey(t, Write, "shop")
	if again == key {
		t.Error("got the same key twice")
	}
	if _, line := newTestKey(t, Read, ""); !strings.HasPrefix(line, "read ") {
		t.Errorf("got line %s; want a read key with an id made up", line)
	}
	if _, _, err := NewKey(Write, "my shop"); err != errBadID {
		t.Errorf("got %v; want %v", err, errBadID)
	}
}

// TestKeysAreReplaced holds that a request is judged by the keys of its moment:
// what is revoked stops, what is new starts, WRITE_KEYS stay, and with a keys
// file both scopes are guarded.
func TestKeysAreReplaced(t *testing.T) {
	shop, shopLine := newTestKey(t, Write, "shop")
	other, otherLine := newTestKey(t, Write, "other")
	reader, readerLine := newTestKey(t, Read, "shop") // the same id in the other scope
	e := start(t, func(c *Config) {
		c.WriteKeys = []string{"legacy", other}
		c.KeyFile = keyFile(t, shopLine)
		c.Query = func(context.Context, query.Request) (*query.Result, error) { return new(query.Result), nil }
	})
	f := func(key string, write, read int) {
		t.Helper()
		h := header("X-API-Key", key)
		e.do("POST", "/events", h, []byte(good)).check(t, write, "")
		e.do("GET", "/metrics?event_name=a", h, nil).check(t, read, "")
	}
	f(shop, 202, 401)
	f("legacy", 202, 401)
	f(other, 202, 401) // from the list, though it names an id
	f(reader, 401, 401)
	f("", 401, 401)
	for _, near := range []string{shop[:len(shop)-1], shop + "A", strings.ToLower(shop), strings.Replace(shop, "shop", "other", 1), "edge_w_shop_", "edge_w_shop", "edge_", "edge_w__", "edge_r_" + shop[7:]} {
		f(near, 401, 401)
	}
	e.SetKeyFile(keyFile(t, otherLine, readerLine))
	f(shop, 401, 401)
	f(reader, 401, 200)
	f(other, 202, 401)
	f("legacy", 202, 401)
	basic := header("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(reader+":x")))
	e.do("GET", "/metrics?event_name=a", basic, nil).check(t, 200, "")
}

// TestLastKeyIsRevoked holds that a keys file of comments lets nobody in, in the running
// server and at a start, and never everybody.
func TestLastKeyIsRevoked(t *testing.T) {
	shop, line := newTestKey(t, Write, "shop")
	for _, nobody := range []string{"# " + line, "# who posts\n\n", "#"} {
		var log lockedBuffer
		file := keyFile(t, nobody)
		running := start(t, func(c *Config) {
			c.Log, c.WriteKeys, c.KeyFile = slog.New(slog.NewTextHandler(&log, nil)), []string{"listed"}, keyFile(t, line)
		})
		running.do("POST", "/events", header("X-API-Key", shop), []byte(good)).check(t, 202, "accepted")
		running.SetKeyFile(file)
		if !strings.Contains(log.String(), "the keys file has no key") {
			t.Errorf("%q: not a word in the log:\n%s", nobody, log.String())
		}
		fresh := start(t, func(c *Config) { c.KeyFile = file })
		for _, e := range []*edge{running, fresh} {
			for _, key := range []string{shop, "", "edge_w_shop_", "edge_w__"} {
				e.do("POST", "/events", header("X-API-Key", key), []byte(good)).check(t, 401, "API key")
			}
			e.do("GET", "/health", nil, nil).check(t, 200, "healthy")
		}
		running.do("POST", "/events", header("X-API-Key", "listed"), []byte(good)).check(t, 202, "accepted")
		running.SetKeyFile(keyFile(t, line))
		running.do("POST", "/events", header("X-API-Key", shop), []byte(good)).check(t, 202, "accepted")
	}
}

// TestKeyFileRates holds whose rate counts, and that a reload forgives nobody.
func TestKeyFileRates(t *testing.T) {
	fast, fastLine := newTestKey(t, Write, "fast")
	free, freeLine := newTestKey(t, Write, "free")
	plain, plainLine := newTestKey(t, Write, "plain")
	reader, readerLine := newTestKey(t, Read, "reader")
	idle, idleLine := newTestKey(t, Read, "idle")
	file := keyFile(t, fastLine+" 1000", freeLine+" 0", plainLine, readerLine+" 1", idleLine)
	e := start(t, func(c *Config) {
		c.KeyRate, c.KeyFile = 1, file
		c.Query = func(context.Context, query.Request) (*query.Result, error) { return new(query.Result), nil }
	})
	bulk := []byte("[" + strings.Repeat(good+",", 9) + good + "]")
	post := func(key string, status int) {
		t.Helper()
		a := e.do("POST", "/events/bulk", header("X-API-Key", key), bulk)
		if a.StatusCode != status {
			t.Errorf("%s: got %d %s; want %d", key[:12], a.StatusCode, a.body, status)
		}
	}
	post(plain, 202)
	for range 3 {
		post(fast, 202)
		post(free, 202)
		post(plain, 429) // by KEY_RATE
		e.SetKeyFile(file)
	}
	e.SetKeyFile(keyFile(t, plainLine+" 1000", readerLine+" 1", idleLine))
	post(plain, 202) // a new rate is a new start

	statuses := func(key string) (got []int) {
		for range 3 {
			got = append(got, e.do("GET", "/metrics?event_name=a", header("X-API-Key", key), nil).StatusCode)
		}
		return got
	}
	// A burst of a second, and what was let in at its end.
	if got := statuses(reader); got[0] != 200 || got[2] != 429 {
		t.Errorf("one query a second: got %v; want 200 first and 429 last", got)
	}
	if got := statuses(idle); got[2] != 200 {
		t.Errorf("KEY_RATE is for write keys; a read key got %v", got)
	}
}

// TestRefusedKeysAreLoggedOnce holds that guessing keys does not fill the log,
// and that what was presented never shows in it.
func TestRefusedKeysAreLoggedOnce(t *testing.T) {
	shop, line := newTestKey(t, Write, "shop")
	var log lockedBuffer
	e := start(t, func(c *Config) {
		c.Log = slog.New(logging.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}), logging.Period))
		c.KeyFile = keyFile(t, line)
	})
	mistyped := shop[:len(shop)-2] + "00"
	for range 100 {
		e.do("POST", "/events", header("X-API-Key", mistyped), []byte(good)).check(t, 401, "not valid")
		e.do("POST", "/events", header("Authorization", "Bearer edge_w_guess_hunter2"), []byte(good)).check(t, 401, "not valid")
	}
	text := log.String()
	if got := strings.Count(text, "without a valid API key"); got != 1 || !strings.Contains(text, `"key":"shop"`) {
		t.Errorf("got %d lines; want one that names the key shop:\n%s", got, text)
	}
	for _, secret := range []string{mistyped, shop[12:], "guess", "hunter2"} {
		if strings.Contains(text, secret) {
			t.Errorf("%s is in the log:\n%s", secret, text)
		}
	}
}

// A key of the other scope is ours, too.
func TestKeyOfTheOtherScopeIsNamed(t *testing.T) {
	dash, line := newTestKey(t, Read, "dash")
	var log lockedBuffer
	e := start(t, func(c *Config) {
		c.Log = slog.New(slog.NewJSONHandler(&log, nil))
		c.KeyFile = keyFile(t, line)
	})
	e.do("POST", "/events", header("X-API-Key", dash), []byte(good)).check(t, 401, "not valid")
	if text := log.String(); !strings.Contains(text, `"key":"dash"`) {
		t.Errorf("got %s; want a line that names the key dash", text)
	}
}

// lockedBuffer is a buffer that handlers write and a test reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
