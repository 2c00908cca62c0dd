package query

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"edge/internal/clickhouse"
	"edge/internal/stat"
)

// exactUsers is how many distinct users a uniqCombined64(14) state counts without
// error; TestUniqueUsersError holds it to that.
const exactUsers = 511

// sketches asks the raw table alone, in the plainest SQL, what the sketch says
// per name: the answer every cut of the range must reproduce to the digit.
func sketches(t testing.TB, pool *clickhouse.Pool, r Request, group string) map[string]uint64 {
	t.Helper()
	var (
		b      strings.Builder
		labels proto.ColStr
		users  proto.ColUInt64
		all    = map[string]uint64{}
	)
	b.WriteString("SELECT CAST(" + group + ", 'String') AS label, uniqCombined64(14)(user_id) AS users FROM events WHERE event_name = " + clickhouse.Quote(r.EventName))
	b.WriteString(" AND toUnixTimestamp64Milli(ts) >= " + strconv.FormatInt(r.From*1000, 10))
	b.WriteString(" AND toUnixTimestamp64Milli(ts) < " + strconv.FormatInt(r.To*1000, 10))
	if r.Channel != "" {
		b.WriteString(" AND channel = " + clickhouse.Quote(r.Channel))
	}
	if r.CampaignID != "" {
		b.WriteString(" AND campaign_id = " + clickhouse.Quote(r.CampaignID))
	}
	b.WriteString(" GROUP BY label")
	err := pool.Do(context.Background(), ch.Query{
		Body:   b.String(),
		Result: proto.Results{{Name: "label", Data: &labels}, {Name: "users", Data: &users}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range users {
				all[labels.Row(i)] = users[i]
			}
			return nil
		},
	})
	if err != nil {
		t.Fatalf("%s: %v", b.String(), err)
	}
	return all
}

// withSketches puts the sketch's figures where want has exact ones that the
// sketch need not hit.
func withSketches(t testing.TB, pool *clickhouse.Pool, want *Result) {
	t.Helper()
	if want.Request.CountsOnly {
		return
	}
	if want.Users > exactUsers {
		want.Users = min(sketches(t, pool, want.Request, "''")[""], uint64(want.Events))
	}
	var byName map[string]uint64
	for i := range want.Groups {
		g := &want.Groups[i]
		if g.Users <= exactUsers {
			continue
		}
		if byName == nil {
			byName = sketches(t, pool, want.Request, want.Request.GroupBy)
		}
		g.Users = min(byName[g.Label], uint64(g.Events))
	}
}

