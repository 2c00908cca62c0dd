package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"golang.org/x/sys/unix"
)

func TestQuoteRoundTrip(t *testing.T) {
	o := database(t)
	p := open(t, o)
	var all []byte
	for c := range 256 {
		all = append(all, byte(c))
	}
	for _, s := range []string{
		"", "plain", "it's", `back\slash`, `\'`, `'; DROP TABLE events; --`, "\x00", "a\x00b", "\n\r\t\b\f", "\\n", "\\0", `\x41`, `\N`,
		"{p:String}", "/* */ -- #", "`\"", "emoji 🙂", "\xff\xfe", string(all), strings.Repeat(`\'`, 1000),
	} {
		got, err := p.Strings(testContext(t), "SELECT "+Quote(s))
		if err != nil {
			t.Errorf("%q: %v", s, err)
		} else if len(got) != 1 || got[0] != s {
			t.Errorf("%q came back as %q", s, got)
		}
	}
}

func TestUnusualDatabaseName(t *testing.T) {
	o := database(t)
	o.Database += "-with space"
	migrate(t, o, options())
	p := open(t, o)
	if got := row(t, p, "SELECT currentDatabase()"); got != o.Database {
		t.Errorf("got %q; want %q", got, o.Database)
	}
}

func restart(t *testing.T) {
	t.Helper()
	pid := server.child.Pid()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	ctx := testContext(t)
	for {
		select {
		case <-ctx.Done():
			t.Fatal("the engine did not come back")
		case <-tick.C:
		}
		if now := server.child.Pid(); now == 0 || now == pid {
			continue
		}
		if c, err := ch.Dial(ctx, Options{Addr: "embedded", Dialer: server.child}.client("")); err == nil {
			c.Close()
			return
		}
	}
}

// It ends the engine under everybody, so it is not among the parallel tests,
// which start when all others are done.
//
// Every idle connection is dead after a restart, not only the first.
func TestIdleConnectionsClosedByTheServer(t *testing.T) {
	o := database(t)
	counter := &connections{engine: server.child}
	o.Dialer, o.MaxConns = counter, 4
	p := open(t, o)
	fill := func() {
		var wg sync.WaitGroup
		for range o.MaxConns {
			wg.Go(func() { _, _ = p.Strings(testContext(t), "SELECT toString(sleep(0.2))") })
		}
		wg.Wait()
	}
	fill()
	if n := counter.dialed() - 1; n < 2 { // one created the database
		t.Fatalf("%d idle connections; want several", n)
	}
	restart(t)
	for i := range 2 * o.MaxConns {
		if got, err := p.Strings(testContext(t), "SELECT 'x'"); err != nil || len(got) != 1 {
			t.Errorf("read %d after the restart: %v, %v", i, got, err)
		}
	}
	fill()
	restart(t)
	if err := p.Exec(testContext(t), "CREATE TABLE t (x UInt8) ENGINE = Memory"); !broken(err) {
		t.Errorf("a statement that writes was repeated, or its error hidden: %v", err)
	}
}

// A read that has delivered rows is not repeated: they would count twice.
func TestHalfAnsweredQueryIsNotRepeated(t *testing.T) {
	o := database(t)
	counter := &connections{engine: server.child}
	o.Dialer = counter
	p := open(t, o)
	var n proto.ColUInt64
	rows, first := 0, true
	err := p.Do(testContext(t), ch.Query{
		Body:   "SELECT number FROM numbers(100000000)",
		Result: proto.Results{{Name: "number", Data: &n}},
		OnResult: func(context.Context, proto.Block) error {
			if rows += n.Rows(); first {
				first = false
				counter.mu.Lock()
				defer counter.mu.Unlock()
				for _, c := range counter.all {
					c.Close()
				}
			}
			if rows > 100_000_000 {
				return errors.New("more rows than there are")
			}
			return nil
		},
	})
	if !broken(err) {
		t.Errorf("got %v after %d rows; want the broken connection", err, rows)
	}
	if got := counter.dialed(); got != 2 {
		t.Errorf("%d connections; want one for the database and one for the query", got)
	}
}

// broken tells a connection that failed from an answer that is an exception.
func broken(err error) bool { return err != nil && !ch.IsException(err) }

func TestCode(t *testing.T) {
	p := open(t, database(t))
	f := func(sql string, code int) {
		t.Helper()
		err := p.Exec(testContext(t), sql)
		if Code(err) != code {
			t.Errorf("%s: got code %d: %v", sql, Code(err), err)
		}
	}
	f("SELECT * FROM absent", 60)
	f("SELEC 1", 62)
	f("SELECT throwIf(1)", 395)
	if Code(io.EOF) != 0 || Code(nil) != 0 {
		t.Error("plain errors have a code")
	}
	// An exception does not spoil the pool.
	if got := row(t, p, "SELECT 1"); got != "1" {
		t.Errorf("got %s", got)
	}
}

func TestErrorsNameTheAddress(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	p, err := Open(Options{Addr: addr, Database: "d"})
	if err != nil {
		t.Fatal(err) // Open does not connect
	}
	defer p.Close()
	_, dialErr := p.Dial(testContext(t))
	for name, err := range map[string]error{"Ping": p.Ping(testContext(t)), "Dial": dialErr, "Exec": p.Exec(testContext(t), "SELECT 1")} {
		if err == nil || !strings.HasPrefix(err.Error(), "connect to ClickHouse at "+addr+": ") || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Migrate(testContext(t), Options{Addr: addr, Database: "d"}, options()); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("Migrate: %v", err)
	}
}

func TestPing(t *testing.T) {
	if err := open(t, database(t)).Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

// Silence for longer than ReadTimeout is a slow query, not a broken connection.
func TestSlowQuery(t *testing.T) {
	t.Parallel()
	p := open(t, database(t))
	if got, err := p.Strings(testContext(t), "SELECT toString(sleep(1.5))"); err != nil || len(got) != 1 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestCancelLongQuery(t *testing.T) {
	t.Parallel()
	p := open(t, database(t))
	f := func(name string, ctx context.Context, want error) {
		t.Helper()
		started := time.Now()
		err := p.Exec(ctx, "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))")
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v; want %v", name, err, want)
		}
		// The query runs for hours; ch-go looks at the context every second.
		if took := time.Since(started); took > 10*time.Second {
			t.Errorf("%s: returned after %s", name, took)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	f("cancel", ctx, context.Canceled)
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	f("deadline", ctx, context.DeadlineExceeded)
}

func TestStringsReadsEveryBlock(t *testing.T) {
	p := open(t, database(t))
	got, err := p.Strings(testContext(t), "SELECT toString(number) FROM numbers(200000) ORDER BY number")
	if err != nil || len(got) != 200_000 {
		t.Fatalf("%d rows, %v", len(got), err)
	}
	for i, s := range got {
		if s != fmt.Sprint(i) {
			t.Fatalf("row %d is %s", i, s)
		}
	}
}
