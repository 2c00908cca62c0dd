//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"edge/internal/clickhouse"
)

// asker asks one question in the three ways.
type asker struct {
	ctx         context.Context
	edge, naive string // addresses
	pool        *clickhouse.Pool
}

type reply struct {
	total int64
	users uint64 // distinct in the range and in each group, added up
	took  time.Duration
}

// metrics is GET /metrics over a connection that stays open.
func metrics(addr string, from, to int64, group string) (reply, error) {
	began := time.Now()
	text, err := get(fmt.Sprintf("http://%s/metrics?event_name=product_view&from=%d&to=%d&group_by=%s", addr, from, to, group))
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
	r.total, r.users = answer.Total, answer.Users
	for _, g := range answer.Data {
		r.users += g.Users
	}
	return r, err
}

// bare is the one rollup query that answers about the same, from whole hours or
// whole days on: wrong at both ends, and as fast as who knows the tables can ask them.
func (a *asker) bare(from, to int64, group string) (reply, error) {
	byChannel, key, by := 0, "''", ""
	if group != "" {
		byChannel, key, by = 1, "CAST("+group+", 'String')", " GROUP BY g"
	}
	var n proto.ColInt64
	var users proto.ColUInt64
	var r reply
	began := time.Now()
	err := a.pool.Do(a.ctx, ch.Query{
		Body: fmt.Sprintf("SELECT sum(n) AS t, uniqCombined64Merge(14)(u) AS u, %s AS g FROM events_users WHERE event_name = 'product_view' AND by_channel = %d AND (%s)%s",
			key, byChannel, strings.Join(buckets(from, to), " OR "), by),
		Settings: asOurs,
		Result:   proto.Results{{Name: "t", Data: &n}, {Name: "u", Data: &users}, {Name: "g", Data: new(proto.ColStr)}},
		OnResult: func(_ context.Context, b proto.Block) error {
			for i := range b.Rows {
				r.total += n.Row(i)
				r.users += min(users.Row(i), uint64(n.Row(i))) // as edge says it
			}
			return nil
		},
	})
	r.took = time.Since(began)
	return r, err
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

// asOurs are the settings that make our queries fast.
var asOurs = []ch.Setting{
	{Key: "use_statistics", Value: "0"}, {Key: "optimize_use_projections", Value: "0"}, {Key: "optimize_use_implicit_projections", Value: "0"},
	{Key: "merge_tree_min_rows_for_concurrent_read", Value: "1"}, {Key: "merge_tree_min_bytes_for_concurrent_read", Value: "1"}, {Key: "merge_tree_min_read_task_size", Value: "2"},
}

// timings are the three ways asked in turns.
type timings struct {
	edge, bare, naive []float64 // ms
	toBare, toNaive   []float64
	wrong             int // answers of ours that differ from naive's
}

// compare asks for windows of length span in turns until d is over; naive, which reads
// rows, only as often as slow answers allow.
func (a *asker) compare(d time.Duration, data *queryData, span time.Duration, group string) (*timings, error) {
	t := new(timings)
	deadline := time.Now().Add(d)
	var slow time.Duration
	for i := 0; i < 5 || time.Now().Before(deadline); i++ {
		from, to := data.window(span)
		x, err1 := a.bare(from, to, group)
		y, err2 := metrics(a.edge, from, to, group)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		bare, ours := float64(x.took)/1e6, float64(y.took)/1e6
		t.bare, t.edge, t.toBare = append(t.bare, bare), append(t.edge, ours), append(t.toBare, ours/bare)
		if slow < d/3 {
			z, err := metrics(a.naive, from, to, group)
			if err != nil {
				return nil, err
			}
			if y.total != z.total || y.users != z.users {
				t.wrong++
			}
			slow += z.took
			t.naive, t.toNaive = append(t.naive, float64(z.took)/1e6), append(t.toNaive, ours/(float64(z.took)/1e6))
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
		r, err := metrics(a.edge, from, to, group)
		if err != nil {
			return nil, err
		}
		ms = append(ms, float64(r.took)/1e6)
	}
	return ms, nil
}
