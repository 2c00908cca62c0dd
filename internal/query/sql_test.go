package query

import (
	"testing"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestBuild(t *testing.T) {
	f := func(r Request, want string, params ...proto.Parameter) {
		t.Helper()
		o := zoneOffsets(mustZone(t, r.Zone), r.From, r.To)
		var got string
		for _, b := range builders(&r, o, plan(&r, o)) {
			s := b.statement()
			got += "\n" + s.text
			if d := cmp.Diff(params, s.params); d != "" {
				t.Errorf("parameters of %+v: -want +got\n%s", r, d)
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("of %+v: -want +got\n%s", r, d)
		}
	}
	event := proto.Parameter{Key: "event", Value: "'view'"}
	const midnight = 19724 * day
	const settings = `
SETTINGS merge_tree_min_rows_for_concurrent_read = 1, merge_tree_min_bytes_for_concurrent_read = 1, merge_tree_min_read_task_size = 2, max_block_size = 128`

	// Everything at once: both ragged ends, hours, days.
	f(Request{EventName: "view", From: midnight - hour - 1, To: midnight + 2*day + hour + 1, GroupBy: "channel"}, `
SELECT CAST(channel, 'String') AS label, toInt64(count()) AS events, toString(uniqCombined64State(14)(user_id)) AS state FROM events
PREWHERE event_name = {event:String}
  AND (ts >= toDateTime64(1704149999, 3, 'UTC') AND ts < toDateTime64(1704150000, 3, 'UTC') OR ts >= toDateTime64(1704330000, 3, 'UTC') AND ts < toDateTime64(1704330001, 3, 'UTC'))
GROUP BY label
SELECT width, at, _part AS part, CAST(channel, 'String') AS label, toInt64(n) AS events, toString(u) AS state FROM events_users
PREWHERE event_name = {event:String} AND by_channel = 1
  AND ((width, at) IN ((3600,1704150000),(86400,1704153600),(86400,1704240000),(3600,1704326400)))`+settings, event)

	// No groups, and a channel.
	f(Request{EventName: "view", From: midnight, To: midnight + day, Channel: "web"}, `
SELECT width, at, _part AS part, toInt64(n) AS events, toString(u) AS state FROM events_users
PREWHERE event_name = {event:String} AND channel = {channel:String} AND by_channel = 1
  AND ((width, at) IN ((86400,1704153600)))`+settings, event, proto.Parameter{Key: "channel", Value: "'web'"})

	// All channels together, with buckets of every width.
	const wide = 79 * 256 * day
	f(Request{EventName: "view", From: wide - 17*day - hour - 5*minute - 1, To: wide + 256*day + 16*day}, `
SELECT toInt64(count()) AS events, toString(uniqCombined64State(14)(user_id)) AS state FROM events
PREWHERE event_name = {event:String}
  AND (ts >= toDateTime64(1745880899, 3, 'UTC') AND ts < toDateTime64(1745880900, 3, 'UTC'))
SELECT width, at, _part AS part, toInt64(n) AS events, toString(u) AS state FROM events_users
PREWHERE event_name = {event:String} AND by_channel = 0
  AND ((width, at) IN ((300,1745880900),(3600,1745881200),(86400,1745884800),(1382400,1745971200),(22118400,1747353600),(1382400,1769472000)))`+settings, event)

	// By time.
	f(Request{EventName: "view", From: midnight - 1, To: midnight + day + hour, GroupBy: "day"}, `
SELECT toInt64(intDiv(toUnixTimestamp(ts), 86400) * 86400) AS label, toInt64(count()) AS events, toString(uniqCombined64State(14)(user_id)) AS state FROM events
PREWHERE event_name = {event:String}
  AND (ts >= toDateTime64(1704153599, 3, 'UTC') AND ts < toDateTime64(1704153600, 3, 'UTC'))
GROUP BY label
SELECT width, at, _part AS part, toInt64(n) AS events, toString(u) AS state FROM events_users
PREWHERE event_name = {event:String} AND by_channel = 0
  AND ((width, at) IN ((86400,1704153600),(3600,1704240000)))
ORDER BY width, at`+settings, event)

	// By days of another zone, which are hours.
	f(Request{EventName: "view", From: midnight, To: midnight + 2*hour, GroupBy: "day", Zone: "Europe/Berlin"}, `
SELECT toInt64(intDiv(toUnixTimestamp(at) + 90000, 86400) * 86400 - 86400) AS label, label IN (toInt64(intDiv(1704153600 + 90000, 86400) * 86400 - 86400), toInt64(intDiv(1704160799 + 90000, 86400) * 86400 - 86400)) AS edge, sum(n) AS events, toString(uniqCombined64MergeState(14)(u)) AS state FROM events_users
PREWHERE event_name = {event:String} AND by_channel = 0
  AND ((width, at) IN ((3600,1704153600),(3600,1704157200)))
GROUP BY label
ORDER BY label`+settings, event)

	// What those of a bucket that is kept are compared with.
	of := &builder{r: &Request{EventName: "view", GroupBy: "channel"}}
	counts := of.of([]piece{{hourGrain, midnight, midnight + 2*hour}}, false).statement()
	if d := cmp.Diff(`SELECT width, at, _part AS part, toInt64(n) AS events FROM events_users
PREWHERE event_name = {event:String} AND by_channel = 1
  AND ((width, at) IN ((3600,1704153600),(3600,1704157200)))`, counts.text); d != "" {
		t.Errorf("-want +got\n%s", d)
	}

	// Rows of five minutes that a range cuts, to be kept.
	seconds := func(r Request, want string) {
		t.Helper()
		of := &builder{r: &r}
		s := of.rows([]piece{{rowGrain, midnight, midnight + 5*minute}}, true).statement()
		if d := cmp.Diff(want, s.text); d != "" {
			t.Errorf("-want +got\n%s", d)
		}
	}
	seconds(Request{EventName: "view", GroupBy: "channel"}, `SELECT toUInt32(1) AS width, toDateTime(ts, 'UTC') AS at, toLowCardinality('') AS part, CAST(channel, 'String') AS label, toInt64(count()) AS events, toString(uniqCombined64State(14)(user_id)) AS state FROM events
PREWHERE event_name = {event:String}
  AND (ts >= toDateTime64(1704153600, 3, 'UTC') AND ts < toDateTime64(1704153900, 3, 'UTC'))
GROUP BY at, label`)
	seconds(Request{EventName: "view", GroupBy: "hour", Channel: "web"}, `SELECT toUInt32(1) AS width, toDateTime(ts, 'UTC') AS at, toLowCardinality('') AS part, toInt64(count()) AS events, toString(uniqCombined64State(14)(user_id)) AS state FROM events
PREWHERE event_name = {event:String} AND channel = {channel:String}
  AND (ts >= toDateTime64(1704153600, 3, 'UTC') AND ts < toDateTime64(1704153900, 3, 'UTC'))
GROUP BY at`)

	// Counts alone, and more buckets than are listed.
	f(Request{EventName: "view", From: midnight, To: midnight + 13*day + 5*minute, GroupBy: "hour", CountsOnly: true}, `
SELECT toInt64(intDiv(toUnixTimestamp(at), 3600) * 3600) AS label, sum(n) AS events FROM events_users
PREWHERE event_name = {event:String} AND by_channel = 0
  AND (width = 3600 AND at >= 1704153600 AND at < 1705276800 OR (width, at) IN ((300,1705276800)))
GROUP BY label`, event)

	// Campaigns are in raw rows only, and there may be many.
	f(Request{EventName: "view", From: midnight, To: midnight + 9*day, GroupBy: "day", CampaignID: "it's"}, `
SELECT toInt64(intDiv(toUnixTimestamp(ts), 86400) * 86400) AS label, toUInt8(grouping(label)) AS whole, toInt64(count()) AS events, uniqCombined64(14)(user_id) AS distinct_users FROM events
PREWHERE event_name = {event:String} AND campaign_id = {campaign:String}
  AND (ts >= toDateTime64(1704153600, 3, 'UTC') AND ts < toDateTime64(1704931200, 3, 'UTC'))
GROUP BY label WITH ROLLUP`, event, proto.Parameter{Key: "campaign", Value: `'it\\\'s'`})
	f(Request{EventName: "view", From: midnight, To: midnight + 1, GroupBy: "campaign_id", CountsOnly: true}, `
SELECT CAST(campaign_id, 'String') AS label, toUInt8(grouping(label)) AS whole, toInt64(count()) AS events FROM events
PREWHERE event_name = {event:String}
  AND (ts >= toDateTime64(1704153600, 3, 'UTC') AND ts < toDateTime64(1704153601, 3, 'UTC'))
GROUP BY label WITH ROLLUP
ORDER BY whole DESC, events DESC, label LIMIT 10002`, event)

	// Minutes have no users.
	f(Request{EventName: "view", From: midnight + 1, To: midnight + hour, GroupBy: "minute", CountsOnly: true}, `
SELECT toInt64(intDiv(toUnixTimestamp(ts), 60) * 60) AS label, toInt64(count()) AS events FROM events
PREWHERE event_name = {event:String}
  AND (ts >= toDateTime64(1704153601, 3, 'UTC') AND ts < toDateTime64(1704153660, 3, 'UTC'))
GROUP BY label
SELECT toInt64(intDiv(toUnixTimestamp(m), 60) * 60) AS label, sum(n) AS events FROM events_1m
PREWHERE event_name = {event:String}
  AND (m >= 1704153660 AND m < 1704157200)
GROUP BY label`, event)
}

// The text must not depend on what the caller wrote: then nothing the caller
// writes can be read as SQL.
func TestTheTextHoldsNoneOfTheCallersStrings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringN(1, 50, -1)
		r := Request{
			EventName:  name.Draw(t, "event"),
			Channel:    name.Draw(t, "channel"),
			CampaignID: rapid.OneOf(rapid.Just(""), name).Draw(t, "campaign"),
			GroupBy:    rapid.SampledFrom([]string{"", "channel", "campaign_id", "minute", "hour", "day"}).Draw(t, "group"),
			Zone:       rapid.SampledFrom(zones).Draw(t, "zone"),
			CountsOnly: rapid.Bool().Draw(t, "counts"),
		}
		r.From, r.To = drawRange(t)
		plain := r
		plain.EventName, plain.Channel = "x", "x"
		if r.CampaignID != "" {
			plain.CampaignID = "x"
		}
		o := zoneOffsets(mustZone(t, r.Zone), r.From, r.To)
		pieces := plan(&r, o)
		want := builders(&plain, o, pieces)
		for i, b := range builders(&r, o, pieces) {
			if got, want := b.statement().text, want[i].statement().text; got != want {
				t.Fatalf("got\n%s\nwant\n%s", got, want)
			}
			if !b.stored() {
				continue
			}
			if got, want := b.of(pieces, false).statement().text, want[i].of(pieces, false).statement().text; got != want {
				t.Fatalf("got\n%s\nwant\n%s", got, want)
			}
			if got, want := b.rows(pieces, true).statement().text, want[i].rows(pieces, true).statement().text; got != want {
				t.Fatalf("got\n%s\nwant\n%s", got, want)
			}
		}
	})
}
