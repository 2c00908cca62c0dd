package query

import (
	"context"
	"fmt"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// answer decodes the one row of a statement. Which columns there are follows
// from the request, in the order build writes them.
type answer struct {
	result Result
	zone   *time.Location
	timed  bool

	events proto.ColInt64
	users  proto.ColUInt64
	names  *proto.ColArr[string]
	times  *proto.ColArr[int64]
	totals *proto.ColArr[int64]
	each   *proto.ColArr[uint64]
}

func newAnswer(r *Request, zone *time.Location) *answer {
	return &answer{
		zone:   zone,
		result: Result{Request: *r},
		timed:  bucketSeconds(r.GroupBy) != 0,
		names:  new(proto.ColStr).Array(),
		times:  new(proto.ColInt64).Array(),
		totals: new(proto.ColInt64).Array(),
		each:   new(proto.ColUInt64).Array(),
	}
}

func (a *answer) columns() proto.Results {
	r := &a.result.Request
	cols := proto.Results{{Name: "events", Data: &a.events}}
	if !r.CountsOnly {
		cols = append(cols, proto.ResultColumn{Name: "distinct_users", Data: &a.users})
	}
	if r.GroupBy == "" {
		return cols
	}
	labels := proto.ResultColumn{Name: "labels", Data: a.names}
	if a.timed {
		labels.Data = a.times
	}
	cols = append(cols, labels, proto.ResultColumn{Name: "totals", Data: a.totals})
	if !r.CountsOnly {
		cols = append(cols, proto.ResultColumn{Name: "users_per_group", Data: a.each})
	}
	return cols
}

// read takes the row out of the block that has it; headers have none. It may
// run again from the start when the pool replaces a connection that broke.
func (a *answer) read(_ context.Context, b proto.Block) error {
	if b.Rows == 0 {
		return nil
	}
	if b.Rows > 1 {
		return fmt.Errorf("answer has %d rows; want one", b.Rows)
	}
	res := &a.result
	res.Events = a.events.Row(0)
	if !res.Request.CountsOnly {
		res.Users = a.users.Row(0)
	}
	if res.Request.GroupBy == "" {
		return nil
	}
	a.readGroups()
	if !a.timed && len(res.Groups) > maxNames {
		res.Groups, res.Truncated = res.Groups[:maxNames], true
	}
	return nil
}

func (a *answer) readGroups() {
	totals := a.totals.Row(0)
	groups := make([]Group, len(totals))
	for i := range groups {
		groups[i].Events = totals[i]
	}
	if a.timed {
		for i, sec := range a.times.Row(0) {
			groups[i].Label = timeLabel(a.result.Request.GroupBy, sec, a.zone)
		}
	} else {
		for i, name := range a.names.Row(0) {
			groups[i].Label = name
		}
	}
	if !a.result.Request.CountsOnly {
		for i, n := range a.each.Row(0) {
			groups[i].Users = n
		}
	}
	a.result.Groups = groups
}
