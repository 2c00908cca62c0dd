package query

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// answer decodes the rows of a statement. Which columns there are follows from the
// request, in the order build writes them.
type answer struct {
	result Result
	zone   *time.Location
	timed  bool
	starts []int64 // of the groups, when they are times

	names  proto.ColStr
	times  proto.ColInt64
	whole  proto.ColUInt8
	events proto.ColInt64
	users  proto.ColUInt64
}

func newAnswer(r *Request, zone *time.Location) *answer {
	return &answer{zone: zone, result: Result{Request: *r}, timed: bucketSeconds(r.GroupBy) != 0}
}

func (a *answer) columns() proto.Results {
	var cols proto.Results
	add := func(name string, data proto.ColResult) {
		cols = append(cols, proto.ResultColumn{Name: name, Data: data})
	}
	switch {
	case a.timed:
		add("label", &a.times)
	case a.grouped():
		add("label", &a.names)
	}
	if a.grouped() {
		add("whole", &a.whole)
	}
	add("events", &a.events)
	if !a.result.Request.CountsOnly {
		add("distinct_users", &a.users)
	}
	return cols
}

func (a *answer) grouped() bool { return a.result.Request.GroupBy != "" }

// read takes the rows of one block; headers have none.
func (a *answer) read(_ context.Context, b proto.Block) error {
	for i := range b.Rows {
		g := Group{Events: a.events.Row(i)}
		if !a.result.Request.CountsOnly {
			g.Users = a.users.Row(i)
		}
		switch {
		case !a.grouped() || a.whole.Row(i) != 0:
			a.result.Events, a.result.Users = g.Events, g.Users
		case g.Events == 0: // a rollup's counts may have been corrected down to nothing
		case a.timed:
			a.starts = append(a.starts, a.times.Row(i))
			a.result.Groups = append(a.result.Groups, g)
		default:
			g.Label = a.names.Row(i)
			a.result.Groups = append(a.result.Groups, g)
		}
	}
	return nil
}

// finish puts the groups in order: times ascending, names by descending count, which
// the statement has done. What it returns holds none of the columns.
func (a *answer) finish() *Result {
	res := new(a.result)
	if !a.timed {
		if len(res.Groups) > maxNames {
			res.Groups, res.Truncated = res.Groups[:maxNames], true
		}
		return res
	}
	order := make([]int, len(a.starts))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Compare(a.starts[i], a.starts[j]) })
	groups := make([]Group, len(order))
	for i, k := range order {
		groups[i] = res.Groups[k]
		groups[i].Label = timeLabel(res.Request.GroupBy, a.starts[k], a.zone)
	}
	res.Groups = groups
	return res
}
