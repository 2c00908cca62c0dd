package clickhouse

import (
	"context"
	"io"
	"testing"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// arriving begins an INSERT into t under a log_comment. Once the server has sent its
// header, goOn sends the rows and returns what became of it.
func arriving(t *testing.T, child *Child, comment string) (goOn func() error) {
	t.Helper()
	c := dial(t, child)
	taken, proceed, result := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var col proto.ColUInt64
	blocks := 0
	go func() {
		result <- c.Do(t.Context(), ch.Query{
			Body: "INSERT INTO t VALUES", Input: proto.Input{{Name: "n", Data: &col}},
			Settings: []ch.Setting{{Key: "log_comment", Value: comment, Important: true}},
			OnInput: func(context.Context) error {
				col.Reset()
				if blocks++; blocks > 1 {
					return io.EOF
				}
				close(taken)
				<-proceed
				col.Append(1)
				return nil
			},
		})
	}()
	<-taken
	return func() error { close(proceed); return <-result }
}

// TestKillReachesAnArrivingInsert: an INSERT can be killed from its header on, by all
// that is known of it and by nothing else, as on a ClickHouse server.
func TestKillReachesAnArrivingInsert(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (n UInt64) ENGINE=MergeTree ORDER BY n")
	f := func(kill string, killed bool) {
		t.Helper()
		goOn := arriving(t, child, "edge/1/,0,3,")
		do(t, c, kill)
		want := map[bool]string{true: "0", false: "1"}[killed]
		switch err := goOn(); {
		case killed && code(err) != int(codeQueryCancelled), !killed && err != nil:
			t.Errorf("%s: the insert got %v", kill, err)
		}
		if got := value(t, c, "(SELECT count() FROM t)"); got != want {
			t.Errorf("%s: %s rows stored; want %s", kill, got, want)
		}
		do(t, c, "TRUNCATE TABLE t")
	}
	f("KILL QUERY WHERE match(Settings['log_comment'], '^edge/1/.*,(3|7),') ASYNC", true)
	f("KILL QUERY WHERE startsWith(query, 'INSERT INTO t') SYNC", true)
	f("kill query where user = 'default' and Settings['log_comment'] = 'edge/1/,0,3,' format Null", true)
	f("KILL QUERY WHERE match(Settings['log_comment'], '^edge/1/.*,(30|7),') ASYNC", false)
	f("KILL QUERY WHERE Settings['log_comment'] = 'edge/1/,0,3,' TEST", false)
	f("KILL QUERY WHERE query_id = 'none'", false)
	f("KILL QUERY WHERE elapsed > 1000 AND Settings['log_comment'] != ''", false)
}

// TestKillWaitsForAnInsertInTheEngine: the rows of a killed INSERT are stored when KILL
// has returned, or never.
func TestKillWaitsForAnInsertInTheEngine(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (n UInt64) ENGINE=MergeTree ORDER BY n")
	do(t, c, "CREATE TABLE seen (n UInt8) ENGINE=Null")
	do(t, c, "CREATE MATERIALIZED VIEW slow TO seen AS SELECT sleepEachRow(0.5) AS n FROM t ARRAY JOIN range(60)")
	goOn := arriving(t, child, "edge/1/,0,")
	result := make(chan error, 1)
	go func() { result <- goOn() }()
	eventually(t, "the insert is in the engine", func() bool { return running(t, c, "INSERT INTO t%") == 1 })
	do(t, c, "KILL QUERY WHERE Settings['log_comment'] = 'edge/1/,0,' ASYNC")
	if n := running(t, c, "INSERT INTO t%"); n != 0 {
		t.Errorf("%d killed inserts run on", n)
	}
	if err := <-result; code(err) != int(codeQueryCancelled) {
		t.Errorf("the insert got %v; want code %d", err, codeQueryCancelled)
	}
}
