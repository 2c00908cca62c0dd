package clickhouse

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"net"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/chpool"
	"github.com/ClickHouse/ch-go/proto"
	chgo "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/shopspring/decimal"
)

// typesTable has every column type the schema uses, and the compound ones.
const typesTable = `CREATE TABLE types (
	at DateTime64(3, 'UTC'), received DateTime('UTC'), day Date, name LowCardinality(String),
	tags Array(LowCardinality(String)), meta String, id UUID, u16 UInt16, u32 UInt32, u64 UInt64, i64 Int64,
	total SimpleAggregateFunction(sum, Int64), maybe Nullable(String), attrs Map(String, UInt64),
	pair Tuple(String, UInt8), price Decimal(18, 4), kind Enum8('a' = 1, 'b' = 2),
	maybe_name LowCardinality(Nullable(String)), matrix Array(Array(Int32)), hash FixedString(16)
) ENGINE=MergeTree ORDER BY u64`

// chTypes are the columns of typesTable in ch-go.
type chTypes struct {
	at       *proto.ColDateTime64
	received *proto.ColDateTime
	day      proto.ColDate
	name     *proto.ColLowCardinality[string]
	tags     *proto.ColArr[string]
	meta     proto.ColStr
	id       proto.ColUUID
	u16      proto.ColUInt16
	u32      proto.ColUInt32
	u64      proto.ColUInt64
	i64      proto.ColInt64
	total    proto.ColInt64
	maybe    *proto.ColNullable[string]
	attrs    *proto.ColMap[string, uint64]
	pairS    proto.ColStr
	pairN    proto.ColUInt8
	price    proto.ColDecimal64
	kind     proto.ColEnum
	matrix   *proto.ColArr[[]int32]
	hash     proto.ColFixedStr16
}

func newChTypes() *chTypes {
	c := &chTypes{
		at:       new(proto.ColDateTime64).WithPrecision(proto.PrecisionMilli).WithLocation(time.UTC),
		received: &proto.ColDateTime{Location: time.UTC},
		name:     new(proto.ColStr).LowCardinality(),
		tags:     proto.NewArray(new(proto.ColStr).LowCardinality()),
		maybe:    new(proto.ColStr).Nullable(),
		attrs:    proto.NewMap(new(proto.ColStr), new(proto.ColUInt64)),
		matrix:   proto.NewArray(new(proto.ColInt32).Array()),
	}
	if err := c.kind.Infer("Enum8('a' = 1, 'b' = 2)"); err != nil {
		panic(err)
	}
	return c
}

func (c *chTypes) columns() []proto.InputColumn {
	return []proto.InputColumn{
		{Name: "at", Data: c.at}, {Name: "received", Data: c.received}, {Name: "day", Data: &c.day},
		{Name: "name", Data: c.name}, {Name: "tags", Data: c.tags}, {Name: "meta", Data: &c.meta},
		{Name: "id", Data: &c.id}, {Name: "u16", Data: &c.u16}, {Name: "u32", Data: &c.u32},
		{Name: "u64", Data: &c.u64}, {Name: "i64", Data: &c.i64}, {Name: "total", Data: proto.Alias(&c.total, "SimpleAggregateFunction(sum, Int64)")},
		{Name: "maybe", Data: c.maybe}, {Name: "attrs", Data: c.attrs},
		{Name: "pair", Data: proto.ColTuple{&c.pairS, &c.pairN}}, {Name: "price", Data: proto.Alias(&c.price, "Decimal(18, 4)")},
		{Name: "kind", Data: &c.kind}, {Name: "matrix", Data: c.matrix}, {Name: "hash", Data: &c.hash},
	}
}

