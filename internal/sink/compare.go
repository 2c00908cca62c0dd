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

// comparisons compares minutes, five minutes and hours. What of them is a condition on a
// time column, of whole hours.
func comparisons(in func(column string) string) []comparison {
	minute := cells{bucket{0, true}, "m", "", "events_1m", in("m")}
	rows := cells{bucket{0, true}, "", "", "events", in("ts")}
	minutes := comparison{"events_1m", "events", []cells{rows.by("toStartOfMinute(ts)").counting("toInt64(count())"), minute.counting("-sum(n)")}, nil}
	five := comparison{rollup: nameOf(fiveMinutes), from: "events"}
	for _, byChannel := range []bool{true, false} {
		b := bucket{fiveMinutes, byChannel}
		own := cells{b, "at", "", "events_users", b.is() + " AND " + in("at")}
		five.counts = append(five.counts, minute.by(floor("m", fiveMinutes)).into(b).counting("sum(n)"), own.counting("-sum(n)"))
		five.users = append(five.users, rows.by(floor("ts", fiveMinutes)).into(b).counting(usersOfRows), own.counting(lessUsers))
	}
	return []comparison{minutes, five, wider(anHour, fiveMinutes, in)}
}

// wider compares the buckets of a width, in whole buckets of it, with narrower ones.
func wider(width, narrow int64, in func(column string) string) comparison {
	c := comparison{rollup: nameOf(width), from: nameOf(narrow)}
	for _, byChannel := range []bool{true, false} {
		b, n := bucket{width, byChannel}, bucket{narrow, byChannel}
		own := cells{b, "at", "", "events_users", b.is() + " AND " + in("at")}
		parts := cells{b, floor("at", width), "", "events_users", n.is() + " AND " + in("at")}
		c.counts = append(c.counts, parts.counting("sum(n)"), own.counting("-sum(n)"))
		c.users = append(c.users, parts.counting(usersOfStates), own.counting(lessUsers))
	}
	return c
}

// nameOf is what the audit calls the buckets of a width.
func nameOf(width int64) string {
	return map[int64]string{
		fiveMinutes: "events_users of five minutes", anHour: "events_users of hours", aDay: "events_users of days",
		long: "events_users of 16 days", longer: "events_users of 256 days",
	}[width]
}

// by, into and counting return c with another cell, into another bucket, and
// with what it counts.
func (c cells) by(cell string) cells        { c.cell = cell; return c }
func (c cells) into(b bucket) cells         { c.bucket = b; return c }
func (c cells) counting(count string) cells { c.count = count; return c }
