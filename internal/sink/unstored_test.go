package sink

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"edge/internal/codec"
)

// errorLog keeps what is logged as an error.
type errorLog struct {
	slog.Handler
	mu    sync.Mutex
	lines []string
}

func (e *errorLog) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelError
}

func (e *errorLog) WithAttrs([]slog.Attr) slog.Handler { return e }

func (e *errorLog) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lines = append(e.lines, text)
	return nil
}

// A group that stands behind records that its tables do not have says so, and stores what
// comes.
func TestGroupPastWhatIsStored(t *testing.T) {
	t.Parallel()
	f := func(name, lost, want string) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			l.history(3, 20)
			if lost != "" {
				l.lose("events", lost)
			}
			before := l.value("SELECT toString(count()) FROM events")
			log := new(errorLog)
			s := l.start(func(c *Config) { c.Logger = slog.New(log) })
			l.produce(20)
			l.settled()
			s.stop()
			var got string
			for _, line := range log.lines {
				got += line
			}
			if want != "" {
				want = "the group is past records that are not stored: another CLICKHOUSE_DATABASE, or tables that lost them; edge verify counts them, docs/backup.md brings them back " + want
			}
			if got != want {
				t.Errorf("logged %q; want %q", got, want)
			}
			if after := l.value(fmt.Sprintf("SELECT toString(count() - %s) FROM events", before)); after != "20" {
				t.Errorf("%s of 20 events stored", after)
			}
		})
	}
	f("nothing", "1", "partition=0 first=0 last=59")
	f("an older backup", "_offset >= 20", "partition=0 first=20 last=59")
	f("all", "", "")
}

// The audit of some time finds what the tables lack of it at either end, too, or in whole.
func TestAuditOfEnds(t *testing.T) {
	t.Parallel()
	f := func(name, lost string, missing int64, change ...func(int, *codec.Event)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			l.history(1, 20, change...)
			l.history(1, 20)
			l.history(1, 20, change...)
			if lost != "" {
				l.uncountAll(lost)
				l.lose("events", lost)
			}
			a := &Auditor{ClickHouse: l.pool, Log: &Log{Kafka: l.kafka, Topic: topic, Group: group}, Logger: slog.New(slog.DiscardHandler),
				Every: time.Minute, Look: time.Hour, calm: time.Nanosecond}
			a.once(t.Context())
			if got := a.missing.Load(); got != missing || a.extra.Load() > 0 || a.lastSuccess.Load() == 0 {
				t.Errorf("%d missing, %d extra; want %d and 0", got, a.extra.Load(), missing)
			}
		})
	}
	old := func(_ int, ev *codec.Event) { ev.ReceivedAt -= 72 * time.Hour.Milliseconds() } // as of a letter
	f("whole", "", 0)
	f("whole, of other times", "", 0, old)
	f("empty", "1", 60)
	f("tail", "_offset >= 40", 20)
	f("tail, of another time", "_offset >= 40", 20, old)
	f("head", "_offset < 20", 20)
	f("head, of another time", "_offset < 20", 20, old)
	f("middle", "_offset BETWEEN 20 AND 39", 20)
	f("middle, of other times", "_offset BETWEEN 20 AND 39", 20, old)
}

// The rows of an idle partition expire, and its last record stays in the log: nothing is lost.
func TestGroupPastWhatHasExpired(t *testing.T) {
	t.Parallel()
	f := func(name string, age time.Duration, comment, want string) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			at := time.Now().Add(-age)
			records := l.records(20, func(_ int, ev *codec.Event) { ev.Timestamp, ev.ReceivedAt = at.UnixMilli(), at.UnixMilli() })
			for _, r := range records {
				r.Timestamp = at
			}
			l.append(records)
			s := l.start()
			l.settled()
			s.stop()
			l.ttlOf(20*24*time.Hour, 24*time.Hour)
			l.exec("ALTER TABLE events MODIFY COMMENT '" + comment + "'")
			l.exec("TRUNCATE TABLE events")
			log := new(errorLog)
			s = l.start(func(c *Config) { c.Logger = slog.New(log) })
			l.produce(20)
			l.settled()
			s.stop()
			if got := strings.Join(log.lines, "\n"); !strings.HasSuffix(got, want) || (got == "") != (want == "") {
				t.Errorf("logged %q; want %q", got, want)
			}
		})
	}
	const known = "TTL set at 1600000000, ages up to 86400"
	f("expired", 30*24*time.Hour, known, "")
	f("lost", 10*24*time.Hour, known, "partition=0 first=0 last=19")
	f("nobody knows", 10*24*time.Hour, "TTL set at 1600000000", "")
}
