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

// build writes one SELECT. It answers with a row: events, distinct_users; or, when
// groups are asked for, with a row for each and one for the whole, which a rollup
// makes of the groups, one state of each:
//
//	tables   one SELECT per table, UNION ALL: counts and mergeable states
//	answer   GROUP BY label WITH ROLLUP
//
// A request that one table answers needs no tables below the answer. GROUPING SETS
// ((label), ()) would say the same as the rollup and feed every state into two
// aggregations. Arrays in a single row, the whole computed above the groups, took a
// third longer: most of a short query is its analysis, level by level.
func build(r *Request, zone offsets, pieces []piece) statement {
	b := &builder{r: r, zone: zone}
	b.Grow(2048)
	sources := sourcesOf(pieces)
	if len(sources) == 1 {
		t := sources[0].table
		b.answer(b.groupKey(t), schema[t].count, schema[t].users)
		b.from(sources[0])
	} else {
		b.answer("g", "sum(total)", sketch("Merge")+"(users)")
		b.WriteString(" FROM (")
		for i, s := range sources {
			if i > 0 {
				b.WriteString("\nUNION ALL")
			}
			b.partial(s)
		}
		b.WriteString("\n)")
	}
	if r.GroupBy != "" {
		b.WriteString("\nGROUP BY label WITH ROLLUP")
	}
	if r.GroupBy != "" && bucketSeconds(r.GroupBy) == 0 {
		// The whole, the largest names, and one more, which tells that there were more.
		b.WriteString("\nORDER BY whole DESC, events DESC, label LIMIT " + strconv.Itoa(maxNames+2))
	}

	if len(sources) == 1 {
		b.settings(sources[0])
	}
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

// columns are the expressions that differ from table to table.
type columns struct {
	label        string // of the metric
	name, time   string
	literal      string // a Unix second as a constant of the time column's type, for ranges
	count, users string // of all rows
	total, state string // of one row that another SELECT adds up; of rows, one of a group
}

var schema = [tables]columns{
	rawTable: {"raw", "events", "ts", "toDateTime64(%, 3, 'UTC')",
		"toInt64(count())", sketch("") + "(user_id)", "toInt64(count())", sketch("State") + "(user_id)"},
	minuteTable: {"minute", "events_1m", "m", "%", "sum(n)", "", "n", ""},
	userTable:   {"users", "events_users", "at", "", "sum(n)", sketch("Merge") + "(u)", "n", "u"},
}

// source is a table and the pieces it answers.
type source struct {
	table  table
	pieces []piece
}

// sourcesOf are the tables that have a piece.
func sourcesOf(pieces []piece) (all []source) {
	for t := range tables {
		var own []piece
		for _, p := range pieces {
			if p.grain.table() == t {
				own = append(own, p)
			}
		}
		if len(own) > 0 {
			all = append(all, source{t, own})
		}
	}
	return all
}

// answer writes the columns of the answer.
func (b *builder) answer(key, count, users string) {
	b.WriteString("SELECT ")
	switch {
	case b.r.GroupBy == "":
	case bucketSeconds(b.r.GroupBy) == 0:
		b.WriteString("CAST(" + key + ", 'String') AS label, toUInt8(grouping(label)) AS whole, ")
	default:
		b.WriteString(key + " AS label, toUInt8(grouping(label)) AS whole, ")
	}
	b.WriteString(count + " AS events")
	b.users(", " + users + " AS distinct_users")
}

// partial writes a SELECT that the answer adds up.
func (b *builder) partial(s source) {
	c := &schema[s.table]
	b.WriteString("\nSELECT ")
	if b.r.GroupBy != "" {
		b.WriteString(b.groupKey(s.table) + " AS g, ")
	}
	b.WriteString(c.total + " AS total")
	b.users(", " + c.state + " AS users")
	b.from(s)
	if s.table == rawTable && b.r.GroupBy != "" {
		b.WriteString(" GROUP BY g")
	}
	b.settings(s)
}

// settings writes those under which s is read. A bucket is one row that takes long to
// merge: they are handed to threads two granules at a time, where the server counts
// in rows. Rows of events are not: reading them took 1.4 to 1.9 times as long.
func (b *builder) settings(s source) {
	if s.table == userTable && !b.r.CountsOnly {
		b.WriteString("\nSETTINGS merge_tree_min_rows_for_concurrent_read = 1, merge_tree_min_bytes_for_concurrent_read = 1, merge_tree_min_read_task_size = 2")
	}
}

// from writes where the rows come from, and which.
func (b *builder) from(s source) {
	b.WriteString(" FROM " + schema[s.table].name + "\nWHERE event_name = {event:String}")
	if b.r.Channel != "" {
		b.WriteString(" AND channel = {channel:String}")
	}
	if b.r.CampaignID != "" {
		b.WriteString(" AND campaign_id = {campaign:String}")
	}
	if s.table == userTable {
		b.WriteString(" AND by_channel = " + map[bool]string{false: "0", true: "1"}[byChannel(b.r)])
	}
	b.WriteString("\n  AND (")
	if s.table == userTable {
		b.buckets(s.pieces)
	} else {
		b.ranges(s.table, s.pieces)
	}
	b.WriteByte(')')
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
