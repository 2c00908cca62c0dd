//go:build linux

package deploy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// The dashboards' SQL runs on the real engine, over the schema that edge lays
// down: a table or column that a migration renames is an error here.
func TestDashboardsSQL(t *testing.T) {
	conn := migrated(t)
	exec := func(sql string) {
		t.Helper()
		if err := conn.Do(context.Background(), ch.Query{Body: sql}); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(`INSERT INTO events (ts, event_name, channel, user_id, event_id)
		SELECT now64(3) - toIntervalMinute(number), if(number % 3 = 0, 'sign''up', 'view'), if(number % 2 = 0, 'web', ''), toString(number % 7), generateUUIDv4()
		FROM numbers(600)`)
	queries := queriesSQL(t)
	if len(queries) < 10 {
		t.Errorf("the dashboards have %d statements; they had more", len(queries))
	}
	for where, q := range queries {
		for _, all := range []bool{true, false} {
			r, err := ask(conn, expand(q.RawSQL, all))
			switch {
			case err != nil:
				t.Errorf("%s, all events %v: %v", where, all, err)
			case r.rows == 0:
				t.Errorf("%s, all events %v: no rows of 600 events", where, all)
			case q.Format == 0 && (r.names[0] != "time" || !strings.HasPrefix(r.types[0], "DateTime")):
				t.Errorf("%s: the first column of a time series is %s %s; want time", where, r.names[0], r.types[0])
			}
		}
	}
	// A renamed column must be noticed, or this test shows nothing.
	exec("ALTER TABLE events_1m RENAME COLUMN n TO counted")
	failed := 0
	for _, q := range queries {
		if _, err := ask(conn, expand(q.RawSQL, true)); err != nil {
			failed++
		}
	}
	if failed == 0 {
		t.Error("no statement fails without events_1m.n")
	}
}

// expand does to a statement what Grafana and its plugin do: the macros, over
// the last day by the minute, and the variable with all its values, of which the
// plugin makes no condition, or with two of them.
func expand(sql string, all bool) string {
	to := time.Now()
	from := to.Add(-24 * time.Hour)
	at := func(t time.Time) string { return fmt.Sprintf("toDateTime(%d)", t.Unix()) }
	sql = regexp.MustCompile(`\$__timeFilter\((\w+)\)`).ReplaceAllString(sql, "$1 >= "+at(from)+" AND $1 <= "+at(to))
	sql = regexp.MustCompile(`\$__timeInterval\((\w+)\)`).ReplaceAllString(sql, "toStartOfInterval(toDateTime($1), INTERVAL 60 second)")
	condition := "$1"
	if all {
		condition = "1=1"
	}
	sql = regexp.MustCompile(`\$__conditionalAll\((.*?\)), \$event\)`).ReplaceAllString(sql, condition)
	return strings.NewReplacer("$__fromTime", at(from), "$__toTime", at(to), "$__interval_s", "60",
		"${event:singlequote}", `'sign\'up','view'`).Replace(sql)
}

type result struct {
	names, types []string
	rows         int
}

func ask(conn *ch.Client, sql string) (r result, err error) {
	if strings.Contains(sql, "$") {
		return r, fmt.Errorf("a macro is left over in %s", sql)
	}
	var columns proto.Results
	err = conn.Do(context.Background(), ch.Query{
		Body:   sql,
		Result: columns.Auto(),
		OnResult: func(_ context.Context, b proto.Block) error {
			r.rows += b.Rows
			if len(r.names) == 0 {
				for _, c := range columns {
					r.names = append(r.names, c.Name)
					r.types = append(r.types, string(c.Data.Type()))
				}
			}
			return nil
		},
	})
	return r, err
}

// migrated starts the engine as a server, lets edge lay down its schema, and
// returns a connection.
func migrated(t *testing.T) *ch.Client {
	t.Helper()
	lib := needEngine(t)
	port := freePort(t)
	server := exec.Command(edge(t), "clickhouse")
	server.Env = append(server.Environ(), "CHDB_LIBRARY="+lib, "DATA_DIR="+t.TempDir(), "EMBEDDED_CLICKHOUSE_LISTEN=127.0.0.1:"+port)
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	// migrate waits for nothing: it is a command for an operator.
	deadline := time.Now().Add(time.Minute)
	for {
		migrate := exec.Command(edge(t), "migrate")
		migrate.Env = append(migrate.Environ(), "CLICKHOUSE_HOST=127.0.0.1", "CLICKHOUSE_PORT="+port)
		out, err := migrate.CombinedOutput()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("edge migrate: %v\n%s", err, out)
		}
	}
	conn, err := ch.Dial(context.Background(), ch.Options{Address: "127.0.0.1:" + port, Database: settings(t)["CLICKHOUSE_DATABASE"]})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// lastPort is the port handed out last.
var lastPort atomic.Int32

func init() { lastPort.Store(15_000 + rand.Int32N(14_000)) }

// freePort returns a port that no connection is given by chance, below the range the
// kernel takes the near end of a connection from, and never the same twice.
func freePort(t testing.TB) string {
	t.Helper()
	for range 1000 {
		port := strconv.Itoa(int(lastPort.Add(1)))
		if ln, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			_ = ln.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}
