package query

import (
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
)

// statement is the SQL of one request. Its text depends only on the shape of
// the request and on integers; every string of the caller travels beside it as
// a query parameter.
type statement struct {
	text   string
	params []proto.Parameter
}

// build writes one SELECT that answers with one row: total, users and, when
// groups are asked for, an array per key of the data list. Three levels:
//
//	tables   one SELECT per table, UNION ALL: counts and mergeable states
//	groups   GROUP BY g: one count and one state per group
//	answer   the groups as sorted arrays, their counts summed and their states
//	         merged once more into the total
//
// GROUPING SETS ((g), ()) would say the same in fewer words and feed every
// state into two aggregations; this way the total merges one state per group.
// Raw rows alone come out of their SELECT grouped and skip the second level.
func build(r *Request, zone offsets, pieces []piece) statement {
	b := &builder{r: r, zone: zone}
	b.Grow(2048)
	b.WriteString("SELECT sum(total) AS events")
	b.users(", " + sketch("Merge") + "(users) AS distinct_users")
	b.arrays()
	b.WriteString("\nFROM (\n")
	if r.GroupBy == "" || len(pieces) == 1 && pieces[0].grain == rowGrain {
		b.tables(pieces)
	} else {
		b.WriteString("SELECT g, sum(total) AS total")
		b.users(", " + sketch("MergeState") + "(users) AS users")
		b.WriteString("\nFROM (\n")
		b.tables(pieces)
		// A rollup's counts may have been corrected down to nothing.
		b.WriteString(")\nGROUP BY g\nHAVING total != 0\n")
	}
	b.WriteString(")")

	s := statement{text: b.String(), params: []proto.Parameter{param("event", r.EventName)}}
	if r.Channel != "" {
		s.params = append(s.params, param("channel", r.Channel))
	}
	if r.CampaignID != "" {
		s.params = append(s.params, param("campaign", r.CampaignID))
	}
	return s
}

// builder is the text of one statement.
type builder struct {
	strings.Builder
	r    *Request
	zone offsets
}

// users writes s if the request asks for distinct users.
func (b *builder) users(s string) {
	if !b.r.CountsOnly {
		b.WriteString(s)
	}
}

// arrays writes the columns of the data list. The sort key is the tuple
// itself: names by descending total and then by name, times ascending. One
// name more than an answer holds tells that there were more.
func (b *builder) arrays() {
	switch {
	case b.r.GroupBy == "":
		return
	case bucketSeconds(b.r.GroupBy) != 0:
		b.WriteString(",\n  (groupArraySorted(" + strconv.Itoa(maxBuckets) + ")((g, total")
		b.users(", finalizeAggregation(users)")
		b.WriteString(")) AS list).1 AS labels, list.2 AS totals")
	default:
		b.WriteString(",\n  (groupArraySorted(" + strconv.Itoa(maxNames+1) + ")((-total, CAST(g, 'String')")
		b.users(", finalizeAggregation(users)")
		b.WriteString(")) AS list).2 AS labels, arrayMap(x -> -x, list.1) AS totals")
	}
	b.users(", list.3 AS users_per_group")
}

// sketch is the aggregate function of users, whose precision is part of the
// type of every state in the schema.
func sketch(combinator string) string { return "uniqCombined64" + combinator + "(14)" }

// table is a place that pieces can be read from.
type table uint8

const (
	rawTable table = iota
	minuteTable
	userTable // from five minutes to 256 days, of one channel or of all together
	tables
)

// table is the one that has the buckets of g.
func (g grain) table() table { return min(table(g), userTable) }

// columns are the names that differ from table to table.
type columns struct {
	label      string // of the metric
	name, time string
	literal    string // a Unix second as a constant of the time column's type, for ranges
}

var schema = [tables]columns{
	rawTable:    {"raw", "events", "ts", "toDateTime64(%, 3, 'UTC')"},
	minuteTable: {"minute", "events_1m", "m", "%"},
	userTable:   {"users", "events_users", "at", ""},
}

