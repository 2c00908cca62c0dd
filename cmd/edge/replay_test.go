package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"edge/internal/codec"
)

// TestReplayNamesLines holds that a rejected event, and an answer that ends the
// replay, are named by their line in the file, blank lines counted.
func TestReplayNamesLines(t *testing.T) {
	const file = `{"event_name":"a"}

{"event_name":"b"}

{"event_name":"bad"}
{"event_name":"c"}
{"event_name":"full"}
`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		accepted, errs := 0, []string{}
		for i, line := range strings.Split(strings.TrimSuffix(string(body), "\n"), "\n") {
			switch {
			case strings.Contains(line, `"full"`):
				http.Error(w, `{"error":"the body is larger than the limit"}`, http.StatusRequestEntityTooLarge)
				return
			case strings.Contains(line, `"bad"`):
				errs = append(errs, fmt.Sprintf(`{"index":%d,"error":"no"}`, i))
			default:
				accepted++
			}
		}
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprintf(w, `{"accepted":%d,"rejected":%d,"errors":[%s]}`, accepted, len(errs), strings.Join(errs, ","))
	}))
	defer srv.Close()
	var out strings.Builder
	r := replayer{url: srv.URL, client: srv.Client(), prefix: "x", out: &out, maxEvents: 2, maxBytes: 1 << 20, maxLine: 1 << 20}
	err := r.run(context.Background(), bufio.NewReader(strings.NewReader(file)), func() float64 { return 1 })
	if want := "line 7: 413 Request Entity Too Large: the body is larger than the limit"; err == nil || err.Error() != want {
		t.Errorf("got error %v; want %s", err, want)
	}
	for _, want := range []string{"line 5: no\n", "accepted 3, rejected 1, "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("got output %q; want it to contain %q", out.String(), want)
		}
	}
}

// A byte that a reason names is one of the line in the file, whatever is before it in the body.
func TestReplayNamesBytesOfLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := sent("bad", `,"channel":"fax"`)
		at := strings.Index(bad, `"fax"`)
		lines := []string{sent("first", ""), "", bad, " \t" + bad, "nonsense", sent("last", ""), bad}
		out, err := newForgetful(t).replay(strings.Join(lines, "\n"))
		if err == nil || err.Error() != "4 events were rejected" {
			t.Errorf("got %v; want 4 rejections", err)
		}
		for line, at := range map[int]int{3: at, 4: 2 + at, 5: 0, 7: at} {
			if got := regexp.MustCompile(fmt.Sprintf(`(?m)^line %d: .*\(byte (\d+)\)$`, line)).FindStringSubmatch(out); got == nil || got[1] != strconv.Itoa(at) {
				t.Errorf("got %v; want line %d, byte %d of\n%s", got, line, at, out)
			}
		}
	})
}

// forgetful is a server that takes what edge would, keeps it, and says of each request
// that it may come again, once. With a 429 it keeps nothing at first.
type forgetful struct {
	t      *testing.T
	events *codec.Pool
	first  int             // status of the first answer
	asked  map[string]bool // bodies
	counts map[string]int  // by event_name, each event_id once
	ids    map[string]bool
}

func newForgetful(t *testing.T) *forgetful {
	return &forgetful{t, codec.NewPool(codec.Rules{}), http.StatusServiceUnavailable, map[string]bool{}, map[string]int{}, map[string]bool{}}
}

func (s *forgetful) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	if len(body) > 10<<20 {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		fmt.Fprint(w, `{"error":"the body is larger than the limit"}`)
		return w.Result(), nil
	}
	again := s.asked[string(body)]
	s.asked[string(body)] = true
	if !again && s.first == http.StatusTooManyRequests {
		w.WriteHeader(s.first)
		fmt.Fprint(w, `{"error":"too many"}`)
		return w.Result(), nil
	}
	batch := s.events.Get()
	defer batch.Release()
	if err := batch.DecodeLines(body, time.Now()); err != nil {
		s.t.Error(err)
	}
	var (
		decoder codec.Decoder
		ev      codec.Event
	)
	for i := range batch.Len() {
		if err := decoder.DecodeRecord(batch.Record(i), &ev); err != nil {
			s.t.Error(err)
		}
		if !s.ids[string(ev.EventID)] {
			s.ids[string(ev.EventID)] = true
			s.counts[string(ev.Name)]++
		}
	}
	if !again {
		w.WriteHeader(s.first)
		fmt.Fprint(w, `{"error":"the broker has not confirmed in time"}`)
		return w.Result(), nil
	}
	var errs []string
	for _, r := range batch.Rejected() {
		errs = append(errs, fmt.Sprintf(`{"index":%d,"error":%q}`, r.Index, r.Err.Error()))
	}
	w.WriteHeader(http.StatusAccepted)
	fmt.Fprintf(w, `{"accepted":%d,"rejected":%d,"errors":[%s]}`, batch.Len(), len(errs), strings.Join(errs, ","))
	return w.Result(), nil
}

const maxEvent = 64 << 10 // as the codec has it when it is not told

// replay posts file to s and returns what was printed.
func (s *forgetful) replay(file string) (string, error) {
	var out strings.Builder
	r := replayer{
		url: "http://edge", client: &http.Client{Transport: s}, prefix: "x", out: &out,
		maxEvents: 5000, maxBytes: 4 << 20, maxLine: 10<<20 - idBytes, maxEvent: maxEvent,
	}
	err := r.run(s.t.Context(), bufio.NewReader(strings.NewReader(file)), func() float64 { return 1 })
	return out.String(), err
}

