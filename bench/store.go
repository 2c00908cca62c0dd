//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"edge/bench/child"
	"edge/bench/ledger"
	"edge/internal/clickhouse"
)

const database = "events_db"

// Where a promise was looked for, and how. A count cannot tell one event lost and another
// doubled; edge verify looks at every offset and at every cell of the rollups.
const (
	inLog    = "log, by count"
	inTables = "events and rollups, by count"
	byOffset = "events and rollups, by count and offset"
	byVerify = "events and rollups, by count and edge verify"
)

// rollups are the tables that count every event, and what of them counts it once.
var rollups = []struct{ name, of string }{
	{"events_1m", "events_1m"},
	{"events_users", "events_users WHERE by_channel = 0 AND width = 300"},
	{"events_users by channel", "events_users WHERE by_channel = 1 AND width = 1382400"},
}

// stored is what the tables hold: the rows, and what each rollup counts.
func stored(pool *clickhouse.Pool) (rows int64, counted []int64, err error) {
	sql := "SELECT toUInt8(0) AS i, toInt64(count()) AS n FROM events"
	for i, r := range rollups {
		sql += fmt.Sprintf(" UNION ALL SELECT toUInt8(%d) AS i, sum(n) AS n FROM %s", i+1, r.of)
	}
	var table proto.ColUInt8
	var n proto.ColInt64
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	all := make([]int64, 1+len(rollups))
	err = pool.Do(ctx, ch.Query{
		Body: sql, Result: proto.Results{{Name: "i", Data: &table}, {Name: "n", Data: &n}},
		OnResult: func(context.Context, proto.Block) error {
			for i, t := range table {
				all[t] = n[i]
			}
			return nil
		},
	})
	return all[0], all[1:], err
}

// storedCount is how many events are stored and counted in every rollup: the
// least of the numbers.
func storedCount(pool *clickhouse.Pool) func() (int64, error) {
	return func() (int64, error) {
		rows, counted, err := stored(pool)
		return min(rows, slices.Min(counted)), err
	}
}

// storedEntry is the ledger of a database: events and every rollup. Each must
// hold exactly what was promised on top of before.
func storedEntry(what string, pool *clickhouse.Pool, before, promised, doubtful int64) (ledger.Entry, error) {
	e := ledger.Entry{What: what, Where: inTables, Promised: promised, Doubtful: doubtful}
	rows, counted, err := stored(pool)
	if err != nil {
		return e, err
	}
	e.Found = rows - before
	for i, n := range counted {
		if n != rows {
			object(&e, fmt.Sprintf("%s counts %d, events has %d", rollups[i].name, n, rows))
		}
	}
	return e, nil
}

// everything is an edge with all inside as a target: its ledger is the tables.
func (f *fleet) everything(name string, s *server) (*target, error) {
	pool, err := f.pool(s.sql, database)
	if err != nil {
		return nil, err
	}
	t := &target{name: name, addr: s.addr, server: s.Pid(), admin: s.admin, others: map[string]int{}, pool: pool, count: storedCount(pool), where: inTables}
	for _, pid := range child.Children(s.Pid()) {
		t.others["engine"] = pid
	}
	if len(t.others) != 1 {
		return nil, errors.New("edge runs no engine of its own")
	}
	return t, nil
}

// system is a whole one, from HTTP to the tables.
type system struct {
	*target
	kafka  string
	verify func(context.Context) ([]string, error) // what it says against its own sums; nil: there is nobody to ask
	stop   func() error
}

// ourSystem is edge with everything inside.
func (f *fleet) ourSystem(name string) (*system, error) {
	srv, err := f.whole()
	if err != nil {
		return nil, err
	}
	t, err := f.everything(name, srv)
	return &system{t, srv.kafka, srv.verify, srv.Stop}, err
}

// naiveSystem is the peer in front of a broker, and its sink behind it, on the same
// engine and the same tables.
func (f *fleet) naiveSystem() (*system, error) {
	e, err := f.engine()
	if err != nil {
		return nil, err
	}
	if err := f.migrate(e, database); err != nil {
		return nil, err
	}
	t, b, err := f.naive("async", 1)
	if err != nil {
		return nil, err
	}
	t.name, t.admin = "naive async and sink", "" // three processes, of which one would tell
	if t.pool, err = f.pool(e.addr, database); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	sink, err := f.start("naive-sink", []string{self, "serve-naive-sink", b.addr, e.addr, database}, nil, func() error { return nil })
	if err != nil {
		return nil, err
	}
	t.others["engine"], t.others["sink"] = e.Pid(), sink.Pid()
	t.count, t.where = storedCount(t.pool), inTables
	return &system{target: t, kafka: b.addr, stop: f.end}, nil
}

// verify asks a running edge to prove its sums, and returns what it found wrong.
func (s *server) verify(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.admin+"/verify", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, errors.Join(err, fmt.Errorf("verify: %s: %s", resp.Status, text))
	}
	var r struct {
		Partitions []struct {
			Missing int64 `json:"missing"`
			Extra   int64 `json:"extra"`
		} `json:"partitions"`
		Mismatched int64    `json:"mismatched_rollup_rows"`
		Users      int64    `json:"mismatched_user_cells"`
		Problems   []string `json:"problems"`
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("verify: %w: %s", err, text)
	}
	problems := r.Problems
	for _, p := range r.Partitions {
		if p.Missing != 0 || p.Extra != 0 {
			problems = append(problems, fmt.Sprintf("%d missing, %d extra", p.Missing, p.Extra))
		}
	}
	if r.Mismatched != 0 || r.Users != 0 {
		problems = append(problems, fmt.Sprintf("rollups: %d rows and %d user cells differ", r.Mismatched, r.Users))
	}
	return problems, nil
}

// settle waits for the merges that inserts have left behind: they are not what an event
// of the next run costs, and not what a question does. Between two of them there may be
// none for a second.
func settle(ctx context.Context, pool *clickhouse.Pool, patience time.Duration) error {
	const calm = 3 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	settled, since := errors.New("settled"), time.Now()
	err := poll(ctx, 250*time.Millisecond, func() error { // seldom: it is the engine that is asked
		n, err := number(ctx, pool, "SELECT toInt64(count()) AS n FROM system.merges")
		switch {
		case err != nil:
			return err
		case n > 0:
			since = time.Now()
		case time.Since(since) >= calm:
			return settled
		}
		return nil
	})
	if errors.Is(err, settled) {
		return nil
	}
	return fmt.Errorf("wait until merges have ended: %w", errors.Join(err, ctx.Err()))
}

// number runs a query of one Int64 named n.
func number(ctx context.Context, pool *clickhouse.Pool, sql string) (int64, error) {
	var n proto.ColInt64
	if err := pool.Do(ctx, ch.Query{Body: sql, Result: proto.Results{{Name: "n", Data: &n}}}); err != nil {
		return 0, err
	}
	if n.Rows() != 1 {
		return 0, fmt.Errorf("%d rows, want one: %s", n.Rows(), sql)
	}
	return n.Row(0), nil
}

// poll calls f every interval until ctx ends; its errors end it too.
func poll(ctx context.Context, every time.Duration, f func() error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := f(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
