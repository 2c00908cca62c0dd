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
			ttl := func(d time.Duration) {
				t.Helper()
				o := clickhouse.MigrateOptions{Files: migrations.FS, Exclusive: true, TTL: d, Logger: l.log("schema")}
				if err := clickhouse.Migrate(t.Context(), l.clickhouse, o); err != nil {
					t.Fatal(err)
				}
			}
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
			ttl(40 * day)
			for _, table := range []string{"events", "events_1m", "events_users"} {
				l.exec("OPTIMIZE TABLE " + table + " FINAL")
			}
			l.none("rows past the TTL", "SELECT toString(count()) AS c FROM events HAVING count() > 0")
			l.history(1, 20, recent)
			ttl(longer)
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
