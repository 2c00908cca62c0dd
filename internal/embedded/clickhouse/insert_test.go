package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// numberColumns makes a block of rows over the given number of days.
func numberColumns(rows, days int) proto.Input {
	var day proto.ColDate
	var n proto.ColUInt64
	name := new(proto.ColStr).LowCardinality()
	start := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range rows {
		day.Append(start.AddDate(0, 0, i%days))
		n.Append(uint64(i))
		name.Append("event")
	}
	return proto.Input{{Name: "day", Data: &day}, {Name: "n", Data: &n}, {Name: "name", Data: name}}
}

func TestOneClientBlockIsOneBlockInTheEngine(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE raw (day Date, n UInt64, name LowCardinality(String)) ENGINE=MergeTree PARTITION BY day ORDER BY n")
	// The view counts the blocks it sees: one row each.
	do(t, c, "CREATE TABLE blocks (rows UInt64, first UInt64) ENGINE=MergeTree ORDER BY rows")
	do(t, c, "CREATE MATERIALIZED VIEW v TO blocks AS SELECT count() AS rows, min(n) AS first FROM raw")
	const rows, days = 1_048_449, 3 // the engine's block size, and the most it never cuts
	if err := c.Do(t.Context(), ch.Query{Body: "INSERT INTO raw VALUES", Input: numberColumns(rows, days)}); err != nil {
		t.Fatal(err)
	}
	f := func(sql, want string) {
		t.Helper()
		if got := value(t, c, sql); got != want {
			t.Errorf("%s: got %s; want %s", sql, got, want)
		}
	}
	f("(SELECT count() FROM system.parts WHERE table='raw')", fmt.Sprint(days))
	f("(SELECT (sum(rows), count()) FROM system.parts WHERE table='blocks')", "(1,1)")
	f("(SELECT (rows, first) FROM blocks)", fmt.Sprintf("(%d,0)", rows))
}