func (c *chTypes) append(i int) {
	at := time.UnixMilli(1_700_000_000_000 + int64(i)*997).UTC()
	c.at.Append(at)
	c.received.Append(at.Truncate(time.Second))
	c.day.Append(at)
	c.name.Append(fmt.Sprintf("name-%d", i%300))
	c.tags.Append(strings.Split("a,b,c,d", ",")[:i%5%4])
	c.meta.Append(strings.Repeat("x", i%2000))
	c.id.Append(uuid.UUID{byte(i), byte(i >> 8), 3, 4})
	c.u16.Append(uint16(i))
	c.u32.Append(uint32(i))
	c.u64.Append(uint64(i))
	c.i64.Append(int64(-i))
	c.total.Append(int64(i))
	c.maybe.Append(proto.Nullable[string]{Set: i%2 == 0, Value: strings.Repeat("m", (1-i%2)*3)})
	c.attrs.Append(map[string]uint64{"k": uint64(i)})
	c.pairS.Append("p")
	c.pairN.Append(uint8(i))
	c.price.Append(proto.Decimal64(i))
	c.kind.Append([]string{"a", "b"}[i%2])
	c.matrix.Append([][]int32{{1, int32(i)}, {}, {3}})
	c.hash.Append([16]byte{1: byte(i)})
}

func (c *chTypes) row(i int) string {
	return fmt.Sprintf("%v", []any{c.at.Row(i), c.received.Row(i), c.day.Row(i), c.name.Row(i), c.tags.Row(i), len(c.meta.Row(i)),
		c.id[i], c.u16[i], c.u32[i], c.u64[i], c.i64[i], c.total[i], c.maybe.Row(i), c.attrs.Row(i),
		c.pairS.Row(i), c.pairN[i], c.price[i], c.kind.Row(i), c.matrix.Row(i), c.hash[i]})
}

func TestChGo(t *testing.T) {
	child := startChild(t, "")
	for name, compression := range map[string]ch.Compression{
		"disabled": ch.CompressionDisabled, "lz4": ch.CompressionLZ4, "zstd": ch.CompressionZSTD, "none": ch.CompressionNone,
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, child, func(o *ch.Options) { o.Compression = compression })
			do(t, c, "CREATE OR REPLACE "+strings.TrimPrefix(typesTable, "CREATE "))
			const rows = 3000
			in := newChTypes()
			for i := range rows {
				in.append(i)
			}
			names := make([]string, 0, len(in.columns()))
			for _, col := range in.columns() {
				names = append(names, col.Name)
			}
			list := strings.Join(names, ", ")
			if err := c.Do(t.Context(), ch.Query{Body: "INSERT INTO types (" + list + ") VALUES", Input: in.columns()}); err != nil {
				t.Fatal(err)
			}
			out := newChTypes()
			var results proto.Results
			for _, col := range out.columns() {
				results = append(results, proto.ResultColumn{Name: col.Name, Data: col.Data.(proto.ColResult)})
			}
			err := c.Do(t.Context(), ch.Query{Body: "SELECT " + list + " FROM types ORDER BY u64", Result: results,
				Settings: []ch.Setting{{Key: "network_compression_method", Value: map[bool]string{true: "zstd", false: "lz4"}[name == "zstd"]}}})
			if err != nil {
				t.Fatal(err)
			}
			if out.u64.Rows() != rows {
				t.Fatalf("got %d rows; want %d", out.u64.Rows(), rows)
			}
			for i := range rows {
				if got, want := out.row(i), in.row(i); got != want {
					t.Fatalf("row %d: got %s; want %s", i, got, want)
				}
			}
		})
	}
}

func TestChPool(t *testing.T) {
	child := startChild(t, "")
	pool, err := chpool.Dial(t.Context(), chpool.Options{ClientOptions: ch.Options{Dialer: child}, MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			var n proto.ColUInt64
			err := pool.Do(t.Context(), ch.Query{Body: fmt.Sprintf("SELECT toUInt64(%d) AS n", i), Result: proto.Results{{Name: "n", Data: &n}}})
			if err != nil || len(n) != 1 || n[0] != uint64(i) {
				t.Errorf("query %d: got %v, %v", i, n, err)
			}
		})
	}
	wg.Wait()
	if err := pool.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// goRow is a row of typesTable in clickhouse-go.
