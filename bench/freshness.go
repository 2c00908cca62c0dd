//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"edge/bench/load"
	"edge/internal/clickhouse"
)

// freshnessStage is how long after its POST an event is in the answers, for
// every one of a thousand events a second.
//
// Nothing is asked per event, and nothing while there is nothing new: asking takes a
// part of the cores that the answer is about. When the parts of an insert are in
// the directories of its tables, rows and rollups, the server is asked whether it reads
// them (is active), and how many rows it has. The topic has one partition, so the row with
// offset o is there when they exceed o; and after the run the table says which
// offset each event_id got. An event is visible at the first answer that says so.
func freshnessStage(b *bench, s *section, f *fleet) error {
	const rate = 1000
	s.Title = "POST to visible, 1,000 single events/s"
	srv, err := f.whole()
	if err != nil {
		return err
	}
	pool, err := f.pool(srv.sql, database)
	if err != nil {
		return err
	}
	g := newGenerated(6)
	g.withID = true
	requests := g.singles(256)
	schedule := load.Constant(rate, 2*b.o.long)
	total := schedule.Total()
	posted := make([]time.Time, total) // intended times, by number
	w, err := watchVisible(b.ctx, pool)
	if err != nil {
		return err
	}
	res, err := load.Run(b.ctx, load.Load{Addr: srv.addr, Conns: fewConns, Requests: requests, Events: 1, Schedule: schedule,
		Stamp:    func(n int64, buf []byte) { copy(buf[len(buf)-14:], fmt.Sprintf("%012d", n)) },
		Answered: func(n int64, intended time.Time, status int) { posted[n] = intended }})
	if err == nil {
		_, _, err = awaitCount(b.ctx, func() (int64, error) { return w.rows.Load(), nil }, res.Accepted, 30*time.Second)
	}
	sights, ended := w.end()
	if err = errors.Join(err, ended); err != nil {
		return err
	}
	offsets, err := offsetsByID(b.ctx, pool)
	if err != nil {
		return err
	}
	var seen load.Histogram
	for id, offset := range offsets {
		for _, v := range sights { // few: one for each insert
			if v.rows > offset {
				seen.Add(v.at.Sub(posted[id]))
				break
			}
		}
	}
	e, err := storedEntry("freshness", pool, 0, res.Accepted, res.Doubtful)
	e.Where = byID
	if err == nil && seen.Count() != uint64(e.Found) {
		object(&e, fmt.Sprintf("%d events were seen to appear", seen.Count()))
	}
	s.Book = append(s.Book, e)
	inserts := math.Round(10*insertRate(sights)) / 10 // as it is printed: the first and the last are seen a few ms early or late
	t := table{Header: []string{"events", "POST answered p50 ms", "p99", "visible p50 ms", "p99", "p99.9", "max", "inserts/s per table"}}
	t.row(res.Accepted, millis(res.Latency.Quantile(0.5)), millis(res.Latency.Quantile(0.99)), millis(seen.Quantile(0.5)), millis(seen.Quantile(0.99)),
		millis(seen.Quantile(0.999)), millis(seen.Max()), fmt.Sprintf("%.1f", inserts))
	s.Tables = append(s.Tables, t)
	p50, p99 := seen.Quantile(0.5), seen.Quantile(0.99)
	s.number("freshness_p50_ms", float64(p50)/1e6)
	s.number("freshness_p99_ms", float64(p99)/1e6)
	s.goal(goal{What: "freshness at 1,000 events/s", Must: "p50 ≤ 80 ms, p99 ≤ 250 ms, ≤ 10 inserts/s per table", Stretch: "p50 ≤ 30 ms, p99 ≤ 100 ms",
		Measured: fmt.Sprintf("p50 %s ms, p99 %s ms, %.1f inserts/s", millis(p50), millis(p99), inserts),
		Verdict: verdict(p50 <= 80*time.Millisecond && p99 <= 250*time.Millisecond && inserts <= 10,
			p50 <= 30*time.Millisecond && p99 <= 100*time.Millisecond)})
	return err
}

// insertRate is inserts per second: between the first and the last of n lie n-1 pauses.
func insertRate(sights []sight) float64 {
	if len(sights) < 2 {
		return 0
	}
	return float64(len(sights)-1) / sights[len(sights)-1].at.Sub(sights[0].at).Seconds()
}