// TestAnswersEqualRawRows is the property: for any range, grouping, filter and
// zone, the answer from rollups and edges is the answer from the events.
func TestAnswersEqualRawRows(t *testing.T) {
	pool := openDatabase(t, "property")
	rng := rand.New(rand.NewPCG(2024, 224))
	events := randomEvents(rng, 60_000)
	for i := 0; i < len(events); i += 10_000 { // several parts and states to merge
		insert(t, pool, events[i:i+10_000])
	}
	slices.SortFunc(events, func(a, b event) int { return int(a.ts - b.ts) })
	e := New(pool, Options{States: 1 << 20}) // less than all of it
	ranges := 300
	if testing.Short() {
		ranges = 40
	}
	asked, sketched := 0, 0
	for range ranges {
		from, to := randomRange(rng)
		p := map[string]string{"event_name": []string{"view", "view", "click", "nothing"}[rng.IntN(4)],
			"from": strconv.FormatInt(from, 10), "to": strconv.FormatInt(to, 10),
			"channel": []string{"", "", "web", "nowhere"}[rng.IntN(4)], "campaign_id": []string{"", "", "", "", "summer"}[rng.IntN(5)],
			"unique_users": []string{"", "", "false"}[rng.IntN(3)], "timezone": zones[rng.IntN(len(zones))]}
		for _, p["group_by"] = range []string{"", "channel", "campaign_id", "minute", "hour", "day"} {
			r, err := Parse(func(name string) string { return p[name] }, now)
			if err != nil {
				if strings.Contains(err.Error(), "at most 11000 are allowed") {
					continue
				}
				t.Fatal(err)
			}
			got, err := e.Query(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			want := oracle(events, r, mustZone(t, r.Zone))
			if want.Users > exactUsers {
				sketched++
			}
			withSketches(t, pool, &want)
			if d := cmp.Diff(want.Groups, got.Groups, cmpopts.EquateEmpty()); d != "" || want.Events != got.Events || want.Users != got.Users || got.Truncated {
				t.Fatalf("%+v: got %d events, %d users; want %d, %d\n%s", r, got.Events, got.Users, want.Events, want.Users, d)
			}
			asked++
		}
	}
	t.Logf("%d ranges, %d queries identical, %d of them beyond the exact part of the sketch", ranges, asked, sketched)
}

// Names that would end a literal, a field or a statement, or look like syntax.
var hostileNames = []string{
	"it's", `"`, "`", `\`, `\\`, `\'`, `'\`, `\N`, `\x41`, `\0`, "a\x00b", "\x00", "a\nb", "\r\n", "a\tb", "\b\f\v\x1b\x7f",
	"{event:String}", "{x:String}", "'; DROP TABLE events; --", "' OR '1'='1", "/* */", "-- ", "%", "_", " ", " padded ",
	"ünïcödé 🎉", "\u2028", "null", "NULL", strings.Repeat("長", 1300),
}

func TestHostileNamesAreOnlyNames(t *testing.T) {
	pool := openDatabase(t, "hostile")
	var events []event
	for i, name := range hostileNames {
		for j := range int64(i + 1) { // a count of its own for each name
			at := (dataFrom+j*5*hour)*1000 + 1
			events = append(events,
				event{at, name, "web", "", "u" + strconv.FormatInt(j, 10)},
				event{at, "filters", name, name, "u" + strconv.FormatInt(j, 10)})
		}
	}
	insert(t, pool, events)
	e := New(pool, Options{})
	f := func(r Request, want int) {
		t.Helper()
		r.From, r.To = dataFrom, dataTo
		got, err := e.Query(t.Context(), r)
		if err != nil {
			t.Errorf("%+v: %v", r, err)
		} else if got.Events != int64(want) || got.Users != uint64(want) {
			t.Errorf("%+v: got %d events, %d users; want %d", r, got.Events, got.Users, want)
		}
	}
	for i, name := range hostileNames {
		f(Request{EventName: name}, i+1)
		f(Request{EventName: name, GroupBy: "channel"}, i+1)
		f(Request{EventName: "filters", Channel: name}, i+1)
		f(Request{EventName: "filters", CampaignID: name, GroupBy: "hour"}, i+1)
	}
	got, err := e.Query(t.Context(), Request{EventName: "filters", GroupBy: "campaign_id", From: dataFrom, To: dataTo})
	if err != nil {
		t.Fatal(err)
	}
	for i, g := range got.Groups { // largest first
		if want := hostileNames[len(hostileNames)-1-i]; g.Label != want {
			t.Errorf("group %d is %q; want %q", i, g.Label, want)
		}
	}
}

func TestUnknownEventIsZeros(t *testing.T) {
	e := New(openDatabase(t, "unknown"), Options{})
	for _, group := range []string{"", "channel", "campaign_id", "minute", "hour", "day"} {
		for _, span := range []int64{1, 5*day + 1} {
			r := Request{EventName: "nobody", From: dataFrom, To: dataFrom + span, GroupBy: group}
			got, err := e.Query(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			want := `{"event_name":"nobody","from":1704067200,"to":` + strconv.FormatInt(r.To, 10) + `,"grouped_by":"` + group +
				`","total_events":0,"unique_users":0,"data":[]}`
			if d := cmp.Diff(want, string(got.AppendJSON(nil))); d != "" {
				t.Error(d)
			}
		}
	}
}

func TestTheLargestCampaignsSurviveTruncation(t *testing.T) {
	pool := openDatabase(t, "campaigns")
	var events []event
	for i := range maxNames + 500 {
		name := "c" + strconv.Itoa(i)
		events = append(events, event{dataFrom * 1000, "view", "", name, name})
		if i >= 500 {
			events = append(events, event{dataFrom * 1000, "view", "", name, name})
		}
	}
	insert(t, pool, events)
	got, err := New(pool, Options{}).Query(t.Context(), Request{EventName: "view", GroupBy: "campaign_id", From: dataFrom, To: dataTo})
	if err != nil {
		t.Fatal(err)
	}
	if !got.Truncated || len(got.Groups) != maxNames || got.Events != int64(len(events)) {
		t.Errorf("got truncated %v, %d groups, %d events; want true, %d, %d", got.Truncated, len(got.Groups), got.Events, maxNames, len(events))
	}
	for _, g := range got.Groups {
		if g.Events != 2 || g.Users != 1 {
			t.Fatalf("group %+v; want 2 events of 1 user: the small campaigns are the ones to leave out", g)
		}
	}
}

