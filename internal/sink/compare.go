package sink

import "fmt"

// comparison is one rollup against what it is made of, twice: the sums of its
// counts, and its distinct users. A cell of which the two sides together are not
// 0 does not add up.
type comparison struct {
	rollup, from  string
	counts, users []cells
}

// The number of users in states and of rows, signed like the side they are on.
const (
	usersOfRows   = "toInt64(uniqCombined64(14)(user_id))"
	usersOfStates = "toInt64(uniqCombined64Merge(14)(u))"
	lessUsers     = "-toInt64(uniqCombined64Merge(14)(u))"
)

// exactUsers is up to how many users a state is a set, 2^(14-5). At exactly this
// many it is still a set, or already a sketch when it met a user of the set once
// more: two sides may say two numbers for the same users.
const exactUsers = 512

var otherUsers = fmt.Sprintf("diff != 0 AND NOT ((max(c) = %[1]d OR min(c) = -%[1]d) AND abs(diff) <= %[1]d / 20)", exactUsers)

// comparisons compares what lies in s, a number of whole days.
func comparisons(s span) []comparison {
	const each, all = "channel", "''"
	is := func(width int64) string { return fmt.Sprintf("width = %d AND %s", width, s.of("at")) }
	all300 := cells{fiveMinutes, "at", all, "", "events_users", is(fiveMinutes)}
	allHour := cells{anHour, "at", all, "", "events_users", is(anHour)}
	allDay := cells{aDay, "at", all, "", "events_users", is(aDay)}
	minute := cells{0, "m", each, "", "events_1m", s.of("m")}
	hour := cells{0, "h", each, "", "events_1h", s.of("h")}
	day := cells{0, "d", each, "", "events_1d", s.of("d")}
	rows := cells{0, "", each, "", "events", s.of("ts")}
	return []comparison{
		{"events_1m", "events", []cells{rows.by("toStartOfMinute(ts)").counting("toInt64(count())"), minute.counting("-sum(n)")}, nil},
		{
			"events_1h", "events", []cells{minute.by("toStartOfHour(m)").counting("sum(n)"), hour.counting("-sum(n)")},
			[]cells{rows.by("toStartOfHour(ts)").counting(usersOfRows), hour.counting(lessUsers)},
		},
		{
			"events_1d", "events_1h", []cells{hour.by("toDate(h)").counting("sum(n)"), day.counting("-sum(n)")},
			[]cells{hour.by("toDate(h)").counting(usersOfStates), day.counting(lessUsers)},
		},
		{
			"events_users of five minutes", "events",
			[]cells{minute.by("toStartOfFiveMinutes(m)").into(all300).counting("sum(n)"), all300.counting("-sum(n)")},
			[]cells{rows.by("toStartOfFiveMinutes(ts)").into(all300).counting(usersOfRows), all300.counting(lessUsers)},
		},
		{
			"events_users of hours", "events_users of five minutes",
			[]cells{all300.by("toStartOfHour(at)").into(allHour).counting("sum(n)"), allHour.counting("-sum(n)")},
			[]cells{all300.by("toStartOfHour(at)").into(allHour).counting(usersOfStates), allHour.counting(lessUsers)},
		},
		{
			"events_users of days", "events_users of hours",
			[]cells{allHour.by("toStartOfDay(at)").into(allDay).counting("sum(n)"), allDay.counting("-sum(n)")},
			[]cells{allHour.by("toStartOfDay(at)").into(allDay).counting(usersOfStates), allDay.counting(lessUsers)},
		},
	}
}

// wideComparisons compares the buckets of a width beyond a day in s, a number
// of whole buckets.
func wideComparisons(width int64, s span) []comparison {
	is := fmt.Sprintf("width = %d AND %s", width, s.of("at"))
	f := func(rollup, channel string) comparison {
		day := cells{width, floor("d", width), channel, "", "events_1d", s.of("d")}
		wide := cells{width, "at", channel, "", rollup, is}
		name := fmt.Sprintf("%s of %d days", rollup, width/aDay)
		return comparison{
			name, "events_1d",
			[]cells{day.counting("sum(n)"), wide.counting("-sum(n)")},
			[]cells{day.counting(usersOfStates), wide.counting(lessUsers)},
		}
	}
	return []comparison{f("events_users", "''"), f("events_channel_users", "channel")}
}

// by, into and counting return c with another cell, with the width and channel
// of the rollup it goes into, and with what it counts.
func (c cells) by(cell string) cells        { c.cell = cell; return c }
func (c cells) into(rollup cells) cells     { c.width, c.channel = rollup.width, rollup.channel; return c }
func (c cells) counting(count string) cells { c.count = count; return c }
