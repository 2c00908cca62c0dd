package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// value returns the single value of a query, as text.
func value(t testing.TB, c *ch.Client, sql string, change ...func(*ch.Query)) string {
	t.Helper()
	v, err := tryValue(t.Context(), c, sql, change...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func tryValue(ctx context.Context, c *ch.Client, sql string, change ...func(*ch.Query)) (string, error) {
	var v proto.ColStr
	q := ch.Query{Body: "SELECT assumeNotNull(toString(v)) AS s FROM (SELECT " + sql + " AS v)", Result: proto.Results{{Name: "s", Data: &v}}}
	for _, f := range change {
		f(&q)
	}
	if err := c.Do(ctx, q); err != nil {
		return "", err
	}
	if v.Rows() != 1 {
		return "", fmt.Errorf("%d rows", v.Rows())
	}
	return v.Row(0), nil
}

// eventually waits until f says true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-ctx.Done():
			t.Fatalf("still not: %s", what)
		case <-tick.C:
		}
	}
}

func code(err error) int {
	var e *ch.Exception
	if errors.As(err, &e) {
		return int(e.Code)
	}
	return 0
}

func TestPasswordIsChecked(t *testing.T) {
	child := startChild(t, "", "EDGE_TEST_PASSWORD=secret")
	f := func(user, password string, want int) {
		t.Helper()
		c, err := ch.Dial(t.Context(), ch.Options{Dialer: child, User: user, Password: password})
		if got := code(err); got != want || (err == nil) != (want == 0) {
			t.Errorf("%s/%s: got %v; want code %d", user, password, err, want)
		}
		if err == nil {
			c.Close()
		}
	}
	f("default", "secret", 0)
	f("default", "wrong", 516)
	f("default", "", 516)
	f("somebody", "secret", 516)
}

func TestUnknownDatabaseIsAnsweredWithAnException(t *testing.T) {
	child := startChild(t, "")
	_, err := ch.Dial(t.Context(), ch.Options{Dialer: child, Database: "nowhere"})
	if code(err) != 81 {
		t.Fatalf("got %v; want code 81", err)
	}
}

func TestSystemTables(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (a UInt64) ENGINE=MergeTree ORDER BY a")
	do(t, c, "INSERT INTO t SELECT number FROM numbers(10)")
	f := func(sql, want string) {
		t.Helper()
		if got := value(t, c, sql); got != want {
			t.Errorf("%s: got %q; want %q", sql, got, want)
		}
	}
	f("(SELECT count() FROM system.parts WHERE table='t' AND active)", "1")
	f("(SELECT count() FROM system.tables WHERE name='t')", "1")
	f("(SELECT type FROM system.columns WHERE table='t' AND name='a')", "UInt64")
	f("(SELECT value FROM system.settings WHERE name='async_insert')", "0")
	f("(SELECT count() FROM system.processes WHERE query LIKE '%system.processes%')", "1")
	if _, err := strconv.Atoi(value(t, c, "uptime()")); err != nil {
		t.Error(err)
	}
}

