package clickhouse

import (
	"testing"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

func TestSmoke(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	if err := c.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	do(t, c, "CREATE TABLE t (a UInt64, s String) ENGINE=MergeTree ORDER BY a")
	a := proto.ColUInt64{1, 2, 3}
	var s proto.ColStr
	for range a {
		s.Append("x")
	}
	if err := c.Do(t.Context(), ch.Query{Body: "INSERT INTO t VALUES", Input: proto.Input{{Name: "a", Data: a}, {Name: "s", Data: s}}}); err != nil {
		t.Fatal(err)
	}
	var count proto.ColUInt64
	if err := c.Do(t.Context(), ch.Query{Body: "SELECT count() AS n FROM t", Result: proto.Results{{Name: "n", Data: &count}}}); err != nil {
		t.Fatal(err)
	}
	if count[0] != 3 {
		t.Fatalf("got %d rows; want 3", count[0])
	}
}
