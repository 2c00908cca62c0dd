package query

import (
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
)

// statement is the SQL of one table's part of an answer. Its text depends only on the
// shape of the request and on integers; every string of the caller travels beside it as
// a query parameter.
type statement struct {
	columns columnSet
	text    string
	params  []proto.Parameter
}

// columnSet says which columns a statement answers with, in this order. Events are
// always among them.
type columnSet struct {
	bucket bool // its width, its start, its part: the row is as it is stored
	name   bool // of the group
	time   bool // of the group, as the second that its bucket has for one; not of a stored bucket, whose start says it
	edge   bool // 1 in a row of the first or the last group, which other tables may have rows of
	whole  bool // 1 in a row of all groups together, beside those of the groups
	users  bool // distinct users of a group, or of the whole
	state  bool // of distinct users, to be merged here
}

// builders write a SELECT for every table that has a piece. They are asked side by side:
// most of a short query is its analysis, and in one statement of all the tables they
// were analysed one after the other. Buckets come as they are stored and are merged
// here, and so are the states that the server makes of rows. The server merges what would
// be much to send: groups by time that are many buckets each, and campaigns and groups by
// time if rows alone answer.
func builders(r *Request, zone offsets, pieces []piece) []*builder {
	sources := sourcesOf(pieces)
	all := make([]*builder, len(sources))
	for i, s := range sources {
		all[i] = &builder{r: r, zone: zone, source: s, alone: len(sources) == 1}
	}
	return all
}

// builder makes one statement.
type builder struct {
	strings.Builder
	r      *Request
	zone   offsets
	source source
	alone  bool // no other table has a piece
	counts bool // of stored buckets, neither whose nor states
	second bool // each second by itself, as if it were a stored bucket
}

// stored tells whether the statement reads buckets as they are stored, what each part has
// of them: a day or an hour that is no bucket of its zone is many, which the server merges.
func (b *builder) stored() bool {
	width := bucketSeconds(b.r.GroupBy)
	return b.source.table == userTable && !b.r.CountsOnly && (width == 0 || b.zone.align(width))
}

// of is a builder for the same buckets as b, or some of them: with their states or with
// nothing but how many events are in which parts.
func (b *builder) of(pieces []piece, states bool) *builder {
	return &builder{r: b.r, zone: b.zone, source: source{userTable, pieces}, counts: !states}
}

// rows is a builder for the rows of pieces, as they add up or of each second.
func (b *builder) rows(pieces []piece, second bool) *builder {
	return &builder{r: b.r, zone: b.zone, source: source{rawTable, pieces}, second: second}
}

// uniq is the aggregate function of users, whose precision is part of the type of
// every state in the schema.
func uniq(combinator string) string { return "uniqCombined64" + combinator + "(14)" }

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
	label      string // of the metric
	name, time string
	literal    string // a Unix second as a constant of the time column's type, for ranges
	count      string // of many rows
	state      string // of the users of many rows
}