func TestExceptionsLeaveTheConnectionUsable(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	f := func(sql string, want int) {
		t.Helper()
		if err := c.Do(t.Context(), ch.Query{Body: sql, Result: (&proto.Results{}).Auto(), OnResult: ignore}); code(err) != want {
			t.Errorf("%s: got %v; want code %d", sql, err, want)
		}
		if got := value(t, c, "1"); got != "1" {
			t.Errorf("after %s: got %q; want 1", sql, got)
		}
	}
	f("SELEC 1", 62)
	f("", 62)
	f("SELECT 1; SELECT 2", 62)
	f("SELECT * FROM nothing", 60)
	f("SELECT nothing", 47)
	f("DROP TABLE nothing", 60)
	f("CREATE DATABASE default", 82)
	f("SELECT throwIf(number = 200000) FROM numbers(300000)", 395) // after blocks were sent
	f("SELECT sumState(1)", 48)                                    // no layout to walk
	f("SELECT 1 INTO OUTFILE '/tmp/x'", 497)
	f("SELECT * FROM file('/etc/passwd')", 497)
	f("SELECT * FROM FILE ('/etc/passwd', 'LineAsString')", 497)
	f("SELECT * FROM `file`('/etc/passwd')", 497)
	f("SELECT file('/etc/passwd')", 497)
	f("SELECT * FROM `/etc/passwd`", 497)
	f("SELECT * FROM '/etc/passwd'", 497)
	f("CREATE TABLE f (a String) ENGINE = File(TSV, '/tmp/x')", 497)
	f("INSERT INTO FUNCTION file('/tmp/x') SELECT 1", 497)
	f("INSERT INTO nothing FROM INFILE '/etc/passwd' FORMAT LineAsString", 497)
	f("INSERT INTO nothing VALUES", 60)
	f("INSERT INTO nothing SELECT 1", 60)
	f("INSERT INTO nothing FORMAT TSV\nx\n\nSELECT file('/etc/passwd')", 62)
	f("INSERT INTO nothing VALUES (1); SELECT 1", 62)
	f("INSERT INTO nothing SETTINGS format_template_row='/etc/passwd' FORMAT Template x", 497)
	f("SELECT 1 SETTINGS additional_result_filter='file(''/etc/passwd'') = 1'", 497)
	f("SET `format_template_row` = '/etc/passwd'", 497)
	f("SELECT * FROM format(Protobuf, 'x') SETTINGS format_schema='/etc/x:M'", 497)
	f("SELECT 1 SETTINGS output_format_schema='/tmp/x' FORMAT Protobuf", 497)
	f("INSERT INTO nothing SETTINGS input_format_record_errors_file_path='/tmp/x' FORMAT CSV\nx", 497)
	f("CREATE DICTIONARY d (k UInt64) PRIMARY KEY k SOURCE(CLICKHOUSE(QUERY 'SELECT file(''/etc/passwd'')')) LIFETIME(0) LAYOUT(FLAT())", 497)
	f("CREATE DICTIONARY d (k UInt64) PRIMARY KEY k SOURCE(CLICKHOUSE(\"query\" 'SELECT 1')) LIFETIME(0) LAYOUT(FLAT())", 497)
	err := c.Do(t.Context(), ch.Query{Body: "SELECT 1", Settings: []ch.Setting{{Key: "format_template_row", Value: "/etc/passwd"}}})
	if code(err) != 497 {
		t.Errorf("a setting that names a file: got %v; want code 497", err)
	}
	f("SELECT * FROM executable('ls', TSV, 'a String')", 497)
}

func TestFailedQueriesLetGo(t *testing.T) {
	child := startChild(t, "")
	c, idle := dial(t, child), dial(t, child)
	do(t, c, "CREATE TABLE t (n UInt64) ENGINE=MergeTree ORDER BY n")
	do(t, c, "INSERT INTO t SELECT number FROM numbers(10)")
	for _, sql := range []string{
		"SELECT throwIf(n = 5) FROM t",
		"SELECT throwIf(number = 200000) FROM numbers(300000)",
		"INSERT INTO t SELECT throwIf(number = 5) FROM numbers(10)",
	} {
		if err := idle.Do(t.Context(), ch.Query{Body: sql, Result: (&proto.Results{}).Auto(), OnResult: ignore}); code(err) != 395 {
			t.Errorf("%s: got %v; want code 395", sql, err)
		}
		if n := running(t, c, "%throwIf(n%"); n > 1 { // the asking query has the text too
			t.Errorf("%s: still in system.processes", sql)
		}
	}
}

func ignore(context.Context, proto.Block) error { return nil }

func TestFormatClauseIsTheClientsBusiness(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	for _, tail := range []string{" FORMAT TSV", " FORMAT JSON SETTINGS max_threads=1", " format Null;"} {
		var n proto.ColUInt8
		if err := c.Do(t.Context(), ch.Query{Body: "SELECT 7 AS n" + tail, Result: proto.Results{{Name: "n", Data: &n}}}); err != nil {
			t.Fatalf("%s: %v", tail, err)
		}
		if len(n) != 1 || n[0] != 7 {
			t.Errorf("%s: got %v; want [7]", tail, n)
		}
	}
}

