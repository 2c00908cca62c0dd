package sink

import (
	"testing"
	"time"

	"edge/internal/clickhouse"
	"edge/internal/codec"
	"edge/migrations"
)

// A TTL has taken rows and hours of days that stay, and then it is made longer or taken
// away: the days have nothing to be compared with, by no audit and no recovery.
func TestTTLLongerThanItWas(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	f := func(name string, longer time.Duration) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			ago := time.Now().Add(-70 * day).Truncate(day).UnixMilli()
			old := func(i int, ev *codec.Event) {
				ev.Timestamp, ev.ReceivedAt = ago+int64(i)*60_000, ago+3_600_000
			}
			late := func(_ int, ev *codec.Event) { ev.Timestamp, ev.ReceivedAt = ago, time.Now().UnixMilli() }
			recent := func(_ int, ev *codec.Event) { ev.Timestamp = time.Now().UnixMilli() - 60_000 }
			counted := func(want string) {
				t.Helper()
				l.none("days, of which "+want+" events are counted", "SELECT toString(sum(n)) AS c FROM events_users WHERE NOT by_channel AND width = 86400 AND at < now() - toIntervalDay(60) HAVING sum(n) != "+want)
			}
			l.history(2, 20, old)
			l.ttl(40 * day)
			for _, table := range []string{"events", "events_1m", "events_users"} {
				l.exec("OPTIMIZE TABLE " + table + " FINAL")
			}
			l.none("rows past the TTL", "SELECT toString(count()) AS c FROM events HAVING count() > 0")
			l.history(1, 20, recent)
			l.ttl(longer)
			l.adds()

			first := l.cluster.PartitionInfo(topic, 0).HighWatermark
			l.produce(1, late)
			l.produce(19, recent)
			l.commit(0, first, plans{{l.src(), first, first + 19}}.String()) // killed before its rows
			counted("40")
			s := l.start()
			l.settled()
			s.stop()
			counted("41")
			l.adds()

			l.commit(0, 0, "") // all is compared
			l.start()
			l.settled()
			counted("41")
			l.adds()
		})
	}
	f("longer", 300*day)
	f("none", 0)
}

// Rows of an hour ago are lost. No TTL that ever was takes what is younger than forty days,
// and that there was one until just now excuses nothing.
func TestLossBesideATTL(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for _, next := range []time.Duration{0, 300 * day, 30 * day} {
		l := newLab(t, 1)
		l.ttl(40 * day)
		l.history(3, 20, func(_ int, ev *codec.Event) { ev.Timestamp = time.Now().Add(-time.Hour).UnixMilli() })
		l.exec("ALTER TABLE events MODIFY COMMENT 'TTL set at 1700000000, first at 1600000000, rows before 1500000000 may be gone, ages up to 86400'")
		l.ttl(next)
		l.uncountAll("_offset BETWEEN 20 AND 39")
		l.lose("events", "_offset BETWEEN 20 AND 39")
		r, err := (&Audit{ClickHouse: l.pool, MaxAge: day, Log: &Log{Kafka: l.kafka, Topic: topic, Group: group}}).Run(t.Context())
		if err != nil || r.Missing() != 20 {
			t.Errorf("a TTL of %s follows, twenty rows are lost: %v\n%s", next, err, r)
		}
	}
}

// Events may be of any age once there is no TTL. That says nothing of what the one before has
// taken: rows of an hour ago are lost all the same, before it went and since.
func TestLossWhereATTLWas(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	const ever = 3650 * day
	young := func(_ int, ev *codec.Event) { ev.Timestamp = time.Now().Add(-time.Hour).UnixMilli() }
	for _, ages := range []string{", ages up to 86400", ""} {
		l := newLab(t, 1)
		l.ttlOf(40*day, day)
		l.history(2, 20, young)
		l.exec("ALTER TABLE events MODIFY COMMENT 'TTL set at 1700000000, first at 1600000000, rows before 1500000000 may be gone" + ages + "'")
		l.ttlOf(0, ever)
		lost := "20 AND 39"
		if ages == "" { // all that came before it went is excused, as it ever was
			at := time.Now().Add(2 * time.Hour)
			l.history(3, 20, func(_ int, ev *codec.Event) { young(0, ev); ev.ReceivedAt = at.UnixMilli() })
			lost = "60 AND 79"
		}
		l.ttlOf(0, ever) // as every start does
		l.uncountAll("_offset BETWEEN " + lost)
		l.lose("events", "_offset BETWEEN "+lost)
		r, err := (&Audit{ClickHouse: l.pool, MaxAge: ever, Log: &Log{Kafka: l.kafka, Topic: topic, Group: group}}).Run(t.Context())
		if err != nil || r.Missing() != 20 {
			t.Errorf("of ages%q twenty rows are lost: %v\n%s", ages, err, r)
		}
	}
}

// What a TTL takes is no loss, though MAX_AGE was longer when it came, or there was no TTL.
func TestExpiredAfterSettingsChanged(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	f := func(name string, settings func(l *lab), received, age time.Duration) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			settings(l)
			l.history(1, 20, func(_ int, ev *codec.Event) {
				ev.ReceivedAt = time.Now().Add(-received).UnixMilli()
				ev.Timestamp = time.Now().Add(-received - age).UnixMilli()
			})
			l.ttlOf(10*day, day)
			l.exec("OPTIMIZE TABLE events FINAL")
			r, err := (&Audit{ClickHouse: l.pool, MaxAge: day, Log: &Log{Kafka: l.kafka, Topic: topic, Group: group}}).Run(t.Context())
			if err != nil || !r.OK() || len(r.Partitions) > 0 && r.Partitions[0].Rows > 0 {
				t.Errorf("the TTL takes all: %v\n%s", err, r)
			}
		})
	}
	f("MAX_AGE is shorter", func(l *lab) {
		l.ttlOf(60*day, 30*day)
		l.exec("ALTER TABLE events MODIFY COMMENT 'TTL set at 1700000000, first at 1600000000, rows before 1500000000 may be gone, ages up to 2592000'")
	}, 5*day, 20*day)
	f("there was none for a while", func(l *lab) {
		l.ttlOf(60*day, day)
		l.exec("ALTER TABLE events MODIFY COMMENT 'TTL set at 1700000000, first at 1600000000, rows before 1500000000 may be gone, ages up to 86400'")
		l.ttl(0)
	}, time.Minute, 100*day)
}

// ttl has the tables keep rows for d, 0 for ever, as a start does.
func (l *lab) ttl(d time.Duration) { l.t.Helper(); l.ttlOf(d, 24*time.Hour) }

// ttlOf is ttl where events are at most so old on arrival.
func (l *lab) ttlOf(d, maxAge time.Duration) {
	l.t.Helper()
	o := clickhouse.MigrateOptions{Files: migrations.FS, Exclusive: true, TTL: d, MaxAge: maxAge, Logger: l.log("schema")}
	if err := clickhouse.Migrate(l.t.Context(), l.clickhouse, o); err != nil {
		l.t.Fatal(err)
	}
}
