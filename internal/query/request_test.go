package query

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var now = time.Unix(1_708_732_800, 999_000_000)

// params reads "name=value&name=value" without any decoding.
func params(s string) func(string) string {
	m := map[string]string{}
	for _, kv := range strings.Split(s, "&") {
		k, v, _ := strings.Cut(kv, "=")
		m[k] = v
	}
	return func(name string) string { return m[name] }
}

func TestParse(t *testing.T) {
	f := func(query string, want Request) {
		t.Helper()
		got, err := Parse(params(query), now)
		if err != nil {
			t.Errorf("Parse(%q): %v", query, err)
			return
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("Parse(%q): -want +got\n%s", query, d)
		}
	}
	end := now.Unix() + 1
	f("event_name=v", Request{EventName: "v", From: end - day, To: end})
	f("event_name=v&from=&to=&group_by=", Request{EventName: "v", From: end - day, To: end})
	f("event_name=v&from=100", Request{EventName: "v", From: 100, To: end})
	f("event_name=v&to=100000000", Request{EventName: "v", From: 100000000 - day, To: 100000000})
	f("event_name=v&to=100", Request{EventName: "v", To: 100})
	f("event_name=v&from=0&to=4294967295", Request{EventName: "v", To: 1<<32 - 1})
	f("event_name=v&from=5&to=6&group_by=channel&channel=web&campaign_id=c&unique_users=false",
		Request{EventName: "v", From: 5, To: 6, GroupBy: "channel", Channel: "web", CampaignID: "c", CountsOnly: true})
	f("event_name=v&from=5&to=6&unique_users=true", Request{EventName: "v", From: 5, To: 6})
	f("event_name=v&from=0&to=660000&group_by=minute", Request{EventName: "v", To: 660000, GroupBy: "minute"})
	f("event_name=v&from=0&to=39600000&group_by=hour", Request{EventName: "v", To: 39600000, GroupBy: "hour"})
	f("event_name=v&from=0&to=950400000&group_by=day", Request{EventName: "v", To: 950400000, GroupBy: "day"})
	f("event_name="+strings.Repeat("v", 4096), Request{EventName: strings.Repeat("v", 4096), From: end - day, To: end})
	f("event_name=v&from=5&to=6&group_by=day&timezone=Asia/Tokyo",
		Request{EventName: "v", From: 5, To: 6, GroupBy: "day", Zone: "Asia/Tokyo"})
	f("event_name=\x00'\\{x:String}", Request{EventName: "\x00'\\{x:String}", From: end - day, To: end})
}

func TestParseRefuses(t *testing.T) {
	f := func(query, want string) {
		t.Helper()
		got, err := Parse(params(query), now)
		if err == nil || err.Error() != want {
			t.Errorf("Parse(%q) = %+v, %v; want the error %q", query, got, err, want)
		}
	}
	f("", "event_name is required")
	f("event_name=", "event_name is required")
	f("event_name="+strings.Repeat("v", 4097), "event_name is 4097 bytes long; at most 4096 are allowed")
	f("event_name=v&channel="+strings.Repeat("v", 5000), "channel is 5000 bytes long; at most 4096 are allowed")
	f("event_name=v&campaign_id="+strings.Repeat("v", 5000), "campaign_id is 5000 bytes long; at most 4096 are allowed")
	f("event_name=\xff", "event_name must be valid UTF-8")
	f("event_name=v&channel=\xc3", "channel must be valid UTF-8")

	const seconds = " must be whole Unix seconds from 0 to 4294967295"
	f("event_name=v&from=x", "from"+seconds)
	f("event_name=v&from=1.5", "from"+seconds)
	f("event_name=v&from=-1", "from"+seconds)
	f("event_name=v&from=1708732800000", "from"+seconds) // milliseconds
	f("event_name=v&from=99999999999999999999", "from"+seconds)
	f("event_name=v&to=2024-02-24", "to"+seconds)
	f("event_name=v&to=4294967296", "to"+seconds)
	f("event_name=v&from=6&to=5", "from (6) must be before to (5)")
	f("event_name=v&from=5&to=5", "from (5) must be before to (5)")
	f("event_name=v&to=0", "from (0) must be before to (0)")

	f("event_name=v&unique_users=yes", "unique_users must be true or false")
	f("event_name=v&timezone=CEST", `timezone must be an IANA name such as Europe/Berlin, not "CEST"`)
	f("event_name=v&group_by=week", "group_by must be one of channel, campaign_id, minute, hour, day")
	f("event_name=v&group_by=Channel", "group_by must be one of channel, campaign_id, minute, hour, day")
	f("event_name=v&from=0&to=660001&group_by=minute", "group_by=minute over this range has 11001 groups; at most 11000 are allowed")
	f("event_name=v&from=59&to=660001&group_by=minute", "group_by=minute over this range has 11001 groups; at most 11000 are allowed")
	f("event_name=v&from=0&to=4294967295&group_by=hour", "group_by=hour over this range has 1193047 groups; at most 11000 are allowed")
	f("event_name=v&from=0&to=4294967295&group_by=day", "group_by=day over this range has 49711 groups; at most 11000 are allowed")
}
