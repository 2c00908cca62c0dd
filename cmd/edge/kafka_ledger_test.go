//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"

	"edge/internal/chaos"
)

// load is a few clients that keep sending, and the ledger of what they were
// promised. An event is entered before its client sends the next one, and in
// the test's process, which nobody kills: so the ledger knows of every 202.
//
// Each event has a user of its own, by which it is found again. Three clients
// give their events ids and repeat a request until it is accepted, as an SDK
// does; the fourth has no ids and sends everything once.
type load struct {
	t    testing.TB
	addr string
	stop func()
	wg   sync.WaitGroup

	mu       sync.Mutex
	accepted map[string]bool
	unknown  map[string]bool // sent once and not accepted: stored or not
	repeats  int             // requests sent again though they had been accepted
	retries  int             // requests sent again because they had not been
}

// pace is how often a client sends: with the bulks about 4,000 events a second
// altogether, which leaves two cores room for a broker and a database.
const pace = 10 * time.Millisecond

func startLoad(t testing.TB, addr string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{t: t, addr: addr, accepted: make(map[string]bool), unknown: make(map[string]bool)}
	for i, client := range []func(context.Context, int, *time.Ticker){l.bulks, l.bulks, l.singles, l.anonymous} {
		l.wg.Go(func() {
			tick := time.NewTicker(pace)
			defer tick.Stop()
			client(ctx, i, tick)
		})
	}
	l.stop = func() { cancel(); l.wg.Wait() }
	t.Cleanup(l.stop)
	return l
}

func (l *load) bulks(ctx context.Context, client int, tick *time.Ticker) {
	const size = 20
	for n := 0; ctx.Err() == nil; n += size {
		var body []byte
		var users []string
		for i := range size {
			user := fmt.Sprintf("bulk%d-%d", client, n+i)
			// One client has UUIDs, the other text that becomes one.
			id := user
			if client == 1 {
				id = uuid.NewSHA1(uuid.Nil, []byte(user)).String()
			}
			users = append(users, user)
			body = append(append(body, line(user, id, n+i)...), '\n')
		}
		l.until202("/events/bulk", "application/x-ndjson", body, users, tick)
	}
}

func (l *load) singles(ctx context.Context, client int, tick *time.Ticker) {
	for n := 0; ctx.Err() == nil; n++ {
		user := fmt.Sprintf("single%d-%d", client, n)
		body := line(user, user, n)
		l.until202("/events", "application/json", body, []string{user}, tick)
		if n%4 == 0 { // its answer got lost, thinks the client
			l.until202("/events", "application/json", body, nil, tick)
			l.mu.Lock()
			l.repeats++
			l.mu.Unlock()
		}
	}
}

func (l *load) anonymous(ctx context.Context, client int, tick *time.Ticker) {
	for n := 0; ctx.Err() == nil; n++ {
		<-tick.C
		user := fmt.Sprintf("anonymous%d-%d", client, n)
		_, err := request(http.MethodPost, "http://"+l.addr+"/events", "application/json", line(user, "", n), http.StatusAccepted)
		l.mu.Lock()
		if err == nil {
			l.accepted[user] = true
		} else {
			l.unknown[user] = true
		}
		l.mu.Unlock()
	}
}

// line is the nth event of a client. Most happened within two hours, which are
// many cells of the rollups; some 40 days ago, which is another part.
func line(user, id string, n int) []byte {
	at := time.Now().Add(-time.Duration(n*7919%7_200_000) * time.Millisecond)
	if n%50 == 0 {
		at = at.Add(-40 * 24 * time.Hour)
	}
	e := map[string]any{
		"event_name": []string{"view", "cart", "purchase"}[n%3], "channel": []string{"web", "mobile", ""}[n/3%3],
		"user_id": user, "timestamp": at.UnixMilli(), "campaign_id": "autumn", "tags": []string{"a", "b"}, "metadata": map[string]int{"n": n},
	}
	if id != "" {
		e["event_id"] = id
	}
	text, err := json.Marshal(e)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return text
}

