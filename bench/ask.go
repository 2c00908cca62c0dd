//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"edge/internal/clickhouse"
)

// asker asks one question in the three ways.
type asker struct {
	ctx  context.Context
	addr string
	pool *clickhouse.Pool
}

type reply struct {
	total int64
	users uint64 // distinct in each group, added up
	took  time.Duration
}

// edge is GET /metrics over a connection that stays open.
func (a *asker) edge(from, to int64, group string) (reply, error) {
	began := time.Now()
	text, err := get(fmt.Sprintf("http://%s/metrics?event_name=product_view&from=%d&to=%d&group_by=%s", a.addr, from, to, group))
	r := reply{took: time.Since(began)}
	if err != nil {
		return r, err
	}
	var answer struct {
		Total int64  `json:"total_events"`
		Users uint64 `json:"unique_users"`
		Data  []struct {
			Users uint64 `json:"unique_users"`
		} `json:"data"`
	}
	err = json.Unmarshal(text, &answer)
	r.total = answer.Total
	if group == "" {
		r.users = answer.Users
	}
	for _, g := range answer.Data {
		r.users += g.Users
	}
	return r, err
}

// bare is the one rollup query that answers about the same, from whole hours or
// whole days on: wrong at both ends, and as fast as who knows the tables can ask them.
func (a *asker) bare(from, to int64, group string) (reply, error) {
	byChannel := 0
	if group != "" {
		byChannel = 1
	}
	return a.ask(bucketSettings, "sum(n)", "uniqCombined64Merge(14)(u)", "events_users",
		fmt.Sprintf("by_channel = %d AND (%s)", byChannel, strings.Join(buckets(from, to), " OR ")), group)
}

// buckets are the conditions for the fewest buckets of events_users that about cover the
// range, at least one.
func buckets(from, to int64) (conditions []string) {
	widths := []int64{256 * 86400, 16 * 86400, 86400, 3600}
	if to-from >= 3*86400 {
		widths = widths[:3]
	}
	var cover func(from, to int64, widths []int64)
	cover = func(from, to int64, widths []int64) {
		if from >= to {
			return
		}
		width := widths[0]
		first, end := (from+width-1)/width*width, to/width*width
		if first >= end {
			cover(from, to, widths[1:])
			return
		}
		cover(from, first, widths[1:])
		conditions = append(conditions, fmt.Sprintf("width = %d AND at >= %d AND at < %d", width, first, end))
		cover(end, to, widths[1:])
	}
	finest := widths[len(widths)-1]
	from = from / finest * finest
	cover(from, max(to/finest*finest, from+finest), widths)
	return conditions
}

// raw is the same question to the rows.
func (a *asker) raw(from, to int64, group string) (reply, error) {
	return a.ask(nil, "toInt64(count())", "uniqCombined64(14)(user_id)", "events", fmt.Sprintf("ts >= toDateTime64(%d, 3, 'UTC') AND ts < toDateTime64(%d, 3, 'UTC')", from, to), group)
}

// The settings that make our queries fast, and those of the part that reads buckets.
var (
	asOurs         = []ch.Setting{{Key: "use_statistics", Value: "0"}, {Key: "optimize_use_projections", Value: "0"}, {Key: "optimize_use_implicit_projections", Value: "0"}}
	bucketSettings = []ch.Setting{{Key: "merge_tree_min_rows_for_concurrent_read", Value: "1"}, {Key: "merge_tree_min_bytes_for_concurrent_read", Value: "1"}, {Key: "merge_tree_min_read_task_size", Value: "2"}}
)

func (a *asker) ask(more []ch.Setting, total, users, table, where, group string) (reply, error) {
	key, by := "''", ""
	if group != "" {
		key, by = "CAST("+group+", 'String')", " GROUP BY g"
	}
	var n proto.ColInt64
	var distinct proto.ColUInt64
	var r reply
	began := time.Now()
	err := a.pool.Do(a.ctx, ch.Query{
		Body:     "SELECT " + total + " AS t, " + users + " AS u, " + key + " AS g FROM " + table + " WHERE event_name = 'product_view' AND " + where + by,
		Settings: slices.Concat(asOurs, more),
		Result:   proto.Results{{Name: "t", Data: &n}, {Name: "u", Data: &distinct}, {Name: "g", Data: new(proto.ColStr)}},
		OnResult: func(_ context.Context, b proto.Block) error {
			for i := range b.Rows {
				r.total += n.Row(i)
				r.users += min(distinct.Row(i), uint64(n.Row(i))) // as edge says it
			}
			return nil
		},
	})
	r.took = time.Since(began)
	return r, err
}

// timings are the three ways asked in turns.
type timings struct {
	edge, bare, raw []float64 // ms
	toBare, toRaw   []float64
	wrong           int // answers of ours that differ from those of the raw rows
}

// compare asks for windows of length span in turns until d is over; the raw rows only as
// often as slow answers allow.
func (a *asker) compare(d time.Duration, data *queryData, span time.Duration, group string) (*timings, error) {
	t := new(timings)
	deadline := time.Now().Add(d)
	var slow time.Duration
	for i := 0; i < 5 || time.Now().Before(deadline); i++ {
		from, to := data.window(span)
		x, err1 := a.bare(from, to, group)
		y, err2 := a.edge(from, to, group)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		bare, ours := float64(x.took)/1e6, float64(y.took)/1e6
		t.bare, t.edge, t.toBare = append(t.bare, bare), append(t.edge, ours), append(t.toBare, ours/bare)
		if slow < d/3 {
			z, err := a.raw(from, to, group)
			if err != nil {
				return nil, err
			}
			if y.total != z.total || y.users != z.users {
				t.wrong++
			}
			slow += z.took
			t.raw, t.toRaw = append(t.raw, float64(z.took)/1e6), append(t.toRaw, ours/(float64(z.took)/1e6))
		}
	}
	return t, nil
}

// alone asks edge and nobody else: after a scan of millions of rows the processor's caches
// are not those that a screen meets.
func (a *asker) alone(d time.Duration, data *queryData, span time.Duration, group string) (ms []float64, err error) {
	deadline := time.Now().Add(d)
	for i := 0; i < 5 || time.Now().Before(deadline); i++ {
		from, to := data.window(span)
		r, err := a.edge(from, to, group)
		if err != nil {
			return nil, err
		}
		ms = append(ms, float64(r.took)/1e6)
	}
	return ms, nil
}