func TestSmallBlocksOfOneInsertAreOnePart(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE raw (n UInt64) ENGINE=MergeTree ORDER BY n")
	var n proto.ColUInt64
	blocks := 0
	err := c.Do(t.Context(), ch.Query{Body: "INSERT INTO raw VALUES", Input: proto.Input{{Name: "n", Data: &n}},
		OnInput: func(context.Context) error {
			n.Reset()
			if blocks++; blocks > 20 {
				return io.EOF
			}
			for i := range 1000 {
				n.Append(uint64(i))
			}
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	if got := value(t, c, "(SELECT (sum(rows), count()) FROM system.parts WHERE table='raw')"); got != "(20000,1)" {
		t.Errorf("got %s; want (20000,1)", got)
	}
}

func TestInsertIntoSomeColumns(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (a UInt64, b UInt64 DEFAULT a*2, m UInt64 MATERIALIZED a+1, s String ALIAS toString(a)) ENGINE=MergeTree ORDER BY a")
	insert := func(sql string, in ...proto.InputColumn) error {
		return c.Do(t.Context(), ch.Query{Body: sql, Input: in})
	}
	one := func() proto.ColInput { return proto.ColUInt64{1} }
	f := func(sql string, want int, in ...proto.InputColumn) {
		t.Helper()
		if err := insert(sql, in...); code(err) != want || (err == nil) != (want == 0) {
			t.Errorf("%s: got %v; want code %d", sql, err, want)
		}
	}
	a, b := proto.InputColumn{Name: "a", Data: one()}, proto.InputColumn{Name: "b", Data: one()}
	f("INSERT INTO t (a) VALUES", 0, a)
	f("insert into t(b, a) format Native", 0, b, a)
	f("INSERT INTO TABLE default.t (* EXCEPT(b)) VALUES;", 0, a)
	f("INSERT INTO `t` (`a`) SETTINGS max_threads=1 VALUES", 0, a)
	f("/* x */ INSERT INTO t (a) -- y\n VALUES", 0, a)
	f("INSERT INTO FUNCTION null('a UInt64') VALUES", 0, a)
	if got := value(t, c, "(SELECT (count(), sum(a), sum(b), sum(m)) FROM t)"); got != "(5,5,9,10)" {
		t.Errorf("got %s; want (5,5,9,10)", got)
	}
	f("INSERT INTO t (a, b) VALUES", 10, a)
	f("INSERT INTO t (a) VALUES", 10, b)
	f("INSERT INTO t (nothing) VALUES", 47, a)
	if got := value(t, c, "(SELECT count() FROM t)"); got != "5" {
		t.Errorf("got %s rows; want 5", got)
	}
}

// A session remembers which columns its INSERT takes, until a table may be
// another, by whomever.
func TestInsertAfterTheTableChanged(t *testing.T) {
	child := startChild(t, "")
	c, other := dial(t, child), dial(t, child)
	insert := func(columns ...string) {
		t.Helper()
		var in proto.Input
		for _, name := range columns {
			in = append(in, proto.InputColumn{Name: name, Data: &proto.ColUInt64{1, 2}})
		}
		for range 2 { // asked for and remembered
			if err := c.Do(t.Context(), ch.Query{Body: "INSERT INTO t VALUES", Input: in}); err != nil {
				t.Fatalf("%s: %v", columns, err)
			}
		}
	}
	do(t, c, "CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
	insert("a")
	do(t, other, "ALTER TABLE t ADD COLUMN b UInt64")
	insert("a", "b")
	do(t, other, "CREATE TABLE u (x UInt64) ENGINE = MergeTree ORDER BY x")
	do(t, other, "EXCHANGE TABLES t AND u")
	insert("x")
	do(t, other, "CREATE DATABASE elsewhere")
	do(t, other, "CREATE TABLE elsewhere.t (y UInt64) ENGINE = MergeTree ORDER BY y")
	insert("x")
	do(t, c, "USE elsewhere")
	insert("y")
	do(t, c, "CREATE TEMPORARY TABLE t (z UInt64) ENGINE = Memory")
	insert("z")
	do(t, other, "REPLACE TABLE elsewhere.t (w UInt64) ENGINE = MergeTree ORDER BY w")
	do(t, c, "DROP TEMPORARY TABLE t")
	insert("w")
}

func TestInsertThatBreaksOffWritesNothing(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (n UInt64) ENGINE=MergeTree ORDER BY n")
	conn, err := child.DialContext(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	var b proto.Buffer
	appendHello(&b)
	appendQuery(&b, "INSERT INTO t VALUES")
	appendBlock(&b, nil)
	appendBlock(&b, proto.Input{{Name: "n", Data: proto.ColUInt64{1, 2, 3}}})
	if _, err := conn.Write(b.Buf); err != nil {
		t.Fatal(err)
	}
	// The header answers the query; by then the server is inside the insert.
	readUntil(t, conn, "UInt64")
	conn.Close()
	eventually(t, "the session has ended", func() bool { return strings.Count(value(t, c, sessionsSQL), ",") == 0 })
	if got := value(t, c, "(SELECT count() FROM t)"); got != "0" {
		t.Errorf("got %s rows; want 0", got)
	}
}

func TestInsertThatIsCancelledWritesNothing(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (n UInt64) ENGINE=MergeTree ORDER BY n")
	conn, err := child.DialContext(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var b proto.Buffer
	appendHello(&b)
	appendQuery(&b, "INSERT INTO t VALUES")
	appendBlock(&b, nil)
	appendBlock(&b, proto.Input{{Name: "n", Data: proto.ColUInt64{1, 2, 3}}})
	proto.ClientCodeCancel.Encode(&b)
	proto.ClientCodePing.Encode(&b)
	if _, err := conn.Write(b.Buf); err != nil {
		t.Fatal(err)
	}
	readUntil(t, conn, string([]byte{byte(proto.ServerCodeEndOfStream), byte(proto.ServerCodePong)}))
	if got := value(t, c, "(SELECT count() FROM t)"); got != "0" {
		t.Errorf("got %s rows; want 0", got)
	}
}

func TestInsertsTogetherAreBounded(t *testing.T) {
	srv := &server{cfg: Config{MaxInsertBytes: 100, MaxBufferedBytes: 150}}
	open := func() *insertBuffer {
		t.Helper()
		b, err := newInsertBuffer(srv)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	keep := func(b *insertBuffer, n, want int) {
		t.Helper()
		if err := b.keep(make([]byte, n)); err != nil {
			t.Error(err)
		}
		if got := int(exceptionCode(b.refused)); got != want {
			t.Errorf("after %d bytes: got %v; want code %d", n, b.refused, want)
		}
	}
	a, b := open(), open()
	keep(a, 100, 0)
	keep(b, 50, 0)
	keep(b, 1, 241)
	keep(b, 500, 241) // dropped, not held
	if err := b.keep(make([]byte, 1000)); err == nil {
		t.Error("a refused insert may go on for ever")
	}
	c := open()
	keep(c, 50, 0)
	keep(a, 1, 396)
	for _, x := range []*insertBuffer{a, b, c} {
		x.close()
	}
	if n := srv.buffered.Load(); n != 0 {
		t.Errorf("%d bytes are still counted", n)
	}
}

// sessionsSQL names the running queries: only the asking one, when quiet.
const sessionsSQL = "(SELECT arrayStringConcat(groupArray(query_id), ',') FROM system.processes)"

func readUntil(t testing.TB, conn net.Conn, what string) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var got []byte
	p := make([]byte, 4096)
	for !strings.Contains(string(got), what) {
		n, err := conn.Read(p)
		if err != nil {
			t.Fatalf("waiting for %q: %v; got %q", what, err, got)
		}
		got = append(got, p[:n]...)
	}
}

func appendHello(b *proto.Buffer) {
	proto.ClientHello{Name: "test", Major: 1, ProtocolVersion: revision, User: "default"}.Encode(b)
	b.PutString("") // addendum: quota key
}

func appendQuery(b *proto.Buffer, sql string) {
	proto.Query{Body: sql, Stage: proto.StageComplete, Info: proto.ClientInfo{
		ProtocolVersion: revision, Major: 1, Interface: proto.InterfaceTCP, Query: proto.ClientQueryInitial,
	}}.EncodeAware(b, revision)
}

// appendBlock adds a Data packet; no columns mean the end of data.
func appendBlock(b *proto.Buffer, in proto.Input) {
	proto.ClientCodeData.Encode(b)
	b.PutString("")
	block := proto.Block{Info: proto.BlockInfo{BucketNum: -1}, Columns: len(in)}
	if len(in) > 0 {
		block.Rows = in[0].Data.Rows()
	}
	if err := block.EncodeBlock(b, revision, in); err != nil {
		panic(err)
	}
}

func TestTooLargeInsertIsRefusedWhole(t *testing.T) {
	child := startChild(t, "", "EDGE_TEST_MAX_INSERT=100000")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (n UInt64) ENGINE=MergeTree ORDER BY n")
	insert := func(rows int) error {
		n := make(proto.ColUInt64, rows)
		return c.Do(t.Context(), ch.Query{Body: "INSERT INTO t VALUES", Input: proto.Input{{Name: "n", Data: n}}})
	}
	if err := insert(50_000); code(err) != 396 {
		t.Errorf("got %v; want code 396", err)
	}
	if err := insert(10_000); err != nil {
		t.Errorf("the connection is no longer usable: %v", err)
	}
	if got := value(t, c, "(SELECT count() FROM t)"); got != "10000" {
		t.Errorf("got %s rows; want 10000", got)
	}
}

func TestDeduplicationTokenReachesTheEngine(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (n UInt64) ENGINE=MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window=1000")
	for _, token := range []string{"a", "a", "b"} {
		err := c.Do(t.Context(), ch.Query{Body: "INSERT INTO t VALUES", Input: proto.Input{{Name: "n", Data: proto.ColUInt64{1, 2}}},
			Settings: []ch.Setting{{Key: "insert_deduplication_token", Value: token, Important: true}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := value(t, c, "(SELECT count() FROM t)"); got != "4" {
		t.Errorf("got %s rows; want 4: two tokens of two rows", got)
	}
}

func TestInsertsTheEngineTakesAsTheyAre(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (n UInt64, s String) ENGINE=MergeTree ORDER BY n")
	do(t, c, "INSERT INTO t VALUES (1, 'a'), (2, 'b;c')")
	do(t, c, "INSERT INTO t (n) SELECT number FROM numbers(3)")
	do(t, c, "INSERT INTO t FORMAT CSV\n7,x\n8,y\n")
	do(t, c, "INSERT INTO t WITH 5 AS x SELECT x, 'z'")
	if got := value(t, c, "(SELECT (count(), sum(n)) FROM t)"); got != "(8,26)" {
		t.Errorf("got %s; want (8,26)", got)
	}
}

func TestInsertIntoTableWithFailingView(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (n UInt64) ENGINE=MergeTree ORDER BY n")
	do(t, c, "CREATE TABLE d (n UInt64) ENGINE=MergeTree ORDER BY n")
	do(t, c, "CREATE MATERIALIZED VIEW v TO d AS SELECT n + throwIf(n = 2, 'two') AS n FROM t")
	err := c.Do(t.Context(), ch.Query{Body: "INSERT INTO t VALUES", Input: proto.Input{{Name: "n", Data: proto.ColUInt64{1, 2}}}})
	var e *ch.Exception
	if !errors.As(err, &e) || e.Code != 395 || !strings.Contains(e.Message, "two") {
		t.Errorf("got %v; want code 395 saying two", err)
	}
}
