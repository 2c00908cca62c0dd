package sink

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// exact checks the promise: events holds what the ledger says, every rollup is
// the sum of events, and the batches account for every offset.
func (l *lab) exact() {
	l.t.Helper()
	l.rawIsLedger()
	l.rollupsAreRaw()
	l.batchesAddUp()
}

func (l *lab) rawIsLedger() {
	l.t.Helper()
	var (
		part          proto.ColUInt32
		offset        proto.ColUInt64
		name, channel proto.ColStr
		user          proto.ColStr
		ms            proto.ColInt64
	)
	got := make(map[place]row)
	twice := 0
	err := l.pool.Do(context.Background(), ch.Query{
		Body: `SELECT _part, _offset, CAST(event_name AS String) AS name, CAST(channel AS String) AS channel, user_id, toUnixTimestamp64Milli(ts) AS ms FROM events`,
		Result: proto.Results{{Name: "_part", Data: &part}, {Name: "_offset", Data: &offset}, {Name: "name", Data: &name},
			{Name: "channel", Data: &channel}, {Name: "user_id", Data: &user}, {Name: "ms", Data: &ms}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range offset {
				at := place{int32(part[i]), int64(offset[i])}
				if _, ok := got[at]; ok {
					twice++
				}
				got[at] = row{name.Row(i), channel.Row(i), user.Row(i), ms[i]}
			}
			return nil
		},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var missing, wrong, extra []place
	for at, want := range l.ledger {
		switch have, ok := got[at]; {
		case !ok:
			missing = append(missing, at)
		case have != want:
			wrong = append(wrong, at)
		}
		delete(got, at)
	}
	for at := range got {
		extra = append(extra, at)
	}
	if twice+len(missing)+len(wrong)+len(extra) > 0 {
		l.t.Errorf("events against the ledger of %d: %d stored twice, %d missing %s, %d wrong %s, %d not in the ledger %s",
			len(l.ledger), twice, len(missing), some(missing), len(wrong), some(wrong), len(extra), some(extra))
	}
}

func some(places []place) string {
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.partition, b.partition), cmp.Compare(a.offset, b.offset))
	})
	return fmt.Sprint(places[:min(len(places), 5)])
}

// rollupsAreRaw compares every bucket of every rollup with the rows.
func (l *lab) rollupsAreRaw() {
	l.t.Helper()
	type rollup struct{ table, key, cell, channel, where string }
	rollups := []rollup{{"events_1m", "m", "toStartOfMinute(ts)", "channel", "1"}}
	for _, width := range widths {
		for _, byChannel := range []bool{true, false} {
			b := bucket{width, byChannel}
			rollups = append(rollups, rollup{"events_users", "at", floor("ts", width), b.channel(), b.is()})
		}
	}
	for _, r := range rollups {
		// events_1m knows no users.
		users, rolledUsers := "uniqCombined64(14)(user_id)", "uniqCombined64Merge(14)(u)"
		if r.table == "events_1m" {
			users, rolledUsers = "0", "0"
		}
		l.none(r.table+" where "+r.where+" against events", fmt.Sprintf(`SELECT format('{} {} {}: {} rows, {} counted, {} users, {} counted', toString(cell), event_name, ch, toString(rows), toString(counted), toString(x), toString(y)) FROM (
			SELECT toDateTime(%s, 'UTC') AS cell, event_name, toString(%s) AS ch, count() AS rows, %s AS x FROM events GROUP BY cell, event_name, ch) AS a FULL JOIN (
			SELECT toDateTime(%s, 'UTC') AS cell, event_name, toString(%s) AS ch, sum(n) AS counted, %s AS y FROM %s WHERE %s GROUP BY cell, event_name, ch) AS b
			USING (cell, event_name, ch) WHERE rows != counted OR x != y AND NOT ((x = %[9]d OR y = %[9]d) AND abs(toInt64(x) - toInt64(y)) <= %[9]d / 20)`,
			r.cell, r.channel, users, r.key, r.channel, rolledUsers, r.table, r.where, exactUsers))
	}
}

// batchesAddUp checks the columns that name the batch of a row.
func (l *lab) batchesAddUp() {
	l.t.Helper()
	l.none("batches", `SELECT concat(toString(_part), ':[', toString(_first), ',', toString(_last), '] ', toString(c), ' rows') FROM (
		SELECT _src, _part, _first, _last, count() AS c, uniqExact(_rows, _dup, _dead) AS kinds, any(_rows) AS r, any(_dup) AS du, any(_dead) AS de,
			min(_offset) AS lo, max(_offset) AS hi
		FROM events GROUP BY _src, _part, _first, _last
		HAVING kinds != 1 OR r != c OR r + du + de != _last - _first + 1 OR lo < _first OR hi > _last)`)
	l.none("overlapping batches", `SELECT concat(toString(_part), ':[', toString(_first), ',', toString(_last), '] before ', toString(next)) FROM (
		SELECT _src, _part, _first, _last, leadInFrame(_first, 1, _last + 1) OVER (PARTITION BY _src, _part ORDER BY _first ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS next
		FROM (SELECT DISTINCT _src, _part, _first, _last FROM events)) WHERE next <= _last`)
}

// none wants a query of one String column to answer nothing. The engine is not to
// compile it: many an engine of these tests lives for a handful of queries.
func (l *lab) none(what, sql string) {
	l.t.Helper()
	got, err := l.pool.Strings(context.Background(), sql+" SETTINGS compile_expressions = 0, compile_aggregate_expressions = 0, max_threads = 1")
	if err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
	if len(got) > 0 {
		l.t.Errorf("%s: %d differ: %s", what, len(got), strings.Join(got[:min(len(got), 5)], "; "))
	}
}

// adds fails the test unless an audit of all, as edge verify makes it, has nothing to say.
func (l *lab) adds() {
	l.t.Helper()
	r, err := (&Audit{ClickHouse: l.pool, MaxAge: testMaxAge, Log: &Log{Kafka: l.kafka, Topic: topic, Group: group}}).Run(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	if !r.OK() || r.Pending > 0 {
		l.t.Errorf("an audit finds\n%s", r)
	}
}

// testMaxAge is for audits beside a TTL.
const testMaxAge = 30 * 24 * time.Hour
