//go:build linux

package main

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"edge/bench/chart"
	"edge/bench/ledger"
	"edge/bench/load"
	"edge/internal/clickhouse"
)

// years of events that queries look at, up to the last whole hour.
const years = 3

// queryData is a table that grows, spread evenly over the years. Of its hundred
// thousand users the busiest tenth makes nearly half of the events.
type queryData struct {
	pool *clickhouse.Pool
	from time.Time
	to   time.Time
	rows int64

	windows int64 // that were asked for
}

// grow adds rows until there are n, a million a statement. Those of one call are spread
// over the years and come in the order of their time, as events do. Each goes through
// the views like any insert.
func (q *queryData) grow(ctx context.Context, n int64) error {
	from, span, have := q.from.Unix(), q.to.Unix()-q.from.Unix(), q.rows
	at := func(rows int64) int64 { return from + span*(rows-have)/(n-have) }
	for q.rows < n {
		add := min(n-q.rows, 1_000_000)
		err := q.pool.Exec(ctx, fmt.Sprintf(`INSERT INTO events (ts, event_name, channel, campaign_id, user_id, metadata, received_at)
			SELECT toDateTime64(%d + intDiv(number * %d, %d), 3, 'UTC') AS t, ['product_view', 'add_to_cart', 'checkout'][1 + rand(1) %% 3],
			['web', 'mobile', 'api', 'email', 'push'][1 + rand(2) %% 5], 'c' || toString(rand(3) %% 40), 'user_' || toString(toUInt32(pow(rand(4) / 4294967296, 3) * 100000)),
			'{"product_id":"SKU-' || toString(rand(5) %% 10000) || '"}', t FROM numbers(%d)
			SETTINGS max_insert_block_size = 1000000, max_partitions_per_insert_block = 0`, at(q.rows), at(q.rows+add)-at(q.rows), add, add))
		if err != nil {
			return fmt.Errorf("lay down %d events: %w", add, err)
		}
		q.rows += add
	}
	return nil
}

// merge puts the rollups into the state that time would, their parts merged.
func (q *queryData) merge(ctx context.Context) error {
	for _, t := range []string{"events_1m", "events_users"} {
		if err := q.pool.Exec(ctx, "OPTIMIZE TABLE "+t+" FINAL"); err != nil {
			return fmt.Errorf("merge %s: %w", t, err)
		}
	}
	return settle(ctx, q.pool, 10*time.Minute)
}