func (l *load) until202(path, contentType string, body []byte, users []string, tick *time.Ticker) {
	deadline := time.Now().Add(2 * time.Minute)
	for {
		<-tick.C
		_, err := request(http.MethodPost, "http://"+l.addr+path, contentType, body, http.StatusAccepted)
		l.mu.Lock()
		if err != nil {
			l.retries++
		} else {
			for _, u := range users {
				l.accepted[u] = true
			}
		}
		l.mu.Unlock()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.t.Errorf("not accepted for two minutes: %v", err)
			return
		}
	}
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.accepted)
}

// more waits until n more events have been accepted and returns how long the
// first of them took.
func (l *load) more(n int) (first time.Duration) {
	l.t.Helper()
	start := l.count()
	first = within(l.t, time.Minute, "events are accepted", func() error { return atLeast(l.count(), start+1) })
	within(l.t, time.Minute, fmt.Sprintf("%d events are accepted", n), func() error { return atLeast(l.count(), start+n) })
	return first
}

func atLeast(got, want int) error {
	if got < want {
		return fmt.Errorf("got %d; want %d", got, want)
	}
	return nil
}

// query returns the rows of an answer with the one column s.
func (c *cluster) query(database, sql string) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := ch.Dial(ctx, ch.Options{Address: "127.0.0.1:" + c.enginePort, Database: database})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var col proto.ColStr
	var out []string
	err = conn.Do(ctx, ch.Query{
		Body:   "SELECT toString(s) AS s FROM (" + sql + ")",
		Result: proto.Results{{Name: "s", Data: &col}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range col.Rows() {
				out = append(out, col.Row(i))
			}
			return nil
		},
	})
	return out, err
}

func (n *tenant) stored(sql string) []string {
	n.t.Helper()
	rows, err := n.query(n.name, sql)
	if err != nil {
		n.t.Fatalf("%s: %v", sql, err)
	}
	return rows
}

// settled waits until the group has nothing left to store: every offset is
// committed and no plan is open.
func (n *tenant) settled() time.Duration {
	n.t.Helper()
	group := n.name + "-sink"
	return within(n.t, 2*time.Minute, "everything is stored", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		ends, err := n.admin.ListEndOffsets(ctx, n.name)
		if err != nil {
			return err
		}
		commits, err := n.admin.FetchOffsets(ctx, group)
		if err != nil {
			return err
		}
		var behind error
		ends.Each(func(end kadm.ListedOffset) {
			at, ok := commits.Lookup(n.name, end.Partition)
			switch {
			case end.Err != nil:
				behind = end.Err
			case end.Offset == 0:
			case !ok || at.At != end.Offset || at.Metadata != "":
				behind = fmt.Errorf("partition %d: committed %d %q, end %d", end.Partition, at.At, at.Metadata, end.Offset)
			}
		})
		return behind
	})
}

// balance holds what is stored against the ledger.
func (n *tenant) balance(l *load) {
	n.t.Helper()
	l.stop()
	caughtUp := n.settled()
	lost, duplicated, strangers, maybe := 0, 0, 0, 0
	left := make(map[string]bool, len(l.accepted))
	for user := range l.accepted {
		left[user] = true
	}
	rows := n.stored("SELECT concat(user_id, ' ', toString(count())) AS s FROM events GROUP BY user_id")
	for _, row := range rows {
		user, times, _ := strings.Cut(row, " ")
		if times != "1" {
			duplicated++
			n.t.Errorf("%s is stored %s times", user, times)
		}
		switch {
		case l.accepted[user]:
			delete(left, user)
		case l.unknown[user]:
			maybe++
		default:
			strangers++
		}
	}
	for user := range left {
		if lost++; lost <= 10 {
			n.t.Errorf("%s was accepted and is not stored", user)
		}
	}
	if strangers > 0 {
		n.t.Errorf("%d events are stored that nobody sent", strangers)
	}
	n.checkRollups()
	n.t.Logf("accepted %d, stored %d = accepted + %d of %d without an answer; lost %d, duplicated %d; %d deliberate repeats, %d retries; caught up in %s",
		len(l.accepted), len(rows), maybe, len(l.unknown), lost, duplicated, l.repeats, l.retries, short(caughtUp))
	chaos.Report(n.t, chaos.Result{Fault: "Kafka: " + strings.ReplaceAll(path.Base(n.t.Name()), "_", " "), Rounds: n.rounds,
		Accepted: len(l.accepted), Lost: lost, Duplicated: duplicated, Worst: n.worst})
}

