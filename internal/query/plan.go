package query

// grain is a width of buckets that an answer can be put together from, ordered
// from fine to coarse.
type grain uint8

const (
	rowGrain    grain = iota // rows of events; a request's edges are whole seconds
	minuteGrain              // has no users
	fiveGrain                // five minutes
	hourGrain
	dayGrain
	longGrain   // 16 days
	longerGrain // 256 days
	grains
)

// seconds is the width. The two long ones are multiples of days since 1970 and
// not months and years: every width divides the next, which is all that cutting
// a range needs, and a range is never far from being a multiple of sixteen.
func (g grain) seconds() int64 {
	return [grains]int64{1, 60, 300, 3600, 86400, 16 * 86400, 256 * 86400}[g]
}

// grainOf is the grain of a width.
func grainOf(seconds int64) grain {
	g := grains - 1
	for g > rowGrain && g.seconds() != seconds {
		g--
	}
	return g
}

// grainSet is a set of grains. Rows are always in it: they are what is left.
type grainSet uint16

func (s grainSet) has(g grain) bool { return g == rowGrain || s&(1<<g) != 0 }

// piece is a part [from, to) of the range and the grain that answers it. Both
// ends are multiples of the grain.
type piece struct {
	grain    grain
	from, to int64
}

// rawSpan is the range below which raw rows alone answer faster than rollups
// plus ragged edges: with less than ten minutes, the edges are at least as many
// rows as the five minutes between them could save. The rule is for distinct
// users; counts by the minute are cheap at any length.
const rawSpan = 2 * 300

// plan cuts the range of r into pieces that together are the range.
func plan(r *Request, zone offsets) []piece { return cut(r.From, r.To, usable(r, zone)) }

// usable says which grains can answer r.
//
//   - No rollup knows campaigns.
//   - Groups need buckets that do not cross a group's edge: hours cannot come
//     from days, nor days of Berlin from days of UTC, nor those of Kathmandu
//     from hours.
//   - Minutes have no users. With users asked for they are no help for the
//     counts either: the rows must be read for their users, and counting them
//     on the way is free.
func usable(r *Request, zone offsets) grainSet {
	if r.GroupBy == "campaign_id" || r.CampaignID != "" {
		return 0
	}
	if !r.CountsOnly && r.To-r.From < rawSpan {
		return 0
	}
	var s grainSet
	width := bucketSeconds(r.GroupBy)
	for g := minuteGrain; g < grains; g++ {
		switch {
		case g == minuteGrain && !r.CountsOnly:
		case width == 0, g.seconds() <= width && zone.align(g.seconds()):
			s |= 1 << g
		}
	}
	return s
}

// byChannel says that r asks for one channel, or for each.
func byChannel(r *Request) bool { return r.Channel != "" || r.GroupBy == "channel" }

// cut covers [from, to) with pieces in ascending order, disjoint and without a
// gap: the widest buckets first, around them those of the next finer grain, and
// rows at the ragged ends. At either end that makes fewer buckets of a grain
// than one of the next has, however long the range.
func cut(from, to int64, use grainSet) []piece {
	return appendCut(make([]piece, 0, 2*grains-1), piece{grains - 1, from, to}, use)
}

// appendCut appends the cover of p: its whole buckets of p.grain, the rest from
// the finer ones.
func appendCut(dst []piece, p piece, use grainSet) []piece {
	switch {
	case p.from >= p.to:
		return dst
	case p.grain == rowGrain:
		return append(dst, p)
	}
	finer := p.grain - 1
	g := p.grain.seconds()
	lo, hi := (p.from+g-1)/g*g, p.to/g*g
	if !use.has(p.grain) || lo >= hi {
		return appendCut(dst, piece{finer, p.from, p.to}, use)
	}
	dst = appendCut(dst, piece{finer, p.from, lo}, use)
	dst = append(dst, piece{p.grain, lo, hi})
	return appendCut(dst, piece{finer, hi, p.to}, use)
}
