//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/twmb/franz-go/pkg/kgo"

	"edge/bench/ledger"
	"edge/bench/load"
	"edge/internal/clickhouse"
)

// freshnessStage is how long after its POST an event is in the answers, for
// every one of a thousand events a second.
//
// Nothing is asked per event, and nothing while there is nothing new: asking takes a
// part of the cores that the answer is about. When the parts of an insert are in
// the directories of its tables, rows and rollups, the server is asked whether it reads
// them (is active), and how many rows it has. The topic has one partition, which is stored
// in its order, so the record with offset o is there when they exceed o; and after the run
// the log says which offset each event got. An event is visible at the first answer that
// says so.
func freshnessStage(b *bench, s *section, f *fleet) error {
	s.Title = fmt.Sprintf("POST to visible, %.0f single events/s", freshRate)
	ours, err := f.ourSystem("edge")
	if err != nil {
		return err
	}
	peer, err := f.naiveSystem()
	if err != nil {
		return err
	}
	limit, blocks, err := b.freshest(f)
	if err != nil {
		return err
	}
	offers := map[*system]offer{limit: blocks, ours: b.posts, peer: b.posts}
	all := []*system{limit, ours, peer}
	runs := make(map[*system][]fresh)
	for round := range b.o.rounds {
		for _, sys := range all {
			r, err := b.fresh(s, sys, round, offers[sys])
			if err != nil {
				return err
			}
			if sys == ours || r.entry.OK() { // one of ours that is not voids the stage
				runs[sys] = append(runs[sys], r)
			}
		}
	}
	t := table{Title: fmt.Sprintf("medians of runs in turns, %d of ours and %d of the peer's", len(runs[ours]), len(runs[peer])),
		Header: []string{"", "POST answered p50 ms", "p99", "visible p50 ms", "p99", "p99.9", "max", "inserts/s per table"}}
	column := func(sys *system, get func(*fresh) float64) []float64 {
		var v []float64
		for i := range runs[sys] {
			v = append(v, get(&runs[sys][i]))
		}
		return v
	}
	at := func(q float64) func(*fresh) float64 {
		return func(r *fresh) float64 { return float64(r.seen.Quantile(q)) / 1e6 }
	}
	inserts := func(r *fresh) float64 { return r.inserts }
	for _, sys := range all {
		cells := []any{sys.name}
		for _, get := range []func(*fresh) float64{
			func(r *fresh) float64 { return float64(r.answered.Quantile(0.5)) / 1e6 }, func(r *fresh) float64 { return float64(r.answered.Quantile(0.99)) / 1e6 },
			at(0.5), at(0.99), at(0.999), at(1), inserts,
		} {
			switch v := median(column(sys, get)); {
			case len(runs[sys]) == 0:
				cells = append(cells, noPair)
			case v == 0: // nobody asked and was answered
				cells = append(cells, "")
			default:
				cells = append(cells, fmt.Sprintf("%.1f", v))
			}
		}
		t.row(cells...)
	}
	s.Tables = append(s.Tables, t)
	var refused int64 // what is not taken is not late
	for _, r := range runs[ours] {
		refused += r.refused
	}
	p50, p99, rate := column(ours, at(0.5)), column(ours, at(0.99)), median(column(ours, inserts))
	s.number("freshness_p50_ms", median(p50))
	s.number("freshness_p99_ms", median(p99))
	s.goal(goal{What: "freshness at 1,000 events/s", Must: "p50 ≤ 80 ms, p99 ≤ 250 ms, ≤ 10 inserts/s per table, 0 errors", Stretch: "p50 ≤ 30 ms, p99 ≤ 100 ms",
		Measured: fmt.Sprintf("p50 %.0f (%.0f to %.0f) ms, p99 %.0f (%.0f to %.0f) ms, %.1f inserts/s, %d errors", median(p50), slices.Min(p50), slices.Max(p50), median(p99), slices.Min(p99), slices.Max(p99), rate, refused),
		Ratio: fmt.Sprintf("ready blocks, one each 100 ms, p50 %s, p99 %s; naive async and its sink, whose batch is a second, p50 %s, p99 %s",
			cell("%.0f ms", median(column(limit, at(0.5)))), cell("%.0f ms", median(column(limit, at(0.99)))),
			cell("%.0f ms", median(column(peer, at(0.5)))), cell("%.0f ms", median(column(peer, at(0.99))))),
		Verdict: verdict(median(p50) <= 80 && median(p99) <= 250 && rate <= 10 && refused == 0, median(p50) <= 30 && median(p99) <= 100)})
	return nil
}

const freshRate = 1000.0 // events a second

// fresh is one run.
type fresh struct {
	answered, seen load.Histogram
	inserts        float64 // a second, of each table
	refused        int64   // as of a sample
	entry          ledger.Entry
}

// offer brings a system the events of a round, before which it has stored so many. Once
// all are visible, born says when each was due, by the rows that were stored before it.
type offer func(sys *system, round int, before int64) (res *load.Result, born func() (map[int64]time.Time, error), err error)