func TestExplainAnswers(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	for _, sql := range []string{"EXPLAIN SELECT 7 AS n", "EXPLAIN indexes = 1, actions = 1 SELECT 7 AS n -- comment", "EXPLAIN PIPELINE SELECT 7 AS n FORMAT TSV"} {
		var line proto.ColStr
		lines := 0
		err := c.Do(t.Context(), ch.Query{Body: sql, Result: proto.Results{{Name: "explain", Data: &line}},
			OnResult: func(context.Context, proto.Block) error { lines += line.Rows(); return nil }})
		if err != nil || lines == 0 {
			t.Errorf("%s: %d lines, %v", sql, lines, err)
		}
	}
}

func TestDropSyncReturns(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (a UInt64) ENGINE=MergeTree ORDER BY a")
	do(t, c, "DROP TABLE t SYNC")
	do(t, c, "CREATE TABLE t (b UInt64) ENGINE=MergeTree ORDER BY b")
	do(t, c, "DROP TABLE IF EXISTS t NO DELAY")
	do(t, c, "CREATE DATABASE d")
	do(t, c, "DROP DATABASE d SYNC")
}

func TestEmptyResultsNameTheirColumns(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	f := func(sql string, want ...string) {
		t.Helper()
		var got []string
		var r proto.Results
		err := c.Do(t.Context(), ch.Query{Body: sql, Result: r.Auto(), OnResult: func(_ context.Context, b proto.Block) error {
			for _, col := range r {
				got = append(got, col.Name+" "+string(col.Data.Type()))
			}
			return nil
		}})
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		if strings.Join(got, ",") != strings.Join(want, ",") {
			t.Errorf("%s: got %q; want %q", sql, got, want)
		}
	}
	f("SELECT 1 AS a, 'x' AS b WHERE 0", "a UInt8", "b String")
	f("SELECT number FROM numbers(10) WHERE number > 100 -- comment", "number UInt64")
	f("SELECT 1 AS a WHERE 0 FORMAT TSV", "a UInt8")
	f("WITH 1 AS x SELECT x AS a LIMIT 0", "a UInt8")
	f("SHOW TABLES")
}

func TestSettingsHoldForOneQuery(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	with := func(settings ...ch.Setting) func(*ch.Query) {
		return func(q *ch.Query) { q.Settings = settings }
	}
	f := func(want string, settings ...ch.Setting) {
		t.Helper()
		if got := value(t, c, "concat(getSetting('log_comment'), '|', toString(getSetting('max_block_size')))", with(settings...)); got != want {
			t.Errorf("got %q; want %q", got, want)
		}
	}
	const usual = "65409"
	f("|" + usual)
	f("it's|"+usual, ch.Setting{Key: "log_comment", Value: "it's"})
	f("it's|100", ch.Setting{Key: "log_comment", Value: "it's"}, ch.Setting{Key: "max_block_size", Value: "100"})
	f("|7", ch.Setting{Key: "max_block_size", Value: "7"})
	f("|" + usual)

	// SET lasts, and is what a query's own settings go back to.
	do(t, c, "SET log_comment='lasting'")
	f("lasting|" + usual)
	f("mine|"+usual, ch.Setting{Key: "log_comment", Value: "mine"})
	f("lasting|" + usual)

	// An unknown setting matters only when the client says so.
	f("lasting|"+usual, ch.Setting{Key: "no_such_setting", Value: "1"})
	_, err := tryValue(t.Context(), c, "1", with(ch.Setting{Key: "no_such_setting", Value: "1", Important: true}))
	if code(err) != 115 {
		t.Errorf("got %v; want code 115", err)
	}
	// A bad value fails its query and leaves nothing behind.
	_, err = tryValue(t.Context(), c, "1", with(ch.Setting{Key: "log_comment", Value: "x"}, ch.Setting{Key: "max_threads", Value: "many"}))
	if code(err) == 0 {
		t.Errorf("got %v; want an exception", err)
	}
	f("lasting|" + usual)
}

func TestReadonlyHoldsForOneQuery(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	create := ch.Query{Body: "CREATE TABLE t (a UInt8) ENGINE=Memory", Settings: []ch.Setting{{Key: "readonly", Value: "1"}}}
	if err := c.Do(t.Context(), create); code(err) != 164 {
		t.Fatalf("got %v; want code 164", err)
	}
	create.Settings = nil
	if err := c.Do(t.Context(), create); err != nil {
		t.Fatal(err)
	}
}