// from returns the pieces that t answers.
func (t table) from(pieces []piece) []piece {
	var own []piece
	for _, p := range pieces {
		if p.grain.table() == t {
			own = append(own, p)
		}
	}
	return own
}

// tables writes one SELECT per table that has a piece.
func (b *builder) tables(pieces []piece) {
	first := true
	for t := range tables {
		own := t.from(pieces)
		if len(own) == 0 {
			continue
		}
		if !first {
			b.WriteString("UNION ALL\n")
		}
		first = false
		b.selectFrom(t, own)
	}
}

func (b *builder) selectFrom(t table, own []piece) {
	b.WriteString("SELECT ")
	if b.r.GroupBy != "" {
		b.WriteString(b.groupKey(t) + " AS g, ")
	}
	if t == rawTable {
		b.WriteString("toInt64(count()) AS total")
		b.users(", " + sketch("State") + "(user_id) AS users")
	} else {
		b.WriteString("n AS total")
		b.users(", u AS users")
	}
	b.WriteString(" FROM " + schema[t].name + "\nWHERE event_name = {event:String}")
	if b.r.Channel != "" {
		b.WriteString(" AND channel = {channel:String}")
	}
	if b.r.CampaignID != "" {
		b.WriteString(" AND campaign_id = {campaign:String}")
	}
	if t == userTable {
		b.WriteString(" AND by_channel = " + map[bool]string{false: "0", true: "1"}[byChannel(b.r)])
	}
	b.WriteString("\n  AND (")
	if t == userTable {
		b.buckets(own)
	} else {
		b.ranges(t, own)
	}
	b.WriteByte(')')
	if t == rawTable && b.r.GroupBy != "" {
		b.WriteString(" GROUP BY g")
	}
	b.WriteByte('\n')
}

// groupKey is the group of one row of t: a name, or a bucket in seconds.
func (b *builder) groupKey(t table) string {
	width := bucketSeconds(b.r.GroupBy)
	if width == 0 {
		return b.r.GroupBy
	}
	return "toInt64(" + b.zone.key("toUnixTimestamp("+schema[t].time+")", width) + ")"
}

func (b *builder) ranges(t table, own []piece) {
	c := &schema[t]
	at := func(sec int64) string {
		return strings.Replace(c.literal, "%", strconv.FormatInt(sec, 10), 1)
	}
	for i, p := range own {
		if i > 0 {
			b.WriteString(" OR ")
		}
		b.WriteString(c.time + " >= " + at(p.from) + " AND " + c.time + " < " + at(p.to))
	}
}

// maxListed bounds the buckets of one piece that are named one by one: no
// piece has more of them but the widest ones of its request.
const maxListed = 300

// buckets writes the condition for buckets of several widths. They are listed:
// of a list the primary key finds the granules by binary search, whereas ranges
// in so many alternatives make it evaluate each of them at every mark.
func (b *builder) buckets(own []piece) {
	var list []byte
	for _, p := range own {
		width := p.grain.seconds()
		if (p.to-p.from)/width > maxListed {
			b.WriteString("width = " + strconv.FormatInt(width, 10) +
				" AND at >= " + strconv.FormatInt(p.from, 10) + " AND at < " + strconv.FormatInt(p.to, 10) + " OR ")
			continue
		}
		for at := p.from; at < p.to; at += width {
			list = append(list, ",("...)
			list = append(strconv.AppendInt(list, width, 10), ',')
			list = append(strconv.AppendInt(list, at, 10), ')')
		}
	}
	if list == nil {
		list = []byte(",(0,0)") // no bucket
	}
	b.WriteString("(width, at) IN (")
	b.Write(list[1:])
	b.WriteByte(')')
}

// param returns a query parameter that arrives as exactly value. The server
// undoes two layers: a parameter travels as a quoted literal, and what is
// inside the quotes is read as a tab-separated field.
func param(key, value string) proto.Parameter {
	return proto.Parameter{Key: key, Value: "'" + escape(escape(value)) + "'"}
}

var escaper = strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\r", `\r`, "\t", `\t`, "\x00", `\0`)

func escape(s string) string { return escaper.Replace(s) }
