package logging

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/slogtest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sheet collects what is written, one line a record, without times.
type sheet struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *sheet) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *sheet) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := strings.TrimSuffix(s.buf.String(), "\n")
	s.buf.Reset()
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

func (s *sheet) logger(level slog.Leveler) (*slog.Logger, *Limiter) { return loggerTo(s, level) }

func loggerTo(w io.Writer, level slog.Leveler) (*slog.Logger, *Limiter) {
	l := New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}), Period)
	return slog.New(l), l
}

func want(t *testing.T, s *sheet, lines ...string) {
	t.Helper()
	if diff := cmp.Diff(lines, s.lines()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

// pass lets virtual time go by.
func pass(d time.Duration) { <-time.After(d) }

func TestStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sheet
		log, _ := s.logger(slog.LevelInfo)
		log = log.With("component", "sink")
		for range 25 { // one a second
			log.Warn("insert failed", "err", errors.New("refused"))
			pass(time.Second)
		}
		want(t, &s,
			`level=WARN msg="insert failed" component=sink err=refused`,
			`level=WARN msg="insert failed" component=sink err=refused suppressed=9`,
			`level=WARN msg="insert failed" component=sink err=refused suppressed=9`)
		pass(14 * time.Second)
		want(t, &s)
		pass(2 * time.Second) // nobody has come
		want(t, &s, `level=WARN msg="insert failed" component=sink suppressed=4`)
		pass(time.Hour)
		want(t, &s)
		log.Warn("insert failed", "err", errors.New("again"))
		want(t, &s, `level=WARN msg="insert failed" component=sink err=again`)
	})
}

// A single record after a quiet period is not a storm, however often it comes.
func TestSlowRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sheet
		log, _ := s.logger(slog.LevelInfo)
		for range 10 {
			log.Error("no room")
			want(t, &s, `level=ERROR msg="no room"`)
			pass(Period)
		}
	})
}

func TestKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sheet
		log, _ := s.logger(slog.LevelDebug)
		sink, server := log.With("component", "sink"), log.With("component", "http")
		for range 3 {
			sink.Error("fetch", "partition", 1)
			sink.Error("fetch", "partition", int32(2))
			sink.Warn("fetch", "partition", 1)
			server.Error("fetch", "partition", 1)
			log.Error("fetch", "partition", 1, "component", "http") // the same, said later
			sink.WithGroup("g").Error("fetch", "partition", 9)      // of the group, not of the sink
			log.Info("fetch")
			log.Debug("fetch")
		}
		want(t, &s,
			`level=ERROR msg=fetch component=sink partition=1`,
			`level=ERROR msg=fetch component=sink partition=2`,
			`level=WARN msg=fetch component=sink partition=1`,
			`level=ERROR msg=fetch component=http partition=1`,
			`level=ERROR msg=fetch component=sink g.partition=9`,
			`level=INFO msg=fetch`, `level=DEBUG msg=fetch`,
			`level=INFO msg=fetch`, `level=DEBUG msg=fetch`,
			`level=INFO msg=fetch`, `level=DEBUG msg=fetch`)
		pass(time.Minute)
		got := s.lines()
		if len(got) != 5 {
			t.Fatalf("got %q; want a last line of five kinds", got)
		}
		for _, want := range []string{
			`level=ERROR msg=fetch component=sink partition=1 suppressed=2`,
			`level=ERROR msg=fetch partition=1 component=http suppressed=5`,
		} {
			if !strings.Contains(strings.Join(got, "\n"), want) {
				t.Errorf("got %q; want %q among them", got, want)
			}
		}
	})
}

func TestLevelIsTheWriters(t *testing.T) {
	var s sheet
	var level slog.LevelVar
	log, _ := s.logger(&level)
	level.Set(slog.LevelError)
	log.Warn("hidden")
	level.Set(slog.LevelWarn)
	log.Warn("hidden")
	want(t, &s, `level=WARN msg=hidden`)
}

func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sheet
		log, limiter := s.logger(slog.LevelInfo)
		for range 5 {
			log.Error("no room")
		}
		want(t, &s, `level=ERROR msg="no room"`)
		limiter.Flush()
		limiter.Flush()
		want(t, &s, `level=ERROR msg="no room" suppressed=4`)
		pass(time.Hour)
		want(t, &s)
	})
}

// What says itself what it is has the last word of a storm.
func TestValuerIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sheet
		log, _ := s.logger(slog.LevelInfo)
		var n sum
		for range 5 {
			n.Add(1)
			log.Error("lost", "total", &n, "of", 9)
		}
		want(t, &s, `level=ERROR msg=lost total=1 of=9`)
		n.Add(1)
		pass(time.Minute)
		want(t, &s, `level=ERROR msg=lost total=6 suppressed=4`)
	})
}

