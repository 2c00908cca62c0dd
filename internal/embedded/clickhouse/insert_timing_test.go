package clickhouse

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

const (
	benchRows  = 100_000
	benchTable = `CREATE OR REPLACE TABLE b (event_name LowCardinality(String), timestamp DateTime64(3, 'UTC'), user_id String,
		tags Array(LowCardinality(String)), metadata String, event_id UUID) ENGINE=%s`
)

// BenchmarkInsert compares an insert through the server with its rival: the
// same block handed to the library in this process, without a protocol.
func BenchmarkInsert(b *testing.B) {
	b.Setenv("CHDB_LIBRARY", needLibrary(b))
	direct := openDirect(b)
	for _, table := range []string{"Null", "MergeTree ORDER BY (event_name, timestamp)"} {
		b.Run(table[:4]+"/direct", func(b *testing.B) { benchDirect(b, direct.admin, table) })
		b.Run(table[:4]+"/plain", func(b *testing.B) { benchServer(b, table, ch.CompressionDisabled) })
		b.Run(table[:4]+"/lz4", func(b *testing.B) { benchServer(b, table, ch.CompressionLZ4) })
	}
}

// openDirect opens the engine in this process, as Run does.
func openDirect(b *testing.B) *engine {
	cfg := Config{Dir: filepath.Join(b.TempDir(), "data")}
	b.Chdir(b.TempDir()) // undone afterwards, unlike prepareDir's
	if err := cfg.setDefaults(); err != nil {
		b.Fatal(err)
	}
	argv, err := prepareDir(&cfg)
	if err != nil {
		b.Fatal(err)
	}
	lib, err := loadLibrary(needLibrary(b))
	if err != nil {
		b.Fatal(err)
	}
	eng, err := openEngine(lib, argv)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(eng.close)
	return eng
}

func benchDirect(b *testing.B, c *engineConn, table string) {
	if err := c.exec(fmt.Sprintf(benchTable, table), nil); err != nil {
		b.Fatal(err)
	}
	const old = 54453 // the block without flags, as the library reads it
	block := wireBlock(b, events(benchRows, 1), old)
	insert := func() {
		f, path, err := newInsertFile()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Write(block); err != nil {
			b.Fatal(err)
		}
		if err := c.exec("INSERT INTO b FROM INFILE '"+path+"' FORMAT Native", nil); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
	insert() // the first one finds the engine cold
	b.SetBytes(int64(len(block)))
	b.ReportAllocs()
	for b.Loop() {
		insert()
	}
	reportRows(b)
}

func benchServer(b *testing.B, table string, compression ch.Compression) {
	child := startChild(b, "")
	c := dial(b, child, func(o *ch.Options) { o.Compression = compression })
	do(b, c, fmt.Sprintf(benchTable, table))
	in := events(benchRows, 1)
	insert := func() {
		if err := c.Do(b.Context(), ch.Query{Body: "INSERT INTO b VALUES", Input: in}); err != nil {
			b.Fatal(err)
		}
	}
	insert() // the first one finds the engine and the client cold
	b.SetBytes(int64(len(wireBlock(b, in, revision))))
	b.ReportAllocs()
	for b.Loop() {
		insert()
	}
	reportRows(b)
	if table != "Null" {
		if got, want := value(b, c, "(SELECT count() FROM b)"), strconv.Itoa((b.N+1)*benchRows); got != want {
			b.Fatalf("got %s rows; want %s", got, want)
		}
	}
}

func reportRows(b *testing.B) {
	b.ReportMetric(float64(b.N)*benchRows/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkSelectOne is a query's fixed cost.
func BenchmarkSelectOne(b *testing.B) {
	c := dial(b, startChild(b, ""))
	var n proto.ColUInt8
	b.ReportAllocs()
	for b.Loop() {
		n.Reset()
		if err := c.Do(b.Context(), ch.Query{Body: "SELECT 1 AS n", Result: proto.Results{{Name: "n", Data: &n}}}); err != nil || len(n) != 1 {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkWalk is what finding a block's end costs, out of the server's window.
func BenchmarkWalk(b *testing.B) {
	block := wireBlock(b, events(benchRows, 1), revision)
	b.SetBytes(int64(len(block)))
	b.ReportAllocs()
	r := bytes.NewReader(block)
	c := newCursor(r, windowSize)
	c.keep = discard
	var w walker
	for b.Loop() {
		r.Reset(block)
		if s, err := w.block(c, flagDrop); err != nil || s.rows != benchRows {
			b.Fatal(s, err)
		}
	}
}