// newer is how many events after those laid down are stored and counted in every
// rollup. To look at all of them again and again would cost more than the new ones.
func (q *queryData) newer() (int64, error) {
	sql := fmt.Sprintf("SELECT toInt64(count()) FROM events WHERE ts >= %d", q.to.Unix())
	for _, rollup := range []string{"events_1m WHERE m", "events_users WHERE by_channel = 0 AND width = 300 AND at", "events_users WHERE by_channel = 1 AND width = 300 AND at"} {
		sql += fmt.Sprintf("), (SELECT sum(n) FROM %s >= %d", rollup, q.to.Unix())
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return number(ctx, q.pool, "SELECT assumeNotNull(least(("+sql+"))) AS n")
}

// window is the next of time ranges as a screen asks for that is looked at for a while:
// each is a few seconds from the one before, and starts and ends on no boundary of any
// bucket, as a rule. None was asked for before. The first ends a little before the newest
// event that was laid down.
func (q *queryData) window(d time.Duration) (from, to int64) {
	to = q.to.Unix() - 1543 - 7*q.windows
	q.windows++
	return max(to-int64(d.Seconds()), q.from.Unix()+7), to
}

func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(v))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// queryStage is GET /metrics beside the least a rollup query can be and a program that
// reads the rows, and how its cost, and that of an event, grows with what is stored and
// with the length of the range.
func queryStage(b *bench, s *section, f *fleet) error {
	s.Title = fmt.Sprintf("GET /metrics, and an event's cost, up to %s events over %d years stored", count(float64(b.o.events)), years)
	srv, err := f.whole(steadyBatches)
	if err != nil {
		return err
	}
	t, err := f.everything("edge", srv)
	if err != nil {
		return err
	}
	pool, err := f.pool(srv.sql, database)
	if err != nil {
		return err
	}
	end := time.Now().UTC().Truncate(time.Hour).Add(-time.Hour)
	data := &queryData{pool: pool, from: end.AddDate(-years, 0, 0), to: end}
	t.count = data.newer
	peer, err := f.rival("naive-query", srv.sql, database)
	if err != nil {
		return err
	}
	a := &asker{ctx: b.ctx, edge: srv.addr, naive: peer.addr, pool: pool}
	http.DefaultTransport.(*http.Transport).MaxIdleConnsPerHost = 4
	month := 30 * 24 * time.Hour
	answers := table{Header: []string{"stored", "range", "group by", "edge p50 ms", "p99", "bare rollup p50", "naive p50", "edge/bare", "edge/naive", "asked", "compared", "wrong"}}
	var byStored [3][]chart.Point
	incoming := bulks(newGenerated(11), b.o.long/3)
	if _, err := b.measure(t, incoming); err != nil { // warm
		return err
	}
	costs := newGrown("events stored")
	var toBareByStored []string
	for _, n := range levels(b.o.events) {
		if err := data.grow(b.ctx, n); err != nil {
			return err
		}
		if err := settle(b.ctx, pool, 10*time.Minute); err != nil {
			return err
		}
		// A moment in which the machine is busy must not look like growth.
		cost, err := b.repeated(b.o.rounds, t, incoming)
		if err != nil {
			return err
		}
		costs.add(int(n), cost)
		if err := data.merge(b.ctx); err != nil {
			return err
		}
		m, err := a.compare(b.o.long/3, data, month, "")
		if err != nil {
			return err
		}
		s.timings(&answers, data.rows, "30 days", "", m, &byStored, float64(n))
		toBareByStored = append(toBareByStored, fmt.Sprintf("%s %.2fx", count(float64(n)), median(m.toBare)))
	}
	s.steady("here")
	s.note("the engine's share of an event includes the merges while the events come, and none after")
	costs.finish(s, "stored", "events stored", flat)
	// The ratio is of the run in turns, where each answer has the bare query's beside it. The
	// milliseconds are of the run in which edge is asked alone: no screen reads the raw
	// rows before each of its questions.
	inTurns, alone := make(map[string]*timings), make(map[string][]float64)
	for _, group := range []string{"", "channel"} {
		if inTurns[group], err = a.compare(b.o.long, data, month, group); err != nil {
			return err
		}
		s.timings(&answers, data.rows, "30 days", group, inTurns[group], nil, 0)
		if alone[group], err = a.alone(b.o.long, data, month, group); err != nil {
			return err
		}
	}
	s.note("naive is net/http and clickhouse-go: count and users of the rows, in one statement")
	s.note("30 days of all channels beside the bare rollup query, by events stored: %s", strings.Join(toBareByStored, ", "))
	queries := func(name string, more ...string) (*server, error) {
		return f.edge(name, append(append((&engine{addr: srv.sql}).settings(database), "ROLES=query"), more...)...)
	}
	unkept, err := queries("query-unkept", "QUERY_STATES=0")
	if err != nil {
		return err
	}
	cold, err := (&asker{ctx: b.ctx, edge: unkept.addr, naive: peer.addr, pool: pool}).compare(b.o.long/3, data, month, "channel")
	if err != nil {
		return err
	}
	s.timings(&answers, data.rows, "30 days, QUERY_STATES=0", "channel", cold, nil, 0)
	var byRange [3][]chart.Point
	ranges := []span{{"1 minute", time.Minute}, {"1 hour", time.Hour}, {"1 day", 24 * time.Hour}, {"1 week", 7 * 24 * time.Hour}, {"30 days", month}, {"1 year", 365 * 24 * time.Hour}, {"3 years", years * 365 * 24 * time.Hour}}
	if b.o.quick {
		ranges = []span{ranges[0], ranges[2], ranges[6]}
	}
	for _, d := range ranges {
		m, err := a.compare(b.o.long/5, data, d.d, "")
		if err != nil {
			return err
		}
		s.timings(&answers, data.rows, d.name, "", m, &byRange, d.d.Seconds())
	}
	s.Tables = append(s.Tables, answers)
	lines := func(p [3][]chart.Point) []chart.Line {
		return []chart.Line{{Label: "edge", Points: p[0]}, {Label: "bare rollup", Points: p[1]}, {Label: "naive, raw rows", Points: p[2]}}
	}
	s.Charts = append(s.Charts,
		chart.Chart{Name: "query-stored", Title: "Median answer over 30 days, by events stored", X: chart.Axis{Label: "events stored", Log: true}, Y: chart.Axis{Label: "ms", Log: true}, Lines: lines(byStored)},
		chart.Chart{Name: "query-range", Title: "Median answer, by length of the range", X: chart.Axis{Label: "seconds asked for", Log: true}, Y: chart.Axis{Label: "ms", Log: true}, Lines: lines(byRange)})
	if _, err := b.askers(s, "no answer older than its question", srv, data); err != nil {
		return err
	}
	kept, err := queries("query-kept", "QUERY_KEEP=1s")
	if err != nil {
		return err
	}
	requests, err := b.askers(s, "QUERY_KEEP=1s", kept, data)
	if err != nil {
		return err
	}
	s.number("query_p50_ms", median(alone["channel"]))
	both := func(ms []float64) string {
		return fmt.Sprintf("p50 %.2f ms, p99 %.2f ms", median(ms), quantile(ms, 0.99))
	}
	const must, stretch = "in turns p50 ≤ 1.4x the bare rollup query, alone p99 ≤ 10 ms", "≤ 1.1x; > 70 k requests/s from a cache of ≤ 1 s"
	toDay := byRange[0][len(ranges)-1].Y / byRange[0][min(2, len(ranges)-2)].Y
	for _, group := range []string{"channel", ""} {
		toBare := median(inTurns[group].toBare)
		met := toBare <= 1.4 && quantile(alone[group], 0.99) <= 10
		what, must := "by channel", must
		if group == "" { // only these are asked for ranges of all lengths
			what, must, met = "all channels together", must+"; 3 years ≤ 1.4x a day", met && toDay <= 1.4
		}
		g := goal{What: fmt.Sprintf("GET /metrics, %s events stored, 30 days, %s", count(float64(data.rows)), what), Must: must, Stretch: stretch,
			Measured: fmt.Sprintf("alone %s (%d answers); in turns with the bare query and naive %s", both(alone[group]), len(alone[group]), both(inTurns[group].edge)),
			Ratio:    fmt.Sprintf("in turns %.2fx the bare rollup query, %.3fx naive", toBare, median(inTurns[group].toNaive)),
			Verdict:  verdict(met, toBare <= 1.1 && requests > 70_000)}
		if group == "channel" {
			g.Measured += fmt.Sprintf(", with QUERY_STATES=0 %s; %s requests/s with QUERY_KEEP=1s", both(cold.edge), count(requests))
			g.Ratio += fmt.Sprintf(" (%.2fx with QUERY_STATES=0)", median(cold.toBare))
		} else {
			g.Ratio += fmt.Sprintf("; 3 years %.2fx a day", toDay)
		}
		s.goal(g)
	}
	return nil
}