type sum struct{ atomic.Int64 }

func (s *sum) LogValue() slog.Value { return slog.Int64Value(s.Load()) }

// An outage of an hour that six parts complain about, some of them a hundred
// times a second, is a page of lines and not a million; and no record is missing
// from the sum.
func TestHourOfOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counted := new(counter)
		limiter := New(counted, Period)
		log := slog.New(limiter)
		var wg sync.WaitGroup
		for i, every := range []time.Duration{10 * time.Millisecond, 30 * time.Millisecond, time.Second, 2 * time.Second, 7 * time.Second, 10 * time.Second} {
			part := log.With("component", fmt.Sprint("part ", i))
			wg.Go(func() {
				for range int(time.Hour / every) {
					part.Error("the broker is away", "err", io.ErrUnexpectedEOF)
					pass(every)
				}
			})
		}
		wg.Wait()
		limiter.Flush()
		sent := 360_000 + 120_000 + 3600 + 1800 + 514 + 360
		lines, suppressed := counted.read()
		if lines+suppressed != sent {
			t.Errorf("%d lines leave out %d; %d were sent", lines, suppressed, sent)
		}
		if limit := 6 * (360 + 1); lines > limit {
			t.Errorf("%d lines; want at most %d", lines, limit)
		}
	})
}

// Every message another: the table is bounded, and so are the lines.
func TestEndlessKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counted := new(counter)
		limiter := New(counted, Period)
		log := slog.New(limiter)
		const n = 10 * maxKinds
		for i := range n {
			log.Error(fmt.Sprint("connection ", i, " closed"))
		}
		if got := kinds(limiter); got > maxKinds+2 {
			t.Errorf("%d kinds are kept; want at most %d", got, maxKinds+2)
		}
		if lines, _ := counted.read(); lines > maxKinds+1 {
			t.Errorf("%d lines in one moment; want at most %d", lines, maxKinds+1)
		}
		pass(time.Minute)
		if lines, suppressed := counted.read(); lines+suppressed != n {
			t.Errorf("%d lines leave out %d; %d were sent", lines, suppressed, n)
		}
		log.Error("something else")
		if got := kinds(limiter); got != 1 {
			t.Errorf("%d kinds are kept after a quiet minute; want the one", got)
		}
	})
}

func kinds(l *Limiter) int {
	l.table.mu.Lock()
	defer l.table.mu.Unlock()
	return len(l.table.kinds)
}

// Many goroutines on one kind and many: nothing is counted twice or lost, also
// when records meet the end of a storm.
func TestConcurrently(t *testing.T) {
	counted := new(counter)
	limiter := New(counted, time.Millisecond)
	var wg sync.WaitGroup
	const goroutines, each = 8, 5000
	for g := range goroutines {
		wg.Go(func() {
			log := slog.New(limiter).With("component", fmt.Sprint(g%3))
			for i := range each {
				log.Warn("busy", "partition", i%5)
				if i%1000 == 0 {
					limiter.Flush()
				}
			}
		})
	}
	wg.Wait()
	limiter.Flush()
	if lines, suppressed := counted.read(); lines+suppressed != goroutines*each {
		t.Errorf("%d lines leave out %d; %d were sent", lines, suppressed, goroutines*each)
	}
}

// counter adds up what is written.
type counter struct {
	mu         sync.Mutex
	lines      int // that are records
	suppressed int // what they and the last lines of storms say
}

func (c *counter) read() (lines, suppressed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lines, c.suppressed
}

func (c *counter) Enabled(context.Context, slog.Level) bool { return true }
func (c *counter) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c *counter) WithGroup(string) slog.Handler            { return c }

func (c *counter) Handle(_ context.Context, r slog.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.PC != 0 { // somebody logged it
		c.lines++
	}
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == Suppressed {
			c.suppressed += int(a.Value.Int64())
		}
		return true
	})
	return nil
}

// It stays a slog.Handler by the standard library's own book.
func TestIsAHandler(t *testing.T) {
	var buf bytes.Buffer
	results := func() (out []map[string]any) {
		for line := range bytes.Lines(buf.Bytes()) {
			m := make(map[string]any)
			if err := json.Unmarshal(line, &m); err != nil {
				t.Fatal(err)
			}
			out = append(out, m)
		}
		return out
	}
	if err := slogtest.TestHandler(New(slog.NewJSONHandler(&buf, nil), Period), results); err != nil {
		t.Error(err)
	}
}
