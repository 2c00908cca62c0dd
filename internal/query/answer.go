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
	timed   bool
	served  bool // the whole comes with the groups

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
	return &answer{request: *r, zone: zone, timed: bucketSeconds(r.GroupBy) != 0, groups: map[key]*cell{}}
}

// rows are the columns of one statement's answer.
type rows struct {
	has   columnSet
	timed bool

	names  proto.ColStr
	times  proto.ColInt64
	edge   proto.ColUInt8
	whole  proto.ColUInt8
	events proto.ColInt64
	users  proto.ColUInt64
	states proto.ColStr
}

// into is the query that adds the answer of s to a.
func (a *answer) into(s *statement, settings []ch.Setting) ch.Query {
	c := &rows{has: s.columns, timed: a.timed}
	a.served = c.has.whole
	return ch.Query{
		Body:       s.text,
		Parameters: s.params,
		Settings:   settings,
		Result:     c.results(),
		OnResult:   func(_ context.Context, b proto.Block) error { return a.read(c, b.Rows) },
	}
}

func (c *rows) results() proto.Results {
	var all proto.Results
	add := func(there bool, name string, data proto.ColResult) {
		if there {
			all = append(all, proto.ResultColumn{Name: name, Data: data})
		}
	}
	add(c.has.label && c.timed, "label", &c.times)
	add(c.has.label && !c.timed, "label", &c.names)
	add(c.has.edge, "edge", &c.edge)
	add(c.has.whole, "whole", &c.whole)
	add(true, "events", &c.events)
	add(c.has.users, "distinct_users", &c.users)
	add(c.has.state, "state", &c.states)
	return all
}

// read takes the n rows of one block; headers have none.
func (a *answer) read(c *rows, n int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range n {
		g := a.cell(c, i)
		if c.has.edge && c.edge.Row(i) == 0 {
			a.follow(g)
		}
		if err := g.take(c, i); err != nil {
			return err
		}
	}
	return nil
}

// cell is that of row i.
func (a *answer) cell(c *rows, i int) *cell {
	var k key
	switch {
	case !c.has.label || c.has.whole && c.whole.Row(i) != 0:
		return &a.whole
	case c.timed:
		k.time = c.times.Row(i)
	default:
		k.name = c.names.Row(i)
	}
	g := a.groups[k]
	if g == nil {
		g = new(cell)
		a.groups[k] = g
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

// close adds g to the whole, and forgets which users it had.
func (a *answer) close(g *cell) {
	g.closed = true
	a.whole.events += g.events
	if g.sketch == nil {
		return
	}
	if a.whole.sketch == nil {
		a.whole.sketch = new(sketch)
	}
	a.whole.sketch.union(g.sketch)
	g.users, g.sketch = g.sketch.count(), nil
}

// take adds row i.
func (g *cell) take(c *rows, i int) error {
	if g.closed {
		return errors.New("the buckets of a group came apart from each other")
	}
	g.events += c.events.Row(i)
	switch {
	case c.has.users:
		g.users = c.users.Row(i)
	case c.has.state:
		if g.sketch == nil {
			g.sketch = new(sketch)
		}
		return g.sketch.merge(c.states.RowBytes(i))
	}
	return nil
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
		if a.timed {
			return cmp.Compare(x.time, y.time)
		}
		return cmp.Or(cmp.Compare(y.events, x.events), cmp.Compare(x.name, y.name))
	})
	res := &Result{Request: a.request, Events: a.whole.events, Users: a.whole.users}
	if a.whole.sketch != nil {
		res.Users = a.whole.sketch.count()
	}
	if !a.timed && len(groups) > maxNames {
		groups, res.Truncated = groups[:maxNames], true
	}
	for _, g := range groups {
		entry := Group{Label: g.name, Events: g.events, Users: g.users}
		if a.timed {
			entry.Label = timeLabel(a.request.GroupBy, g.time, a.zone)
		}
		res.Groups = append(res.Groups, entry)
	}
	return res
}