// span is a length of time with a name.
type span struct {
	name string
	d    time.Duration
}

// levels are 1 M, 3 M, 10 M and so on, up to n; below a million, n alone.
func levels(n int64) (out []int64) {
	for at := int64(1_000_000); at < n; {
		out = append(out, at)
		if at/1_000_000%3 == 0 {
			at = at / 3 * 10
		} else {
			at *= 3
		}
	}
	return append(out, n)
}

// timings adds a row and, if asked, a point to each line; and to the book that
// every answer was what naive says, if it was asked.
func (s *section) timings(t *table, rows int64, span, group string, m *timings, to *[3][]chart.Point, x float64) {
	t.row(count(float64(rows)), span, group, fmt.Sprintf("%.2f", median(m.edge)), fmt.Sprintf("%.2f", quantile(m.edge, 0.99)), fmt.Sprintf("%.2f", median(m.bare)),
		fmt.Sprintf("%.2f", median(m.naive)), ratio(median(m.toBare)), fmt.Sprintf("%.3f", median(m.toNaive)), len(m.edge), len(m.naive), m.wrong)
	s.Book = append(s.Book, ledger.Entry{What: "query " + span + " " + group, Where: "answers equal to those from raw rows", Promised: int64(len(m.naive)), Found: int64(len(m.naive) - m.wrong), Beside: questions})
	if to != nil {
		to[0] = append(to[0], chart.Point{X: x, Y: median(m.edge)})
		to[1] = append(to[1], chart.Point{X: x, Y: median(m.bare)})
		to[2] = append(to[2], chart.Point{X: x, Y: median(m.naive)})
	}
}

// askers is how many dashboards can be answered that ask the same at once: what is refused
// is quick, and no answer.
func (b *bench) askers(s *section, how string, srv *server, data *queryData) (float64, error) {
	from, to := data.window(30 * 24 * time.Hour)
	res, err := load.Run(b.ctx, load.Load{Addr: srv.addr, Conns: 32, Duration: b.o.one,
		Requests: [][]byte{load.Get("edge", fmt.Sprintf("/metrics?event_name=product_view&from=%d&to=%d&group_by=channel", from, to))}})
	if err != nil {
		return 0, err
	}
	answered := float64(res.Status[http.StatusOK]) / res.Elapsed.Seconds()
	s.note("32 connections asking for 30 days by channel, %s: %s answers/s, p50 %s ms, p99 %s ms, %d not 200", how, count(answered),
		millis(res.Latency.Quantile(0.5)), millis(res.Latency.Quantile(0.99)), res.Refused()+res.Unknown)
	return answered, nil
}