// partDirectories is where the parts of tables of pool's database lie, by table.
func partDirectories(ctx context.Context, pool *clickhouse.Pool, tables ...string) (map[string]string, error) {
	out := make(map[string]string)
	for _, table := range tables {
		paths, err := pool.Strings(ctx, "SELECT arrayJoin(data_paths) AS s FROM system.tables WHERE database = currentDatabase() AND name = "+clickhouse.Quote(table))
		if err != nil {
			return nil, err
		}
		if len(paths) != 1 {
			return nil, fmt.Errorf("table %s has the directories %q; want one", table, paths)
		}
		out[table] = paths[0]
	}
	return out, nil
}

// sight is a moment at which so many rows were visible.
type sight struct {
	at   time.Time
	rows int64
}

// visibleWatch notes when rows are visible, one sight for each insert.
type visibleWatch struct {
	rows   atomic.Int64 // of the last sight
	sights []sight
	cancel context.CancelFunc
	ended  chan error
}

// watchVisible watches events and its rollups until end.
func watchVisible(ctx context.Context, pool *clickhouse.Pool) (*visibleWatch, error) {
	directories, err := partDirectories(ctx, pool, "events", "events_1m", "events_users")
	if err != nil {
		return nil, err
	}
	parts, err := watchParts(directories)
	if err != nil {
		return nil, err
	}
	watching, cancel := context.WithCancel(ctx)
	w := &visibleWatch{cancel: cancel, ended: make(chan error, 1)}
	go func() {
		defer parts.close()
		w.ended <- parts.each(watching, func(made []part) (bool, error) {
			rows, err := rowsUpTo(ctx, pool, made)
			if rows == 0 || err != nil {
				return false, err
			}
			w.sights = append(w.sights, sight{time.Now(), rows})
			w.rows.Store(rows)
			return true, nil
		})
	}()
	return w, nil
}

func (w *visibleWatch) end() ([]sight, error) {
	w.cancel()
	err := <-w.ended
	return w.sights, err
}

// rowsUpTo is how many rows events has up to the insert that made those parts, one of
// events and one of each rollup; 0 while a query would not read all of them, or what they
// have been merged into.
func rowsUpTo(ctx context.Context, pool *clickhouse.Pool, made []part) (total int64, err error) {
	var table, name proto.ColStr
	var rows proto.ColUInt64
	missing := slices.Clone(made)
	err = pool.Do(ctx, ch.Query{
		// Counted here: for a query that counts the server takes twice as long.
		Body:   "SELECT table, name, rows FROM system.parts WHERE active AND database = currentDatabase()",
		Result: proto.Results{{Name: "table", Data: &table}, {Name: "name", Data: &name}, {Name: "rows", Data: &rows}},
		OnResult: func(context.Context, proto.Block) error {
			for i, n := range rows {
				p, _ := parsePart(table.Row(i), name.Row(i))
				missing = slices.DeleteFunc(missing, p.covers)
				if p.table == "events" && slices.ContainsFunc(made, p.upTo) {
					total += int64(n)
				}
			}
			return nil
		},
	})
	if len(missing) > 0 {
		return 0, err
	}
	return total, err
}

// offsetsByID is where each event lies in the log, by the number in its event_id.
func offsetsByID(ctx context.Context, pool *clickhouse.Pool) (map[int64]int64, error) {
	var id proto.ColUUID
	var offset proto.ColUInt64
	out := make(map[int64]int64)
	err := pool.Do(ctx, ch.Query{
		Body:   "SELECT event_id, _offset FROM events",
		Result: proto.Results{{Name: "event_id", Data: &id}, {Name: "_offset", Data: &offset}},
		OnResult: func(context.Context, proto.Block) error {
			for i, o := range offset {
				var n int64
				if _, err := fmt.Sscan(trimZeros(id[i].String()[24:]), &n); err != nil {
					return err
				}
				out[n] = int64(o)
			}
			return nil
		},
	})
	return out, err
}

// trimZeros keeps Sscan from reading an octal number.
func trimZeros(s string) string {
	for len(s) > 1 && s[0] == '0' {
		s = s[1:]
	}
	return s
}
