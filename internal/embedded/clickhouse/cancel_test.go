package clickhouse

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// endless would run for an hour.
const endless = "SELECT sleepEachRow(0.1) FROM numbers(36000) SETTINGS max_block_size=1"

// running counts the queries with a text like that.
func running(t testing.TB, c *ch.Client, like string) int {
	t.Helper()
	n, err := strconv.Atoi(value(t, c, "(SELECT count() FROM system.processes WHERE query LIKE '"+like+"')"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCancelPacketStopsTheQuery(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	conn, err := child.DialContext(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var b proto.Buffer
	appendHello(&b)
	appendQuery(&b, endless)
	appendBlock(&b, nil)
	if _, err := conn.Write(b.Buf); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the query runs", func() bool { return running(t, c, "SELECT sleep%") == 1 })
	b.Reset()
	proto.ClientCodeCancel.Encode(&b)
	proto.ClientCodePing.Encode(&b)
	if _, err := conn.Write(b.Buf); err != nil {
		t.Fatal(err)
	}
	// EndOfStream and the Pong: the connection goes on.
	readUntil(t, conn, string([]byte{byte(proto.ServerCodeEndOfStream), byte(proto.ServerCodePong)}))
	if n := running(t, c, "SELECT sleep%"); n != 0 {
		t.Errorf("%d cancelled queries still run", n)
	}
}

func TestDisconnectStopsTheQuery(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	f := func(sql, like string) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		other := dial(t, child)
		done := make(chan error, 1)
		go func() {
			done <- other.Do(ctx, ch.Query{Body: sql, Result: (&proto.Results{}).Auto(), OnResult: ignore})
		}()
		eventually(t, "the query runs", func() bool { return running(t, c, like) == 1 })
		cancel()
		if err := <-done; err == nil {
			t.Errorf("%s: a cancelled query succeeded", sql)
		}
		eventually(t, "the query has stopped", func() bool { return running(t, c, like) == 0 })
	}
	f(endless, "SELECT sleep%")
	f("SELECT count() FROM numbers(100000000000) WHERE NOT ignore(sipHash64(number))", "SELECT count() FROM numbers%")
	do(t, c, "CREATE TABLE sink (n UInt64) ENGINE=Null")
	f("INSERT INTO sink SELECT sleepEachRow(0.1) FROM numbers(36000) SETTINGS max_block_size=1", "INSERT INTO sink%")
}

func TestKillQueryByLogComment(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	victim := dial(t, child)
	done := make(chan error, 1)
	go func() {
		done <- victim.Do(t.Context(), ch.Query{Body: endless, Result: (&proto.Results{}).Auto(), OnResult: ignore,
			Settings: []ch.Setting{{Key: "log_comment", Value: "batch 7"}}})
	}()
	eventually(t, "the query shows its comment", func() bool {
		return value(t, c, "(SELECT count() FROM system.processes WHERE Settings['log_comment']='batch 7')") == "1"
	})
	err := c.Do(t.Context(), ch.Query{Body: "KILL QUERY WHERE Settings['log_comment']='batch 7' ASYNC", Result: (&proto.Results{}).Auto(), OnResult: ignore})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; code(err) != 394 {
		t.Errorf("got %v; want code 394", err)
	}
	if got := value(t, victim, "1"); got != "1" {
		t.Errorf("got %q; want 1", got)
	}
}

// ch-go gives up on a server that says nothing for three seconds by default.
func TestLongQueriesKeepTheClientAwake(t *testing.T) {
	t.Parallel() // it mostly sleeps
	child := startChild(t, "")
	c := dial(t, child, func(o *ch.Options) { o.ReadTimeout = 900 * time.Millisecond })
	progress := 0
	err := c.Do(t.Context(), ch.Query{Body: "SELECT sleep(2)", Result: (&proto.Results{}).Auto(), OnResult: ignore,
		OnProgress: func(context.Context, proto.Progress) error { progress++; return nil }})
	if err != nil {
		t.Fatal(err)
	}
	if progress < 3 {
		t.Errorf("got %d progress packets in two seconds; want at least 3", progress)
	}
}

func TestLargeResultsStream(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	// The first block arrives while most of the query is still ahead, and the
	// child's memory does not grow with the result: 50 M rows are 400 MB.
	const rows = 50_000_000
	before := peakRSS(t, child.Pid())
	var n proto.ColUInt64
	var got uint64
	next := uint64(0)
	err := c.Do(t.Context(), ch.Query{Body: fmt.Sprintf("SELECT number FROM numbers(%d)", rows), Result: proto.Results{{Name: "number", Data: &n}},
		OnResult: func(context.Context, proto.Block) error {
			for _, v := range n {
				if v != next {
					return fmt.Errorf("got %d; want %d", v, next)
				}
				next++
			}
			got += uint64(len(n))
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	if got != rows {
		t.Errorf("got %d rows; want %d", got, rows)
	}
	if grown := peakRSS(t, child.Pid()) - before; grown > 100<<20 {
		t.Errorf("the child grew by %d MiB", grown>>20)
	}
}

// peakRSS is the process's high-water mark of resident memory, in bytes.
func peakRSS(t testing.TB, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kib int64
	if _, err := fmt.Sscanf(rest, "%d", &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

func TestMemoryLimitEndsTheQueryNotTheChild(t *testing.T) {
	child := startChild(t, "", "EDGE_TEST_MAX_MEMORY=500000000")
	c := dial(t, child)
	if _, err := tryValue(t.Context(), c, "(SELECT length(groupArray(number)) FROM numbers(200000000))"); code(err) != 241 {
		t.Errorf("got %v; want code 241", err)
	}
	if got := value(t, c, "1"); got != "1" {
		t.Errorf("got %q; want 1", got)
	}
	if child.Restarts() != 0 {
		t.Errorf("the child was restarted %d times", child.Restarts())
	}
}