// checkRollups wants every cell of every rollup to be what the rows say, and
// every row to be of another record.
func (n *tenant) checkRollups() {
	n.t.Helper()
	type rollup struct{ table, key, cell, channel string }
	rollups := []rollup{
		{"events_1m", "m", "toStartOfMinute(ts)", "channel"},
	}
	for _, width := range []int{300, 3600, 86400, 1382400, 22118400} {
		cell := fmt.Sprintf("intDiv(toUnixTimestamp(ts), %[1]d) * %[1]d", width)
		rollups = append(rollups, rollup{fmt.Sprint("events_users WHERE by_channel = 0 AND width = ", width), "at", cell, "''"},
			rollup{fmt.Sprint("events_users WHERE by_channel = 1 AND width = ", width), "at", cell, "channel"})
	}
	for _, r := range rollups {
		cell := "toUInt32(toDateTime(%s, 'UTC')) AS cell, toString(event_name) AS name, toString(" + r.channel + ") AS ch"
		rollup := fmt.Sprintf("SELECT "+cell+", sum(n) FROM %s GROUP BY ALL HAVING sum(n) != 0", r.key, r.table)
		raw := fmt.Sprintf("SELECT "+cell+", toInt64(count()) FROM events GROUP BY ALL", r.cell)
		for _, wrong := range n.stored("SELECT tuple(*) AS s FROM ((" + rollup + ") EXCEPT (" + raw + "))") {
			n.t.Errorf("%s has %s, which the rows do not say", r.table, wrong)
		}
		for _, missing := range n.stored("SELECT tuple(*) AS s FROM ((" + raw + ") EXCEPT (" + rollup + "))") {
			n.t.Errorf("rows say %s, which %s has not", missing, r.table)
		}
		if r.table == "events_1m" {
			continue
		}
		// At exactly 512 users a state is a set or already a sketch.
		for _, wrong := range n.stored(fmt.Sprintf("SELECT (cell, name, ch, x, y) AS s"+
			" FROM (SELECT "+cell+", toInt64(uniqCombined64Merge(14)(u)) AS x FROM %s GROUP BY ALL) AS a"+
			" FULL JOIN (SELECT "+cell+", toInt64(uniqCombined64(14)(user_id)) AS y FROM events GROUP BY ALL) AS b USING (cell, name, ch)"+
			" WHERE x != y AND NOT ((x = 512 OR y = 512) AND abs(x - y) < 26)", r.key, r.table, r.cell)) {
			n.t.Errorf("users of a cell of %s, there and in the rows: %s", r.table, wrong)
		}
	}
	if twice := n.stored("SELECT tuple(_src, _part, _offset) AS s FROM events GROUP BY _src, _part, _offset HAVING count() > 1"); len(twice) > 0 {
		n.t.Errorf("records stored more than once: %v", twice)
	}
}

// progress waits until events that are accepted now are being stored.
func (n *tenant) progress() time.Duration {
	n.t.Helper()
	start := -1
	return within(n.t, time.Minute, "rows are stored", func() error {
		rows, err := n.query(n.name, "SELECT count() AS s FROM events")
		if err != nil || len(rows) != 1 {
			return errors.Join(err, fmt.Errorf("count: %v", rows))
		}
		count, err := strconv.Atoi(rows[0])
		if err != nil {
			return err
		}
		if start < 0 {
			start = count
		}
		return atLeast(count, start+1)
	})
}

func (l *load) retried() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.retries
}

func span(d []time.Duration) string {
	return fmt.Sprintf("%s to %s", short(slices.Min(d)), short(slices.Max(d)))
}

func short(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }
