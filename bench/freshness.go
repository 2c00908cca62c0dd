//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"edge/bench/load"
	"edge/internal/clickhouse"
)

// freshnessStage is how long after its POST an event is in the answers, for
// every one of a thousand events a second.
//
// Nothing is asked per event. One connection counts the rows every four
// milliseconds and, while there are rows that it has not seen everywhere, what
// each rollup table has of them in its fewest cells: one insert is one part of a
// table, so all buckets of it appear at once, and asking takes a part of the
// cores that the answer is about. The
// topic has one partition, so the row with offset o is there when the count
// exceeds o; and after the run the table says which offset each event_id got. An
// event is visible when rows and rollups have it, at the first count that shows it.
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
	before, err := srv.metrics()
	if err != nil {
		return err
	}
	g := newGenerated(6)
	g.withID = true
	requests := g.singles(256)
	schedule := load.Constant(rate, 2*b.o.long)
	total := schedule.Total()
	posted := make([]time.Time, total) // intended times, by number
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	type sight struct {
		at time.Time
		n  int64
	}
	var sights []sight
	watched := make(chan error, 1)
	go func() {
		seen := int64(-1)
		watched <- poll(ctx, 4*time.Millisecond, func() error {
			least := int64(math.MaxInt64)
			for _, of := range []string{"toInt64(count()) AS n FROM events", "sum(n) AS n FROM events_1m",
				"sum(events_users.n) AS n FROM events_users WHERE by_channel = 0 AND width = 22118400"} {
				n, err := number(b.ctx, pool, "SELECT "+of)
				if err != nil {
					return err
				}
				if least = min(least, n); least == seen {
					return nil
				}
			}
			seen = least
			sights = append(sights, sight{time.Now(), least})
			return nil
		})
	}()
	res, err := load.Run(b.ctx, load.Load{Addr: srv.addr, Conns: fewConns, Requests: requests, Events: 1, Schedule: schedule,
		Stamp:    func(n int64, buf []byte) { copy(buf[len(buf)-14:], fmt.Sprintf("%012d", n)) },
		Answered: func(n int64, intended time.Time, status int) { posted[n] = intended }})
	if err == nil {
		_, err = awaitCount(b.ctx, storedCount(pool), res.Accepted, 30*time.Second)
	}
	<-time.After(10 * time.Millisecond) // the watcher sees the last count too
	cancel()
	if err = errors.Join(err, <-watched); err != nil {
		return err
	}
	offsets, err := offsetsByID(b.ctx, pool)
	if err != nil {
		return err
	}
	var seen load.Histogram
	for id, offset := range offsets {
		for _, v := range sights { // few: one for each insert
			if v.n > offset {
				seen.Add(v.at.Sub(posted[id]))
				break
			}
		}
	}
	after, err := srv.metrics()
	if err != nil {
		return err
	}
	e, err := storedEntry("freshness", pool, 0, res.Accepted, res.Doubtful)
	if err == nil && seen.Count() != uint64(e.Found) {
		verified(&e, []string{fmt.Sprintf("%d events were seen to appear", seen.Count())})
	}
	s.Book = append(s.Book, e)
	inserts := (after["edge_sink_batches_total"] - before["edge_sink_batches_total"]) / res.Elapsed.Seconds()
	t := table{Header: []string{"events", "POST answered p50 ms", "p99", "visible p50 ms", "p99", "p99.9", "max", "inserts/s per table"}}
	t.row(res.Accepted, millis(res.Latency.Quantile(0.5)), millis(res.Latency.Quantile(0.99)), millis(seen.Quantile(0.5)), millis(seen.Quantile(0.99)),
		millis(seen.Quantile(0.999)), millis(seen.Max()), fmt.Sprintf("%.1f", inserts))
	s.Tables = append(s.Tables, t)
	p50, p99 := seen.Quantile(0.5), seen.Quantile(0.99)
	s.number("freshness_p50_ms", float64(p50)/1e6)
	s.number("freshness_p99_ms", float64(p99)/1e6)
	s.goal(goal{What: "freshness at 1,000 events/s", Must: "p50 ≤ 80 ms, p99 ≤ 250 ms, ≤ 10 inserts/s per table", Stretch: "p50 ≤ 30 ms, p99 ≤ 100 ms",
		Measured: fmt.Sprintf("p50 %s ms, p99 %s ms, %.1f inserts/s", millis(p50), millis(p99), inserts),
		Verdict: verdict(p50 <= 80*time.Millisecond && p99 <= 250*time.Millisecond && inserts <= 10.5,
			p50 <= 30*time.Millisecond && p99 <= 100*time.Millisecond)})
	return err
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