func TestQueryParameters(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	params := func(m map[string]any) func(*ch.Query) {
		return func(q *ch.Query) { q.Parameters = ch.Parameters(m) }
	}
	f := func(sql, want string, m map[string]any) {
		t.Helper()
		if got := value(t, c, sql, params(m)); got != want {
			t.Errorf("%s: got %q; want %q", sql, got, want)
		}
	}
	f("{n:UInt64} + 1", "43", map[string]any{"n": 42})
	f("{s:String}", "it's a \\ tab\tand a\nline", map[string]any{"s": `it\'s a \\\\ tab\\tand a\\nline`})
	f("{a:Array(String)}", "['x','y']", map[string]any{"a": "['x','y']"})
	f("length({s:String})", "0", map[string]any{"s": ""})
	do(t, c, "CREATE TABLE p (a UInt8) ENGINE=Memory")
	f("(SELECT count() FROM {t:Identifier})", "0", map[string]any{"t": "p"})
	_, err := tryValue(t.Context(), c, "(SELECT * FROM {t:Identifier})", params(map[string]any{"t": "/etc/passwd"}))
	if code(err) != 497 {
		t.Errorf("a path as a table name: got %v; want code 497", err)
	}
	// The parameters of one query are not there for the next.
	if _, err := tryValue(t.Context(), c, "{n:UInt64}"); code(err) == 0 {
		t.Errorf("got %v; want an exception", err)
	}
}

func TestSessionsAreSeparate(t *testing.T) {
	child := startChild(t, "")
	a, b := dial(t, child), dial(t, child)
	do(t, a, "CREATE DATABASE other")
	do(t, a, "CREATE TABLE other.t (n UInt8) ENGINE=Memory")
	do(t, a, "USE other")
	do(t, a, "CREATE TEMPORARY TABLE tmp (n UInt8)")
	do(t, a, "INSERT INTO tmp VALUES (1), (2)")
	f := func(c *ch.Client, sql, want string) {
		t.Helper()
		if got := value(t, c, sql); got != want {
			t.Errorf("%s: got %q; want %q", sql, got, want)
		}
	}
	f(a, "currentDatabase()", "other")
	f(b, "currentDatabase()", "default")
	f(a, "(SELECT count() FROM tmp)", "2")
	f(a, "(SELECT count() FROM t)", "0")
	if _, err := tryValue(t.Context(), b, "(SELECT count() FROM tmp)"); code(err) != 60 {
		t.Errorf("a temporary table is visible to others: %v", err)
	}
	c := dial(t, child, func(o *ch.Options) { o.Database = "other" })
	f(c, "currentDatabase()", "other")
}

func TestManyConnectionsAtOnce(t *testing.T) {
	child := startChild(t, "")
	do(t, dial(t, child), "CREATE TABLE t (a UInt64, s String) ENGINE=MergeTree ORDER BY a")
	const clients, inserts, rows = 16, 5, 1000
	var wg sync.WaitGroup
	for i := range clients {
		c := dial(t, child)
		wg.Go(func() {
			for j := range inserts {
				var a proto.ColUInt64
				var s proto.ColStr
				for k := range rows {
					a = append(a, uint64(i*inserts*rows+j*rows+k))
					s.Append(strconv.Itoa(k))
				}
				if err := c.Do(t.Context(), ch.Query{Body: "INSERT INTO t VALUES", Input: proto.Input{{Name: "a", Data: a}, {Name: "s", Data: s}}}); err != nil {
					t.Error(err)
					return
				}
				if _, err := tryValue(t.Context(), c, "(SELECT max(a) FROM t)"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	c := dial(t, child)
	want := fmt.Sprintf("(%d,%d)", clients*inserts*rows, clients*inserts*rows)
	if got := value(t, c, "(SELECT (count(), uniqExact(a)) FROM t)"); got != want {
		t.Errorf("got %s; want %s", got, want)
	}
}

func TestExternalTablesAreRefused(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	err := c.Do(t.Context(), ch.Query{Body: "SELECT * FROM _data", ExternalData: proto.Input{{Name: "a", Data: proto.ColUInt64{1, 2}}},
		Result: (&proto.Results{}).Auto()})
	if code(err) != 48 {
		t.Errorf("got %v; want code 48", err)
	}
	if got := value(t, c, "1"); got != "1" {
		t.Errorf("got %q; want 1", got)
	}
}