// sent is the text of an event, valid also by the clock of a synctest bubble, with rest as
// its last members.
func sent(name, rest string) string {
	return fmt.Sprintf(`{"event_name":%q,"user_id":"u","timestamp":946684800000%s}`, name, rest)
}

// sentLong is an event whose text has size bytes, none of which can be left out.
func sentLong(name string, size int, rest string) string {
	text := sent(name, `,"metadata":{"x":""}`+rest)
	return strings.Replace(text, `"x":""`, `"x":"`+strings.Repeat("x", size-len(text))+`"`, 1)
}

func TestReplaySentAgainCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newForgetful(t)
		lines := []string{
			sent("absent", ""),
			sent("null", `,"event_id":null`),
			sent("empty", `,"event_id":""`),
			`{"event_id":null,` + sent("first", "")[1:],
			sent("no longer", `,"event_id":"a","event_id":null`),
			sent("escaped", `,"event_\u0069d":null`),
			sent("within", `,"metadata":{"event_id":"b"}`),
			" \t" + sent("spaced", " ") + " \r",
			// These have one.
			sent("own", `,"event_id":"c"`),
			sent("own", `,"event_id":"c"`),
			sent("at last", `,"event_id":null,"event_id":"d"`),
		}
		out, err := s.replay(strings.Join(lines, "\n"))
		if err != nil || !strings.Contains(out, "accepted 11, rejected 0, ") {
			t.Errorf("got %v and %q; want 11 accepted", err, out)
		}
		want := map[string]int{"absent": 1, "null": 1, "empty": 1, "first": 1, "no longer": 1, "escaped": 1, "within": 1,
			"spaced": 1, "own": 1, "at last": 1}
		if !maps.Equal(s.counts, want) {
			t.Errorf("got %v; want %v", s.counts, want)
		}
		ids := slices.Sorted(maps.Keys(s.ids))
		if want := []string{"c", "d", "x-1", "x-2", "x-3", "x-4", "x-5", "x-6", "x-7", "x-8"}; !slices.Equal(ids, want) {
			t.Errorf("got ids %q; want %q", ids, want)
		}
	})
}

// A line that one body cannot hold is rejected by itself; one that a body can is the
// server's to judge. Neither is in a body with its neighbours.
func TestReplayGoesOnBehindALongLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newForgetful(t)
		lines := []string{
			sent("first", ""),
			"",
			sentLong("too long", 11<<20, ""),
			sent("between", ""),
			sentLong("as long as a body", 10<<20-idBytes-1, ""),
			sent("after", ""),
			strings.Repeat("[", 10<<20),
		}
		out, err := s.replay(strings.Join(lines, "\n"))
		if err == nil || err.Error() != "3 events were rejected" {
			t.Errorf("got %v; want 3 rejections", err)
		}
		for _, want := range []string{
			"line 3: the line does not fit into MAX_BODY_BYTES, 10MiB\n",
			"line 5: the event is larger than the limit in bytes, 65536 (",
			"line 7: the line does not fit into MAX_BODY_BYTES, 10MiB\n",
			"accepted 3, rejected 3, ",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("got %q; want it to contain %q", out, want)
			}
		}
		if want := map[string]int{"first": 1, "between": 1, "after": 1}; !maps.Equal(s.counts, want) {
			t.Errorf("got %v; want %v", s.counts, want)
		}
	})
}

// POST /events takes an event of exactly MAX_EVENT_BYTES, which has no room for an id.
func TestReplayOfTheLargestEvents(t *testing.T) {
	room := len(`,"event_id":"x-1"`)
	file := strings.Join([]string{
		sentLong("room", maxEvent-room, ""),
		sentLong("own", maxEvent, `,"event_id":"a"`),
		sentLong("bare", maxEvent-room+1, ""),
		sentLong("largest", maxEvent, ""),
		sent("after", ""),
		sentLong("too large", maxEvent+1, ""),
	}, "\n")
	f := func(first int, wantErr, wantOut string, want map[string]int) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			s := newForgetful(t)
			s.first = first
			out, err := s.replay(file)
			if err == nil || err.Error() != wantErr || !strings.Contains(out, wantOut) {
				t.Errorf("after %d got %v and %q; want %s and %q", first, err, out, wantErr, wantOut)
			}
			if !maps.Equal(s.counts, want) {
				t.Errorf("after %d got %v; want %v", first, s.counts, want)
			}
		})
	}
	f(http.StatusTooManyRequests, "1 events were rejected", "accepted 5, rejected 1, ",
		map[string]int{"room": 1, "own": 1, "bare": 1, "largest": 1, "after": 1})
	f(http.StatusServiceUnavailable, "line 3: the broker has not confirmed in time; the event may count or not, and is not sent again: "+
		"MAX_EVENT_BYTES leaves no room for an event_id", "accepted 2, rejected 0, ", map[string]int{"room": 1, "own": 1, "bare": 1})
}

func TestReplayKey(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0", 64)
	f := func(own, keys, want string) {
		t.Helper()
		cfg, err := loadConfig(map[string]string{"REPLAY_KEY": own, "WRITE_KEYS": keys})
		if got := cfg.replayKey(); err != nil || got != want {
			t.Errorf("REPLAY_KEY=%s, WRITE_KEYS=%s: got %q, %v; want %q", own, keys, got, err, want)
		}
	}
	f("", "", "")
	f("", digest, "")
	f("", "a,b", "a")
	f("", digest+",b,c", "b")
	f("own", "a", "own")
}
