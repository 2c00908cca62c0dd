package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
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

// TestKillReachesAnArrivingInsert: an INSERT can be killed from its header on, by what
// is known of it and by nothing else, as on a ClickHouse server.
func TestKillReachesAnArrivingInsert(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (n UInt64) ENGINE=MergeTree ORDER BY n")
	f := func(kill string, wantCode int, wantKilled bool) {
		t.Helper()
		goOn := arriving(t, child, "edge/1/,0,3,")
		if err := c.Do(t.Context(), ch.Query{Body: kill}); code(err) != wantCode {
			t.Errorf("%s: got %v; want code %d", kill, err, wantCode)
		}
		want := map[bool]string{true: "0", false: "1"}[wantKilled]
		switch err := goOn(); {
		case wantKilled && code(err) != int(codeQueryCancelled), !wantKilled && err != nil:
			t.Errorf("%s: the insert got %v", kill, err)
		}
		if got := value(t, c, "(SELECT count() FROM t)"); got != want {
			t.Errorf("%s: %s rows stored; want %s", kill, got, want)
		}
		do(t, c, "TRUNCATE TABLE t")
	}
	kills := func() {
		t.Helper()
		f("KILL QUERY WHERE match(Settings['log_comment'], '^edge/1/.*,(3|7),') ASYNC", 0, true)
	}
	kills()
	f("KILL QUERY WHERE startsWith(query, 'INSERT INTO t') AND query_kind = 'Insert' SYNC", 0, true)
	f("kill query where user = 'default' and Settings['log_comment'] = 'edge/1/,0,3,' format Null", 0, true)
	f("KILL QUERY WHERE processes.`Settings`['log_comment'] = 'edge/1/,0,3,' -- that\n ASYNC SETTINGS max_threads=1 FORMAT Null", 0, true)
	f("KILL QUERY WHERE 0 OR Settings['log_comment'] != '' FORMAT Null SETTINGS max_threads=1", 0, true)
	f("KILL QUERY WHERE match(Settings['log_comment'], '^edge/1/.*,(30|7),') ASYNC", 0, false)
	f("KILL QUERY WHERE Settings['log_comment'] = 'edge/1/,0,3,' TEST", 0, false)
	f("KILL QUERY WHERE query_id = 'none'", 0, false)
	f("KILL QUERY WHERE elapsed > 1000 AND Settings['log_comment'] != ''", 0, false)
	f("KILL QUERY WHERE 0 UNION ALL SELECT 1", int(codeSyntaxError), false)
	f("KILL QUERY WHERE 0) OR (1", int(codeSyntaxError), false)
	f("KILL QUERY WHERE number = 0", 47, false)
	f("KILL QUERY WHERE current_database = 'system' AND query LIKE 'INSERT%'", 0, false)
	f("KILL QUERY WHERE current_database = 'default' AND query LIKE 'INSERT%'", 0, true)

	// What others send, and what the one who kills has set, do not hide an insert.
	neighbour := arriving(t, child, strings.Repeat("x", 200<<10))
	neighbour2 := arriving(t, child, strings.Repeat("y", 200<<10))
	kills()
	if err := errors.Join(neighbour(), neighbour2()); err != nil {
		t.Errorf("a neighbour's insert: %v", err)
	}
	do(t, c, "TRUNCATE TABLE t")
	do(t, c, "SET max_query_size=200, max_result_bytes=1, max_rows_to_read=1, offset=5")
	do(t, c, "USE system")
	goOn := arriving(t, child, "edge/1/,0,3,")
	if err := c.Do(t.Context(), ch.Query{Body: "KILL QUERY WHERE current_database != currentDatabase() AND Settings['log_comment'] = 'edge/1/,0,3,'"}); err != nil {
		t.Errorf("KILL under limits: %v", err)
	}
	if err := goOn(); code(err) != int(codeQueryCancelled) {
		t.Errorf("KILL under limits: the insert got %v", err)
	}
}

// TestKillSparesWhatFollows: who is killed while inserting can go on at once. Neither a
// late kill nor one of a question asked for an INSERT shows in any other query.
func TestKillSparesWhatFollows(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, "CREATE TABLE t (n UInt64) ENGINE=MergeTree ORDER BY n")
	var inserters sync.WaitGroup
	stored, killed := make([]int, 2), make([]int, 2)
	stop := make(chan struct{})
	for i := range 2 {
		x := dial(t, child)
		inserters.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				// A text of its own, so that the server looks at the table each time.
				err := x.Do(t.Context(), ch.Query{
					Body:     fmt.Sprintf("INSERT INTO t /* %d */ VALUES", n),
					Input:    proto.Input{{Name: "n", Data: proto.ColUInt64{1}}},
					Settings: []ch.Setting{{Key: "log_comment", Value: "edge/1/,0,", Important: true}},
				})
				switch {
				case err == nil:
					stored[i]++
				case code(err) == int(codeQueryCancelled):
					killed[i]++
				default:
					t.Errorf("insert: %v", err)
					return
				}
				var sum proto.ColUInt64
				if err := x.Do(t.Context(), ch.Query{
					Body: "SELECT sum(number) AS s FROM numbers(1000000)", Result: proto.Results{{Name: "s", Data: &sum}},
				}); err != nil {
					t.Errorf("the query after an insert: %v", err)
					return
				}
			}
		})
	}
	for range 200 {
		do(t, c, "KILL QUERY WHERE Settings['log_comment'] = 'edge/1/,0,' ASYNC")
	}
	close(stop)
	inserters.Wait()
	rows, err := strconv.Atoi(value(t, c, "(SELECT count() FROM t)"))
	if all, some := stored[0]+stored[1], killed[0]+killed[1]; err != nil || rows < all || rows > all+some {
		t.Errorf("%d rows stored, %v; %d inserts were answered so, %d were killed", rows, err, all, some)
	} else if some == 0 {
		t.Error("no insert was killed")
	}
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