type goRow struct {
	At        time.Time         `ch:"at"`
	Received  time.Time         `ch:"received"`
	Day       time.Time         `ch:"day"`
	Name      string            `ch:"name"`
	Tags      []string          `ch:"tags"`
	Meta      string            `ch:"meta"`
	ID        uuid.UUID         `ch:"id"`
	U16       uint16            `ch:"u16"`
	U32       uint32            `ch:"u32"`
	U64       uint64            `ch:"u64"`
	I64       int64             `ch:"i64"`
	Total     int64             `ch:"total"`
	Maybe     *string           `ch:"maybe"`
	Attrs     map[string]uint64 `ch:"attrs"`
	Pair      []any             `ch:"pair"`
	Price     decimal.Decimal   `ch:"price"`
	Kind      string            `ch:"kind"`
	MaybeName *string           `ch:"maybe_name"`
	Matrix    [][]int32         `ch:"matrix"`
	Hash      string            `ch:"hash"`
}

func newGoRow(i int) goRow {
	at := time.UnixMilli(1_700_000_000_000 + int64(i)*997).UTC()
	r := goRow{At: at, Received: at.Truncate(time.Second), Day: at.Truncate(24 * time.Hour), Name: fmt.Sprint("name-", i%300),
		Tags: []string{"a", "b"}[:i%3%2+1], Meta: strings.Repeat("é", i%100), ID: uuid.UUID{byte(i), 1}, U16: uint16(i), U32: uint32(i),
		U64: uint64(i), I64: -int64(i), Total: int64(i), Attrs: map[string]uint64{"x": uint64(i)}, Pair: []any{"p", uint8(i)},
		Price: decimal.New(int64(i), -4), Kind: "a", Matrix: [][]int32{{int32(i)}, {}}, Hash: strings.Repeat("h", 16)}
	if i%2 == 0 {
		r.Maybe, r.MaybeName = &r.Name, &r.Name
	}
	return r
}

func goOptions(child *Child, method chgo.CompressionMethod) *chgo.Options {
	return &chgo.Options{
		Addr:        []string{"embedded:9000"},
		DialContext: func(ctx context.Context, addr string) (net.Conn, error) { return child.DialContext(ctx, "", addr) },
		Compression: &chgo.Compression{Method: method},
	}
}

func TestClickHouseGo(t *testing.T) {
	child := startChild(t, "")
	for name, method := range map[string]chgo.CompressionMethod{"none": chgo.CompressionNone, "lz4": chgo.CompressionLZ4, "zstd": chgo.CompressionZSTD} {
		t.Run(name, func(t *testing.T) {
			conn, err := chgo.Open(goOptions(child, method))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			ctx := t.Context()
			if err := conn.Ping(ctx); err != nil {
				t.Fatal(err)
			}
			if err := conn.Exec(ctx, "CREATE OR REPLACE "+strings.TrimPrefix(typesTable, "CREATE ")); err != nil {
				t.Fatal(err)
			}
			const rows = 2000
			batch, err := conn.PrepareBatch(ctx, "INSERT INTO types")
			if err != nil {
				t.Fatal(err)
			}
			want := make([]goRow, rows)
			for i := range want {
				want[i] = newGoRow(i)
				if err := batch.AppendStruct(&want[i]); err != nil {
					t.Fatal(err)
				}
			}
			if err := batch.Send(); err != nil {
				t.Fatal(err)
			}
			var got []goRow
			if err := conn.Select(ctx, &got, "SELECT * FROM types ORDER BY u64"); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
				t.Errorf("rows differ (-want +got):\n%s", clip(diff))
			}
			checkGoQueries(t, conn)
		})
	}
}