// fresh measures one round of sys.
func (b *bench) fresh(s *section, sys *system, round int, events offer) (r fresh, err error) {
	before, err := sys.count()
	if err != nil {
		return r, err
	}
	w, err := watchVisible(b.ctx, sys.pool)
	if err != nil {
		return r, err
	}
	res, born, err := events(sys, round, before)
	if err == nil {
		_, _, err = awaitCount(b.ctx, func() (int64, error) { return w.rows.Load(), nil }, before+res.Accepted, 30*time.Second)
	}
	sights, ended := w.end()
	if err = errors.Join(err, ended); err != nil {
		return r, err
	}
	due, err := born()
	if err != nil {
		return r, err
	}
	for row, at := range due {
		for _, v := range sights { // few: one for each insert
			if v.rows > row {
				r.seen.Add(v.at.Sub(at))
				break
			}
		}
	}
	e, err := storedEntry("freshness, "+sys.name, sys.pool, before, res.Accepted, res.Doubtful)
	if err != nil {
		return r, err
	}
	if e.Where = byOffset; r.seen.Count() != uint64(e.Found) {
		object(&e, fmt.Sprintf("%d events were seen to appear", r.seen.Count()))
	}
	r.entry, r.answered, r.refused = e, res.Latency, res.Failed()
	r.inserts = math.Round(10*insertRate(sights)) / 10 // as it is printed: the first and the last are seen a few ms early or late
	s.take(sample{Target: sys.name, Events: res.Accepted, PerSecond: res.PerSecond(), P50: r.seen.Quantile(0.5), P99: r.seen.Quantile(0.99), P999: r.seen.Quantile(0.999), Refused: r.refused, Entry: e}, sys.beside)
	return r, nil
}

// posts is an offer over HTTP; a round has events that no other one has.
func (b *bench) posts(sys *system, round int, before int64) (*load.Result, func() (map[int64]time.Time, error), error) {
	g := newGenerated(6)
	g.withID, g.numbered = true, true
	requests := g.singles(256)
	schedule := load.Constant(freshRate, b.o.long)
	total := schedule.Total()
	base := int64(round) * total
	posted := make([]time.Time, total) // intended times, by number
	res, err := load.Run(b.ctx, load.Load{Addr: sys.addr, Conns: fewConns, Requests: requests, Events: 1, Schedule: schedule,
		Stamp: func(n int64, buf []byte) {
			number := fmt.Sprintf("%0*d", userDigits, base+n)
			copy(buf[len(buf)-len(number)-2:], number) // of the event_id
			copy(buf[bytes.Index(buf, []byte(userField))+len(userField):], number)
		},
		Answered: func(n int64, intended time.Time, status int) { posted[n] = intended }})
	return res, func() (map[int64]time.Time, error) {
		offsets, err := offsetsInLog(b.ctx, sys.kafka, before+res.Accepted)
		due := make(map[int64]time.Time)
		for number, offset := range offsets {
			if number >= base { // not of an earlier round
				due[offset] = posted[number-base]
			}
		}
		return due, err
	}, err
}

// freshest is the limit: ClickHouse alone, and the events of every tenth of a second in a
// block that is ready when it is over. Nothing that makes ten inserts a second shows its
// events sooner.
func (b *bench) freshest(f *fleet) (*system, offer, error) {
	const pause = 100 * time.Millisecond
	eng, err := f.engine()
	if err != nil {
		return nil, nil, err
	}
	if err := f.migrate(eng, database); err != nil {
		return nil, nil, err
	}
	pool, err := f.pool(eng.addr, database)
	if err != nil {
		return nil, nil, err
	}
	g := newGenerated(6)
	g.withID = true
	_, block, err := b.filledTopic(f, g, int64(freshRate*pause.Seconds()))
	if err != nil {
		return nil, nil, err
	}
	input, err := block.Input()
	if err != nil {
		return nil, nil, err
	}
	conn, err := pool.Dial(b.ctx)
	if err != nil {
		return nil, nil, err
	}
	f.atEnd(conn.Close)
	sys := &system{target: &target{name: "limit: ready blocks", pool: pool, count: storedCount(pool), where: inTables, beside: rivals}}
	return sys, func(_ *system, _ int, before int64) (*load.Result, func() (map[int64]time.Time, error), error) {
		res := &load.Result{Began: time.Now()}
		due := make(map[int64]time.Time)
		for n := 1; n <= int(b.o.long/pause); n++ {
			over := res.Began.Add(time.Duration(n) * pause)
			for i := range block.Rows() {
				due[before+res.Accepted+int64(i)] = over.Add(-pause + time.Duration(i)*pause/time.Duration(block.Rows()))
			}
			select {
			case <-b.ctx.Done():
				return nil, nil, b.ctx.Err()
			case <-time.After(time.Until(over)):
			}
			if err := conn.Do(b.ctx, ch.Query{Body: input.Into("events"), Input: input}); err != nil {
				return nil, nil, fmt.Errorf("insert a ready block: %w", err)
			}
			res.Accepted += int64(block.Rows())
		}
		res.Elapsed = time.Since(res.Began)
		return res, func() (map[int64]time.Time, error) { return due, nil }, nil
	}, nil
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

const userField = `"user_id":"user_`

// offsetsInLog is where each of the n events in the log lies, by the number in its user.
func offsetsInLog(ctx context.Context, broker string, n int64) (map[int64]int64, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out := make(map[int64]int64)
	for read := int64(0); read < n; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("read the log, %d of %d records: %w", read, n, err)
		}
		for _, r := range fetches.Records() {
			_, rest, found := bytes.Cut(r.Value, []byte(userField))
			if !found || len(rest) < userDigits {
				return nil, fmt.Errorf("record %d has no number: %s", r.Offset, r.Value)
			}
			number, err := strconv.ParseInt(string(rest[:userDigits]), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("record %d: %w", r.Offset, err)
			}
			out[number] = r.Offset
			read++
		}
	}
	return out, nil
}
