package query

import (
	"encoding/json"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestAppendJSON(t *testing.T) {
	f := func(r Result, want string) {
		t.Helper()
		if got := string(r.AppendJSON([]byte("x"))); got != "x"+want {
			t.Errorf("got  %s\nwant x%s", got, want)
		}
	}
	req := Request{EventName: "product_view", From: 1723400000, To: 1723486400, GroupBy: "channel"}
	f(Result{Request: req, Events: 15420, Users: 8905, Groups: []Group{{"web", 10200, 5100}, {"", 5220, 4000}}},
		`{"event_name":"product_view","from":1723400000,"to":1723486400,"grouped_by":"channel",`+
			`"total_events":15420,"unique_users":8905,`+
			`"data":[{"group":"web","total_events":10200,"unique_users":5100},{"group":"","total_events":5220,"unique_users":4000}]}`)
	f(Result{Request: Request{EventName: "nobody", To: 1}},
		`{"event_name":"nobody","from":0,"to":1,"grouped_by":"","total_events":0,"unique_users":0,"data":[]}`)
	req = Request{EventName: "v", To: 1, GroupBy: "campaign_id"}
	f(Result{Request: req, Events: 3, Users: 2, Groups: []Group{{"a", 2, 1}}, Truncated: true},
		`{"event_name":"v","from":0,"to":1,"grouped_by":"campaign_id","total_events":3,"unique_users":2,`+
			`"data":[{"group":"a","total_events":2,"unique_users":1}],"truncated":true}`)
	f(Result{Request: Request{EventName: "v", To: 9}, KeptFrom: 7, Events: 1, Users: 1},
		`{"event_name":"v","from":0,"to":9,"kept_from":7,"grouped_by":"","total_events":1,"unique_users":1,"data":[]}`)
	req = Request{EventName: "v", To: 1, GroupBy: "day", CountsOnly: true}
	f(Result{Request: req, Events: 3, Groups: []Group{{"1970-01-01", 3, 0}}},
		`{"event_name":"v","from":0,"to":1,"grouped_by":"day","total_events":3,"data":[{"group":"1970-01-01","total_events":3}]}`)
}

func TestAppendStringIsJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "s")
		var got string
		if err := json.Unmarshal(AppendString(nil, s), &got); err != nil || got != s {
			t.Fatalf("AppendString(%q) reads back as %q, %v", s, got, err)
		}
	})
	if got := string(AppendString(nil, "a\xffb")); got != "\"a\uFFFDb\"" {
		t.Errorf("a byte that is not UTF-8 became %s", got)
	}
}

func TestTimeLabel(t *testing.T) {
	berlin := mustZone(t, "Europe/Berlin")
	f := func(groupBy string, key int64, zone *time.Location, want string) {
		t.Helper()
		if got := timeLabel(groupBy, key, zone); got != want {
			t.Errorf("timeLabel(%q, %d, %s) = %q; want %q", groupBy, key, zone, got, want)
		}
	}
	f("minute", 1708779660, time.UTC, "2024-02-24T13:01:00Z")
	f("hour", 1708779600, time.UTC, "2024-02-24T13:00:00Z")
	f("day", 1708732800, time.UTC, "2024-02-24")
	f("day", 0, time.UTC, "1970-01-01")
	f("hour", 1708779600, berlin, "2024-02-24T14:00:00+01:00")
	f("day", 1708732800, berlin, "2024-02-24")
}

func TestEscape(t *testing.T) {
	f := func(s, want string) {
		t.Helper()
		if got := param("k", s).Value; got != want {
			t.Errorf("param(%q) = %s; want %s", s, got, want)
		}
	}
	f("plain", `'plain'`)
	f("it's", `'it\\\'s'`)
	f(`a\b`, `'a\\\\b'`)
	f("a\nb\tc\x00", `'a\\nb\\tc\\0'`)
	f("{x:String} -- ; ünï", `'{x:String} -- ; ünï'`)
}