func checkGoQueries(t *testing.T, conn chgo.Conn) {
	t.Helper()
	ctx := chgo.Context(t.Context(), chgo.WithParameters(chgo.Parameters{"s": "it's élan", "n": "3"}))
	var s string
	var n uint64
	if err := conn.QueryRow(ctx, "SELECT {s:String}, {n:UInt64}").Scan(&s, &n); err != nil {
		t.Error(err)
	} else if s != "it's élan" || n != 3 {
		t.Errorf("got parameters %q, %d", s, n)
	}
	ctx = chgo.Context(t.Context(), chgo.WithSettings(chgo.Settings{"max_block_size": 77, "log_comment": "hello"}))
	if err := conn.QueryRow(ctx, "SELECT getSetting('log_comment'), toUInt64(getSetting('max_block_size'))").Scan(&s, &n); err != nil {
		t.Error(err)
	} else if s != "hello" || n != 77 {
		t.Errorf("got settings %q, %d", s, n)
	}
	checkGoListings(t, conn)
	err := conn.Exec(t.Context(), "SELECT * FROM nothing")
	if e, ok := err.(*chgo.Exception); !ok || e.Code != 60 {
		t.Errorf("got %v; want code 60", err)
	}
	rows, err := conn.Query(t.Context(), "SELECT number FROM numbers(1000000)")
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = rows.Close() }()
	count := 0
	for rows.Next() {
		count++
	}
	if rows.Err() != nil || count != 1_000_000 {
		t.Errorf("got %d rows, %v; want 1000000", count, rows.Err())
	}
}

func checkGoListings(t *testing.T, conn chgo.Conn) {
	t.Helper()
	f := func(sql, want string) {
		t.Helper()
		var got string
		if err := conn.QueryRow(t.Context(), sql).Scan(&got); err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q, %v; want %q", sql, got, err, want)
		}
	}
	f("SHOW TABLES", "types")
	f("SHOW DATABASES LIKE 'default'", "default")
	f("SHOW CREATE TABLE types", "CREATE TABLE default.types")
	var exists uint8
	if err := conn.QueryRow(t.Context(), "EXISTS TABLE types").Scan(&exists); err != nil || exists != 1 {
		t.Errorf("EXISTS TABLE types: got %d, %v; want 1", exists, err)
	}
	rows, err := conn.Query(t.Context(), "DESCRIBE TABLE types")
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = rows.Close() }()
	described := 0
	for rows.Next() {
		described++
	}
	if want := len(newChTypes().columns()); rows.Err() != nil || described < want {
		t.Errorf("DESCRIBE TABLE types: got %d rows, %v; want %d", described, rows.Err(), want)
	}
}

func TestDatabaseSQL(t *testing.T) {
	child := startChild(t, "")
	db := chgo.OpenDB(goOptions(child, chgo.CompressionLZ4))
	defer func() { _ = db.Close() }()
	ctx := t.Context()
	if _, err := db.ExecContext(ctx, "CREATE TABLE t (n UInt64, s String) ENGINE=MergeTree ORDER BY n"); err != nil {
		t.Fatal(err)
	}
	tx, err := db.BeginTx(ctx, &sql.TxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stmt, err := tx.PrepareContext(ctx, "INSERT INTO t")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if _, err := stmt.ExecContext(ctx, uint64(i), rand.Text()); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	var n uint64
	if err := db.QueryRowContext(ctx, "SELECT count() FROM t WHERE n < ?", 5).Scan(&n); err != nil {
		t.Fatal(err)
	}
	if n != 5 {
		t.Errorf("got %d rows; want 5", n)
	}
}

// The third implementation of the protocol, at an older revision (54453: no
// addendum, no serialization flags, no parameters).
func TestPythonDriver(t *testing.T) {
	const python = "/usr/bin/python3"
	if err := exec.Command(python, "-c", "import clickhouse_driver").Run(); err != nil {
		if os.Getenv("EDGE_REQUIRE_PYTHON") == "1" {
			t.Fatalf("python3-clickhouse-driver is not installed: %v", err)
		}
		t.Skip("python3-clickhouse-driver is not installed")
	}
	child := startChildOn(t, "", "127.0.0.1:0", testLog(t))
	host, port, err := net.SplitHostPort(child.address)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "testdata/client.py", host, port)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := strings.TrimSpace(string(out)); got != "ok" {
		t.Errorf("got %q; want ok", got)
	}
}
