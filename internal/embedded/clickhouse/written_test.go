package clickhouse

import (
	"errors"
	"testing"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"golang.org/x/sys/unix"
)

// An insert whose bytes did not reach their file is not answered, and what it
// left of a part is gone when the next one asks.
func TestFailedWriteIsNotAcknowledged(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (n UInt64) ENGINE = MergeTree ORDER BY n")
	do(t, c, "INSERT INTO t SELECT number FROM numbers(10)")

	pid := child.Pid()
	// Every write to a file that would grow it past nothing now fails.
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{}, nil); err != nil {
		t.Fatal(err)
	}
	err := c.Do(t.Context(), ch.Query{Body: "INSERT INTO t SELECT number FROM numbers(100)"})
	var answer *ch.Exception
	if err == nil || errors.As(err, &answer) {
		t.Errorf("the insert got %v; want a broken connection", err)
	}
	eventually(t, "another process", func() bool { p := child.Pid(); return p != 0 && p != pid })

	c = dial(t, child)
	var n proto.ColUInt64
	if err := c.Do(t.Context(), ch.Query{Body: "SELECT count() AS n FROM t", Result: proto.Results{{Name: "n", Data: &n}}}); err != nil {
		t.Fatal(err)
	}
	if n.Row(0) != 10 {
		t.Errorf("%d rows; want the 10 that were acknowledged", n.Row(0))
	}
	do(t, c, "INSERT INTO t SELECT number FROM numbers(100)")
}
