package clickhouse

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// listing runs a statement and returns the first column of its rows.
func listing(t *testing.T, c *ch.Client, sql string) (got []string) {
	t.Helper()
	var r proto.Results
	err := c.Do(t.Context(), ch.Query{Body: sql, Result: r.Auto(), OnResult: func(_ context.Context, b proto.Block) error {
		for i := range b.Rows {
			switch col := r[0].Data.(type) {
			case *proto.ColStr:
				got = append(got, col.Row(i))
			case *proto.ColUInt8:
				got = append(got, strconv.Itoa(int(col.Row(i))))
			default:
				return fmt.Errorf("a column of %s", col.Type())
			}
		}
		return nil
	}})
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return got
}

func TestListingsAnswerWithRows(t *testing.T) {
	child := startChild(t, "")
	for _, compression := range []ch.Compression{ch.CompressionDisabled, ch.CompressionLZ4} {
		c := dial(t, child, func(o *ch.Options) { o.Compression = compression })
		do(t, c, "CREATE OR REPLACE TABLE a (n UInt64, s String) ENGINE=MergeTree ORDER BY n")
		do(t, c, "CREATE OR REPLACE TABLE b (n UInt64) ENGINE=Memory")
		f := func(sql string, want ...string) {
			t.Helper()
			if got := listing(t, c, sql); !slices.Equal(got, want) {
				t.Errorf("%s: got %q; want %q", sql, got, want)
			}
		}
		f("SHOW TABLES", "a", "b")
		f("SHOW TABLES LIKE 'b%' FORMAT TSV", "b")
		f("SHOW DATABASES LIKE 'def%'", "default")
		f("DESCRIBE TABLE a", "n", "s")
		f("desc a", "n", "s")
		f("DESCRIBE (SELECT 1 AS x)", "x")
		f("EXISTS TABLE a", "1")
		f("EXISTS nothing", "0")
		f("SHOW CREATE TABLE b", "CREATE TABLE default.b\n(\n    `n` UInt64\n)\nENGINE = Memory")
		f("SHOW TABLES LIKE 'nothing'")
		err := c.Do(t.Context(), ch.Query{Body: "DESCRIBE nothing", Result: (&proto.Results{}).Auto(), OnResult: ignore})
		if code(err) != 60 {
			t.Errorf("got %v; want code 60", err)
		}
		f("EXISTS TABLE a", "1")
	}
}

// The library may put more than one block into an answer; each is a packet of its own.
func TestListingIsSentBlockByBlock(t *testing.T) {
	block := func(names ...string) (p []byte) {
		var b proto.Buffer
		b.PutRaw(encodeHeader([]column{{"name", "String"}}))
		b.Buf[1] = byte(len(names))
		for _, n := range names {
			b.PutString(n)
		}
		return b.Buf
	}
	two := append(block("a", "b"), block("c")...)
	s := &session{version: revision}
	if err := s.sendBlocks(two); err != nil {
		t.Fatal(err)
	}
	var want proto.Buffer
	for _, names := range [][]string{nil, {"a", "b"}, {"c"}} {
		proto.ServerCodeData.Encode(&want)
		want.PutString("")
		want.PutRaw(blockInfo)
		want.PutRaw(append([]byte{1, byte(len(names))}, "\x04name\x06String\x00"...))
		for _, n := range names {
			want.PutString(n)
		}
	}
	if !bytes.Equal(s.out.Buf, want.Buf) {
		t.Errorf("got  %q\nwant %q", s.out.Buf, want.Buf)
	}
	for n := range two {
		if whole := n == 0 || n == len(block("a", "b")); s.sendBlocks(two[:n]) == nil != whole {
			t.Errorf("%d of %d bytes: whole=%v is not what was found", n, len(two), whole)
		}
	}
}
