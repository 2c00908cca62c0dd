package query

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/go-cmp/cmp"

	"edge/internal/clickhouse"
)

// expensive is how many events make a query of their campaigns so.
const expensive = 200_000

func insertExpensive(t *testing.T, pool *clickhouse.Pool) {
	t.Helper()
	var events []event
	for i := range int64(expensive) {
		events = append(events, event{(dataFrom + i) * 1000, "view", "", "c" + strconv.FormatInt(i%5000, 10), "u" + strconv.FormatInt(i, 10)})
	}
	insert(t, pool, events)
}

func TestTooExpensive(t *testing.T) {
	pool := openDatabase(t, "expensive")
	insertExpensive(t, pool)
	r := Request{EventName: "view", GroupBy: "campaign_id", From: dataFrom, To: dataTo}
	if _, err := New(pool, Options{MaxMemory: 4 << 20}).Query(t.Context(), r); !errors.Is(err, ErrTooExpensive) {
		t.Errorf("with 4 MiB: %v; want %v", err, ErrTooExpensive)
	}
	// The refusal leaves pool and server well.
	if _, err := New(pool, Options{}).Query(t.Context(), r); err != nil {
		t.Error(err)
	}
}

// Who has no memory because others have it may ask the same again.
func TestMemoryThatOthersUse(t *testing.T) {
	pool := openDatabase(t, "others")
	insertExpensive(t, pool)
	r := Request{EventName: "view", GroupBy: "campaign_id", From: dataFrom, To: dataTo}
	e := New(pool, Options{})
	e.settings = append(e.settings, ch.Setting{Key: "max_memory_usage_for_user", Value: "1", Important: true})
	if _, err := e.Query(t.Context(), r); proto.Error(clickhouse.Code(err)) != proto.ErrMemoryLimitExceeded || errors.Is(err, ErrTooExpensive) {
		t.Errorf("of a user without memory: %v; want another error than %v", err, ErrTooExpensive)
	}
	if _, err := New(pool, Options{}).Query(t.Context(), r); err != nil {
		t.Error(err)
	}
	for text, want := range map[string]bool{
		"Memory limit (for query) exceeded: would use 1.00 GiB": true,
		"Query memory limit exceeded: would use 1.00 GiB":       true,
		"Memory limit (total) exceeded: would use 1.00 GiB":     false,
		"(total) memory limit exceeded: would use 1.00 GiB":     false,
		"Memory limit (for user) exceeded: would use 1.00 GiB":  false,
		"User memory limit exceeded: would use 1.00 GiB":        false,
	} {
		if got := tooExpensive(&ch.Exception{Code: proto.ErrMemoryLimitExceeded, Message: text}); got != want {
			t.Errorf("%q is of the query itself: %v; want %v", text, got, want)
		}
	}
}

func TestTheCallerEndsAQuery(t *testing.T) {
	pool := openDatabase(t, "ended")
	insertExpensive(t, pool)
	e := New(pool, Options{})
	r := Request{EventName: "view", GroupBy: "campaign_id", From: dataFrom, To: dataTo}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Query(ctx, r); !errors.Is(err, context.Canceled) {
		t.Errorf("of a caller that left: %v; want %v", err, context.Canceled)
	}
	// Far below what five thousand groups take.
	ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := e.Query(ctx, r); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrTooExpensive) {
		t.Errorf("of a caller in a hurry: %v; want %v", err, context.DeadlineExceeded)
	}
	if res, err := e.Query(t.Context(), r); err != nil || res.Events != expensive {
		t.Errorf("after both: %v, %v", res, err)
	}
}

func TestQueriesRunConcurrently(t *testing.T) {
	pool := openDatabase(t, "concurrent")
	insert(t, pool, randomEvents(rand.New(rand.NewPCG(1, 1)), 5000))
	e := New(pool, Options{})
	r := Request{EventName: "view", From: dataFrom, To: dataTo, GroupBy: "channel"}
	want, err := e.Query(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 12 { // more than the pool has connections
		wg.Go(func() {
			for range 5 {
				got, err := e.Query(t.Context(), r)
				if d := cmp.Diff(want, got); d != "" || err != nil {
					t.Errorf("%v %s", err, d)
				}
			}
		})
	}
	wg.Wait()
}

// An answer takes several connections, one after the other if there is but one: nobody
// holds one and waits for the next.
func TestMoreStatementsThanConnections(t *testing.T) {
	pool := openDatabase(t, "starved")
	events := randomEvents(rand.New(rand.NewPCG(2, 2)), 5000)
	insert(t, pool, events)
	slices.SortFunc(events, func(a, b event) int { return int(a.ts - b.ts) })
	for conns := range 3 {
		few, err := clickhouse.Open(clickhouse.Options{Addr: "embedded", Database: "starved", Dialer: server.child, MaxConns: conns + 1})
		if err != nil {
			t.Fatal(err)
		}
		e := New(few, Options{States: 1 << 20})
		var wg sync.WaitGroup
		for i := range int64(20) { // each another request: none shares an answer
			wg.Go(func() {
				for j := range int64(2) { // buckets that are kept and others
					r := Request{EventName: "view", From: dataFrom + i + j*day, To: dataTo - 1, GroupBy: "channel", CountsOnly: i%2 == 0}
					got, err := e.Query(t.Context(), r)
					if want := oracle(events, r, time.UTC); err != nil || got.Events != want.Events {
						t.Errorf("%d connections: got %+v, %v; want %d events", conns+1, got, err, want.Events)
					}
				}
			})
		}
		wg.Wait()
		few.Close()
	}
}

func TestNoAnswerIsAnError(t *testing.T) {
	pool, err := clickhouse.Open(clickhouse.Options{Addr: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = New(pool, Options{}).Query(ctx, Request{EventName: "view", From: 0, To: 1})
	if err == nil || errors.Is(err, ErrTooExpensive) || !strings.HasPrefix(err.Error(), "query metrics: ") {
		t.Errorf("got %v", err)
	}
}

// A user's profile may say that an answer ends where a limit is: half a total is none.
func TestNoAnswerEndsAtALimit(t *testing.T) {
	insertExpensive(t, openDatabase(t, "half"))
	o := migrate(t, "half", clickhouse.MigrateOptions{})
	o.MaxConns = 1
	r := Request{EventName: "view", GroupBy: "campaign_id", From: dataFrom, To: dataTo}
	for mode, limit := range map[string]ch.Setting{
		"timeout_overflow_mode":  {Key: "max_execution_time", Value: "0.001"},
		"read_overflow_mode":     {Key: "max_rows_to_read", Value: "1000"},
		"result_overflow_mode":   {Key: "max_result_rows", Value: "10"},
		"group_by_overflow_mode": {Key: "max_rows_to_group_by", Value: "10"},
		"sort_overflow_mode":     {Key: "max_rows_to_sort", Value: "10"},
	} {
		pool, err := clickhouse.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		// A session's setting is as a profile's to a query that says nothing of it.
		if err := pool.Exec(t.Context(), "SET "+mode+" = 'break'"); err != nil {
			t.Fatal(err)
		}
		e := New(pool, Options{})
		e.settings = append(e.settings, limit)
		if got, err := e.Query(t.Context(), r); err == nil && got.Events != expensive {
			t.Errorf("%s: %d events; want %d or an error", mode, got.Events, expensive)
		}
		pool.Close()
	}
}
