package query

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// answer adds up what the statements of one request bring. They may bring it at the
// same time.
type answer struct {
	request Request
	zone    *time.Location
	width   int64 // of groups by time, 0 of others
	served  bool  // the whole comes with the groups

	mu     sync.Mutex
	whole  cell
	groups map[key]*cell
	last   *cell // the group whose buckets come, unless it is at an edge
}

// key is a group: the name, or the second that the bucket has for one.
type key struct {
	name string
	time int64
}

// cell is what is known of a group, or of all.
type cell struct {
	events int64
	users  uint64  // as the server says, or as the sketch did when the cell was closed
	sketch *sketch // of those that came as states
	closed bool    // all have come
}

func newAnswer(r *Request, zone *time.Location) *answer {
	return &answer{request: *r, zone: zone, width: bucketSeconds(r.GroupBy), groups: map[key]*cell{}}
}

// rows are the columns of one statement's answer.
type rows struct {
	has columnSet

	widths proto.ColUInt32
	starts proto.ColDateTime
	parts  *proto.ColLowCardinality[string]
	names  proto.ColStr
	times  proto.ColInt64
	edge   proto.ColUInt8
	whole  proto.ColUInt8
	events proto.ColInt64
	users  proto.ColUInt64
	states proto.ColStr
}

// query is s for ch-go. It hands each block to read, with the number of its rows; headers
// have none.
func (s *statement) query(settings []ch.Setting, read func(*rows, int) error) ch.Query {
	c := &rows{has: s.columns, parts: new(proto.ColStr).LowCardinality()}
	return ch.Query{
		Body:       s.text,
		Parameters: s.params,
		Settings:   settings,
		Result:     c.results(),
		OnResult:   func(_ context.Context, b proto.Block) error { return read(c, b.Rows) },
	}
}

func (c *rows) results() proto.Results {
	var all proto.Results
	add := func(there bool, name string, data proto.ColResult) {
		if there {
			all = append(all, proto.ResultColumn{Name: name, Data: data})
		}
	}
	add(c.has.bucket, "width", &c.widths)
	add(c.has.bucket, "at", &c.starts)
	add(c.has.bucket, "part", c.parts)
	add(c.has.name, "label", &c.names)
	add(c.has.time, "label", &c.times)
	add(c.has.edge, "edge", &c.edge)
	add(c.has.whole, "whole", &c.whole)
	add(true, "events", &c.events)
	add(c.has.users, "distinct_users", &c.users)
	add(c.has.state, "state", &c.states)
	return all
}

// span is the bucket of row i.
func (c *rows) span(i int) span { return span{int64(c.widths.Row(i)), int64(c.starts.Data[i])} }

// read takes the n rows of one block.
func (a *answer) read(c *rows, n int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range n {
		var name string
		if c.has.name {
			name = c.names.Row(i)
		}
		var g *cell
		switch {
		case c.has.whole && c.whole.Row(i) != 0:
			g = &a.whole
		case c.has.bucket:
			s := c.span(i)
			if a.cuts(s) {
				continue
			}
			g = a.groupOf(s.at, name)
		case c.has.time:
			g = a.cell(key{time: c.times.Row(i)})
			if c.has.edge && c.edge.Row(i) == 0 {
				a.follow(g)
			}
		case c.has.name:
			g = a.cell(key{name: name})
		default:
			g = &a.whole
		}
		var state []byte
		switch {
		case c.has.users:
			g.users = c.users.Row(i)
		case c.has.state:
			state = c.states.RowBytes(i)
		}
		if err := g.add(c.events.Row(i), state); err != nil {
			return err
		}
	}
	return nil
}

// addCells adds those that are known, of buckets of that width. Of seconds only those of
// the range are added.
func (a *answer) addCells(cells []bucketCell, width int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range cells {
		if a.cuts(span{width, c.at}) {
			continue
		}
		if err := a.groupOf(c.at, c.name).add(c.events, c.state); err != nil {
			return err
		}
	}
	return nil
}

// addSum adds cells that were added up.
func (a *answer) addSum(s *stateSum) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, c := range s.cells {
		a.groupOf(0, name).join(c)
	}
}

// cuts tells whether b is not whole in the range: a bucket that is read to know whether
// its seconds have changed, or a second of one.
func (a *answer) cuts(b span) bool { return b.at < a.request.From || b.at+b.width > a.request.To }

// cell is that of the group k.
func (a *answer) cell(k key) *cell {
	g := a.groups[k]
	if g == nil {
		g = new(cell)
		a.groups[k] = g
	}
	return g
}

// groupOf is the cell of the group which has the bucket that starts at start, of a channel
// if groups are channels. A group by time that is not at an end of the range is that bucket
// and nothing else.
func (a *answer) groupOf(start int64, name string) *cell {
	r := &a.request
	switch {
	case r.GroupBy == "":
		return &a.whole
	case a.width == 0:
		return a.cell(key{name: name})
	}
	at := start - start%a.width
	g := a.cell(key{time: at})
	if at > r.From && at+a.width < r.To {
		a.follow(g)
	}
	return g
}

// follow closes the group that g follows in time: sketches are 16 kB each, and there
// may be eleven thousand groups.
func (a *answer) follow(g *cell) {
	if a.last != nil && a.last != g {
		a.close(a.last)
	}
	a.last = g
}

// join adds what is in c.
func (g *cell) join(c *cell) {
	g.events += c.events
	if c.sketch == nil {
		return
	}
	if g.sketch == nil {
		g.sketch = new(sketch)
	}
	g.sketch.union(c.sketch)
}

// close adds g to the whole, and forgets which users it had.
func (a *answer) close(g *cell) {
	g.closed = true
	a.whole.join(g)
	if g.sketch != nil {
		g.users, g.sketch = g.sketch.count(), nil
	}
}

// distinct is how many users g has: a sketch may estimate more than there are events, which
// are exact and of a user each.
func (g *cell) distinct() uint64 { return min(g.users, uint64(max(g.events, 0))) }

// add adds events and, if there is one, the state of their users.
func (g *cell) add(events int64, state []byte) error {
	if g.closed {
		return errors.New("the buckets of a group came apart from each other")
	}
	g.events += events
	if state == nil {
		return nil
	}
	if g.sketch == nil {
		g.sketch = new(sketch)
	}
	return g.sketch.merge(state)
}

// finish puts the groups in order: times ascending, names by descending count.
func (a *answer) finish() *Result {
	type group struct {
		key
		*cell
	}
	groups := make([]group, 0, len(a.groups))
	for k, g := range a.groups {
		if !a.served && !g.closed {
			a.close(g)
		}
		if g.events != 0 { // a rollup's counts may have been corrected down to nothing
			groups = append(groups, group{k, g})
		}
	}
	slices.SortFunc(groups, func(x, y group) int {
		if a.width != 0 {
			return cmp.Compare(x.time, y.time)
		}
		return cmp.Or(cmp.Compare(y.events, x.events), cmp.Compare(x.name, y.name))
	})
	if a.whole.sketch != nil {
		a.whole.users = a.whole.sketch.count()
	}
	res := &Result{Request: a.request, Events: a.whole.events, Users: a.whole.distinct()}
	names := 0
	for i, g := range groups {
		if names += len(g.name); a.width == 0 && (i == maxNames || names > maxNamesBytes) {
			res.Truncated = true
			break
		}
		entry := Group{Label: g.name, Events: g.events, Users: g.distinct()}
		if a.width != 0 {
			entry.Label = timeLabel(a.request.GroupBy, g.time, a.zone)
		}
		res.Groups = append(res.Groups, entry)
	}
	return res
}
