package query

// table is one place the answer can be read from, ordered from fine to coarse.
type table uint8

const (
	rawTable table = iota
	minuteTable
	hourTable
	dayTable
	tables
)

// grain is the width in seconds of one row's bucket. Raw rows carry
// milliseconds, but a request's edges are whole seconds.
func (t table) grain() int64 { return [tables]int64{1, 60, 3600, 86400}[t] }

// String is the value of the source label.
func (t table) String() string { return [tables]string{"raw", "minute", "hour", "day"}[t] }

// tableSet is a set of tables. Raw is always available: it is what is left.
type tableSet uint8

func (s tableSet) has(t table) bool { return t == rawTable || s&(1<<t) != 0 }

// piece is a part [from, to) of the range and the table that answers it. Both
// ends are multiples of the table's grain.
type piece struct {
	table    table
	from, to int64
}

// rawSpan is the range below which raw rows alone answer faster than rollups
// plus ragged edges: with less than two hours, the edges are at least as many
// rows as the whole hour between them could save. The rule is for distinct
// users; counts by the minute are cheap at any length.
//
// Above it, rollups are not always the faster source: merging a state costs
// about what counting its distinct users from rows would, until it is full at
// some thousand users. So they lose by a factor of up to two while users hardly
// come again within a day, when there are few rows and either is cheap, and win
// without bound as the rows grow.
const rawSpan = 2 * 3600

// usable says which rollups can answer r.
//
//   - No rollup knows campaigns.
//   - Groups need buckets that do not cross a group's edge: hours cannot come
//     from days, nor days of Berlin from days of UTC, nor those of Kathmandu
//     from hours.
//   - Distinct users need states, which minutes do not carry. With users asked
//     for, the minutes are no help for the counts either: the rows below an
//     hour must be read for their users, and counting them on the way is free.
func usable(r *Request, zone offsets) tableSet {
	if r.GroupBy == "campaign_id" || r.CampaignID != "" {
		return 0
	}
	if !r.CountsOnly && r.To-r.From < rawSpan {
		return 0
	}
	var s tableSet
	for t := minuteTable; t < tables; t++ {
		if width := bucketSeconds(r.GroupBy); width != 0 && (t.grain() > width || !zone.align(t.grain())) {
			continue
		}
		if t == minuteTable && !r.CountsOnly {
			continue
		}
		s |= 1 << t
	}
	return s
}

// plan covers [from, to) with pieces in ascending order, disjoint and without
// a gap: whole days, around them whole hours, around those whole minutes, and
// raw rows at the ragged ends. That makes at most seven pieces, and at most
// 23 hours, 59 minutes and 59 seconds at either end, however long the range.
func plan(from, to int64, use tableSet) []piece {
	return cut(make([]piece, 0, 2*tables-1), piece{dayTable, from, to}, use)
}

// cut appends the cover of p: its whole buckets from p.table, the rest from
// the finer tables.
func cut(dst []piece, p piece, use tableSet) []piece {
	switch {
	case p.from >= p.to:
		return dst
	case p.table == rawTable:
		return append(dst, p)
	}
	finer := p.table - 1
	g := p.table.grain()
	lo, hi := (p.from+g-1)/g*g, p.to/g*g
	if !use.has(p.table) || lo >= hi {
		return cut(dst, piece{finer, p.from, p.to}, use)
	}
	dst = cut(dst, piece{finer, p.from, lo}, use)
	dst = append(dst, piece{p.table, lo, hi})
	return cut(dst, piece{finer, hi, p.to}, use)
}
