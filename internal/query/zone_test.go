package query

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// zones have whole, half and quarter hours, either hemisphere, a clock change
// of half an hour, one that skipped a day, and none at all.
var zones = []string{"", "UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "Asia/Kathmandu",
	"Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia", "Pacific/Kiritimati", "Africa/Casablanca"}

func mustZone(t rapid.TB, name string) *time.Location {
	t.Helper()
	zone, err := loadZone(name)
	if err != nil {
		t.Fatal(err)
	}
	return zone
}

// at is the offset in force at sec.
func (o offsets) at(sec int64) int64 {
	s := o[0].seconds
	for _, x := range o {
		if x.since <= sec {
			s = x.seconds
		}
	}
	return s
}

func TestZoneOffsetsAreTheZones(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		zone := mustZone(t, rapid.SampledFrom(zones).Draw(t, "zone"))
		from := rapid.Int64Range(0, maxTime-1).Draw(t, "from")
		to := from + rapid.Int64Range(1, 5*365*day).Draw(t, "span")
		if _, end := time.Unix(from, 0).In(zone).ZoneBounds(); end.Unix() > from && rapid.Bool().Draw(t, "close to a change") {
			from = end.Unix() - rapid.Int64Range(1, 2*hour).Draw(t, "before")
			to = from + 4*hour
		}
		sec := rapid.Int64Range(from, to-1).Draw(t, "second")
		o := zoneOffsets(zone, from, to)
		_, want := time.Unix(sec, 0).In(zone).Zone()
		if got := o.at(sec); got != int64(want) {
			t.Fatalf("offset of %s at %d = %d; want %d", zone, sec, got, want)
		}
	})
}

// Package time answers with a zone end that has passed on 31 December of leap
// years after 2037; a walk that believes it never ends.
func TestZoneOffsetsEnd(t *testing.T) {
	from := time.Date(2040, 12, 31, 0, 0, 0, 0, time.UTC).Unix()
	o := zoneOffsets(mustZone(t, "Europe/Berlin"), from, from+365*day)
	if len(o) != 3 || o[0].seconds != hour || o[1].seconds != 2*hour || o[2].seconds != hour {
		t.Errorf("offsets of Berlin in 2041 are %v; want winter, summer, winter", o)
	}
	for _, name := range zones {
		zoneOffsets(mustZone(t, name), 0, maxTime)
	}
}

func TestAlign(t *testing.T) {
	f := func(zone string, grain int64, want bool) {
		t.Helper()
		from := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
		if got := zoneOffsets(mustZone(t, zone), from, from+365*day).align(grain); got != want {
			t.Errorf("%s aligns to %d s = %v; want %v", zone, grain, got, want)
		}
	}
	f("", day, true)
	f("Europe/Berlin", day, false)
	f("Europe/Berlin", hour, true)
	f("Asia/Kathmandu", hour, false)
	f("Asia/Kathmandu", minute, true)
	f("Australia/Lord_Howe", hour, false)
}

func TestZoneKey(t *testing.T) {
	f := func(zone string, width int64, want string) {
		t.Helper()
		from := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
		if got := zoneOffsets(mustZone(t, zone), from, from+365*day).key("x", width); got != want {
			t.Errorf("key in %q of %d s = %s; want %s", zone, width, got, want)
		}
	}
	f("", day, "intDiv(x, 86400) * 86400")
	f("Europe/Berlin", hour, "intDiv(x, 3600) * 3600")
	f("Asia/Kolkata", hour, "x - (x + 106200) % 3600")
	f("Asia/Kolkata", day, "intDiv(x + 106200, 86400) * 86400 - 86400")
	f("Australia/Lord_Howe", hour, "greatest(x - (x + multiIf(x < 1712415600, 126000, x < 1728142200, 124200, 126000)) % 3600, "+
		"if(x < 1712415600, -3600, 1712415600), if(x < 1728142200, -3600, 1728142200))")
	f("Europe/Berlin", day, "intDiv(x + multiIf(x < 1711846800, 90000, x < 1729990800, 93600, 90000), 86400) * 86400 - 86400")
}

// On 7 April 2024 at 02:00 the clocks of Lord Howe went back to 01:30, and on 6 October
// from 02:00 on to 02:30: the hour after is one of half an hour, which begins there. The
// ranges begin before the change, with it, and in that hour.
func TestAnHourThatAChangeCuts(t *testing.T) {
	pool := openDatabase(t, "cut")
	const name = "Australia/Lord_Howe"
	zone := mustZone(t, name)
	f := func(change int64, label string) {
		t.Helper()
		var events []event
		for at := change - 4*hour; at < change+4*hour; at += 5 * minute {
			events = append(events, event{at * 1000, label, "web", "", "u"})
		}
		insert(t, pool, events)
		for _, from := range []int64{change - 3*hour, change - 1, change, change + 60, change + 11*minute} {
			for _, counts := range []bool{false, true} {
				for _, group := range []string{"minute", "hour", "day"} {
					r := Request{EventName: label, From: from, To: change + 3*hour, GroupBy: group, Zone: name, CountsOnly: counts}
					got, err := New(pool, Options{}).Query(t.Context(), r)
					if err != nil {
						t.Fatal(err)
					}
					want := oracle(events, r, zone)
					if d := cmp.Diff(&want, got); d != "" {
						t.Errorf("%+v: -want +got\n%s", r, d)
					}
					if group == "hour" && !slices.ContainsFunc(got.Groups, func(g Group) bool { return g.Label == label }) {
						t.Errorf("%+v: no group %s", r, label)
					}
				}
			}
		}
	}
	f(1712415600, "2024-04-07T01:30:00+10:30")
	f(1728142200, "2024-10-06T02:30:00+11:00")
}

// In the first hours of 1970 it is still 1969 in the west.
func TestTheFirstHours(t *testing.T) {
	pool := openDatabase(t, "first")
	var events []event
	for at := int64(1); at < 12*hour; at += 7 * minute {
		events = append(events, event{at * 1000, "view", "web", "", "u"})
	}
	insert(t, pool, events)
	for _, name := range []string{"America/St_Johns", "Pacific/Marquesas", "Africa/Monrovia"} {
		for _, group := range []string{"minute", "hour", "day"} {
			r := Request{EventName: "view", From: 0, To: day, GroupBy: group, Zone: name}
			got, err := New(pool, Options{}).Query(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			want := oracle(events, r, mustZone(t, name))
			if d := cmp.Diff(&want, got); d != "" {
				t.Errorf("%+v: -want +got\n%s", r, d)
			}
		}
	}
}

func TestZoneNames(t *testing.T) {
	f := func(name string) {
		t.Helper()
		if _, err := Parse(params("event_name=v&timezone="+name), now); err == nil {
			t.Errorf("timezone %q was taken", name)
		}
	}
	f("Local")
	f("Mars/Olympus_Mons")
	f("../../etc/passwd")
	f("/etc/localtime")
	f("+01:00")
	f("Europe/Berlin\x00")
	// Where the host has zone files, these are some of them.
	f("localtime")
	f("posixrules")
	f("right/Europe/Berlin")
	f("posix/Europe/Berlin")
	f("Factory")
	f("Europe//Berlin")
	f("./Europe/Berlin")
}