// An event that was just accepted is in the default range, and in a part of one
// row, of which ClickHouse knows nothing but that row's key: a bound of another
// type than ts, compared with it in other units, would leave the part out.
func TestTheLastSecondIsInTheRange(t *testing.T) {
	pool := openDatabase(t, "second")
	e := New(pool, Options{})
	names := []string{"first", "last"}
	insert(t, pool, []event{{now.Unix() * 1000, names[0], "web", "", "u"}})
	insert(t, pool, []event{{now.UnixMilli(), names[1], "web", "", "u"}})
	for _, name := range names {
		for _, p := range []string{"", "&unique_users=false", "&group_by=hour", "&group_by=channel", "&group_by=campaign_id", "&campaign_id=&channel=web"} {
			r, err := Parse(params("event_name="+name+p), now)
			if err != nil {
				t.Fatal(err)
			}
			got, err := e.Query(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if got.Events != 1 {
				t.Errorf("%s millisecond of the second, %q: %d events; want 1", name, p, got.Events)
			}
		}
	}
}

// A repair after a crash may correct a rollup's count down to zero.
func TestCorrectedGroupsAreAbsent(t *testing.T) {
	pool := openDatabase(t, "corrected")
	insert(t, pool, []event{{dataFrom * 1000, "view", "web", "", "u"}})
	for _, n := range []string{"3", "-3"} {
		if err := pool.Exec(t.Context(), "INSERT INTO events_users (by_channel, width, at, event_name, channel, n) VALUES (1, 86400, '2024-01-01 00:00:00', 'view', 'email', "+n+")"); err != nil {
			t.Fatal(err)
		}
	}
	got, err := New(pool, Options{}).Query(t.Context(), Request{EventName: "view", GroupBy: "channel", From: dataFrom, To: dataFrom + day})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]Group{{"web", 1, 1}}, got.Groups); d != "" || got.Events != 1 || got.Users != 1 {
		t.Errorf("got %d events, %d users: %s", got.Events, got.Users, d)
	}
}

func TestKeep(t *testing.T) {
	pool := openDatabase(t, "keep")
	e := New(pool, Options{Keep: time.Minute})
	f := func(e *Engine, want int64) {
		t.Helper()
		got, err := e.Query(t.Context(), Request{EventName: "view", From: dataFrom, To: dataTo})
		if err != nil || got.Events != want {
			t.Errorf("got %+v, %v; want %d events", got, err, want)
		}
	}
	insert(t, pool, []event{{dataFrom * 1000, "view", "web", "", "u"}})
	f(e, 1)
	insert(t, pool, []event{{dataFrom * 1000, "view", "web", "", "v"}})
	f(e, 1)
	f(New(pool, Options{}), 2)
}

func TestDescribe(t *testing.T) {
	pool := openDatabase(t, "describe")
	e := New(pool, Options{})
	for _, r := range []Request{
		{EventName: "view", From: dataFrom, To: dataFrom + 1},
		{EventName: "view", From: dataFrom, To: dataFrom + day + hour + 1, GroupBy: "channel"},
		{EventName: "view", From: dataFrom, To: dataFrom + day + hour + minute + 1, CountsOnly: true},
	} {
		if _, err := e.Query(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	set := new(stat.Set)
	e.Describe(set)
	reg := prometheus.NewRegistry()
	reg.MustRegister(set)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			if m.Histogram != nil {
				got[f.GetName()] = float64(m.Histogram.GetSampleCount())
				continue
			}
			name := f.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	want := map[string]float64{"edge_query_seconds": 3, "edge_query_source_total raw": 3, "edge_query_source_total minute": 1,
		"edge_query_source_total users": 2, "edge_query_buckets_total kept": 0, "edge_query_buckets_total read": 2, "edge_query_buckets_total changed": 0,
		"edge_query_states_bytes": 0}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