var schema = [tables]columns{
	rawTable:    {"raw", "events", "ts", "toDateTime64(%, 3, 'UTC')", "toInt64(count())", uniq("State") + "(user_id)"},
	minuteTable: {"minute", "events_1m", "m", "%", "sum(n)", ""},
	userTable:   {"users", "events_users", "at", "", "sum(n)", uniq("MergeState") + "(u)"},
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

// statement writes all of it.
func (b *builder) statement() statement {
	b.Grow(2048)
	c := &schema[b.source.table]
	r, distinct := b.r, !b.r.CountsOnly
	width := bucketSeconds(r.GroupBy)
	timed := width != 0
	served := b.alone && b.source.table == rawTable && r.GroupBy != "" && r.GroupBy != "channel"
	buckets, stored := distinct && b.source.table == userTable, b.stored()
	cols := columnSet{
		bucket: stored || b.second,
		name:   r.GroupBy != "" && !timed && !b.counts,
		time:   timed && !stored && !b.second,
		edge:   buckets && timed && !stored,
		whole:  served,
		users:  served && distinct,
		state:  !served && distinct && !b.counts,
	}
	b.WriteString("SELECT ")
	switch {
	case b.second:
		b.WriteString("toUInt32(1) AS width, toDateTime(ts, 'UTC') AS at, toLowCardinality('') AS part, ")
	case stored:
		b.WriteString("width, at, _part AS part, ")
	}
	if cols.name || cols.time {
		b.WriteString(b.groupKey() + " AS label, ")
	}
	if cols.edge {
		b.WriteString("label IN (" + b.key(num(r.From)) + ", " + b.key(num(r.To-1)) + ") AS edge, ")
	}
	if cols.whole {
		b.WriteString("toUInt8(grouping(label)) AS whole, ")
	}
	count, state := c.count, c.state
	if stored {
		count, state = "toInt64(n)", "u"
	}
	b.WriteString(count + " AS events")
	switch {
	case cols.state:
		b.WriteString(", toString(" + state + ") AS state")
	case cols.users:
		b.WriteString(", " + uniq("") + "(user_id) AS distinct_users")
	}
	b.from()
	switch {
	case b.second && cols.name:
		b.WriteString("\nGROUP BY at, label")
	case b.second:
		b.WriteString("\nGROUP BY at")
	case (cols.name || cols.time) && !stored:
		b.WriteString("\nGROUP BY label")
	}
	if cols.whole {
		b.WriteString(" WITH ROLLUP")
		if !timed {
			// The whole, the largest names, and one more, which tells that there were more.
			b.WriteString("\nORDER BY whole DESC, events DESC, label LIMIT " + num(maxNames+2))
		}
	}
	switch {
	case cols.edge:
		b.WriteString("\nORDER BY label")
	case stored && timed:
		b.WriteString("\nORDER BY width, at") // as they are stored: it costs nothing
	}
	if buckets && cols.state {
		b.WriteString(stateSettings)
	}
	return statement{cols, b.String(), b.params()}
}

// stateSettings are those under which states are read. One is a row that takes long to
// read: they are handed to threads two granules at a time, where the server counts in
// rows, and sent a few at a time, since all that is sent at once is in memory here.
const stateSettings = "\nSETTINGS merge_tree_min_rows_for_concurrent_read = 1, merge_tree_min_bytes_for_concurrent_read = 1, " +
	"merge_tree_min_read_task_size = 2, max_block_size = 128"

func (b *builder) params() []proto.Parameter {
	params := []proto.Parameter{param("event", b.r.EventName)}
	if b.r.Channel != "" {
		params = append(params, param("channel", b.r.Channel))
	}
	if b.r.CampaignID != "" {
		params = append(params, param("campaign", b.r.CampaignID))
	}
	return params
}

// from writes where the rows come from, and which. The server would move the whole
// condition to PREWHERE itself, after it has looked at each part of it: a fifth of a short
// query.
func (b *builder) from() {
	b.WriteString(" FROM " + schema[b.source.table].name + "\nPREWHERE event_name = {event:String}")
	if b.r.Channel != "" {
		b.WriteString(" AND channel = {channel:String}")
	}
	if b.r.CampaignID != "" {
		b.WriteString(" AND campaign_id = {campaign:String}")
	}
	if b.source.table == userTable {
		b.WriteString(" AND by_channel = " + map[bool]string{false: "0", true: "1"}[byChannel(b.r)])
	}
	b.WriteString("\n  AND (")
	if b.source.table == userTable {
		b.buckets()
	} else {
		b.ranges()
	}
	b.WriteByte(')')
}

// groupKey is the group of one row: a name, or a bucket in seconds.
func (b *builder) groupKey() string {
	if bucketSeconds(b.r.GroupBy) == 0 {
		return "CAST(" + b.r.GroupBy + ", 'String')"
	}
	return b.key("toUnixTimestamp(" + schema[b.source.table].time + ")")
}

// key is the time group of the UTC second x.
func (b *builder) key(x string) string {
	return "toInt64(" + b.zone.key(x, bucketSeconds(b.r.GroupBy)) + ")"
}

func (b *builder) ranges() {
	c := &schema[b.source.table]
	at := func(sec int64) string { return strings.Replace(c.literal, "%", num(sec), 1) }
	for i, p := range b.source.pieces {
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
func (b *builder) buckets() {
	var list []byte
	for _, p := range b.source.pieces {
		width := p.grain.seconds()
		if (p.to-p.from)/width > maxListed {
			b.WriteString("width = " + num(width) + " AND at >= " + num(p.from) + " AND at < " + num(p.to) + " OR ")
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

func num(n int64) string { return strconv.FormatInt(n, 10) }

// param returns a query parameter that arrives as exactly value. The server
// undoes two layers: a parameter travels as a quoted literal, and what is
// inside the quotes is read as a tab-separated field.
func param(key, value string) proto.Parameter {
	return proto.Parameter{Key: key, Value: "'" + escape(escape(value)) + "'"}
}

var escaper = strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\r", `\r`, "\t", `\t`, "\x00", `\0`)

func escape(s string) string { return escaper.Replace(s) }
