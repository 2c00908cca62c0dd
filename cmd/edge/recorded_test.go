package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"sort"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// recorded is one event of a recorded file, as far as the metrics see it.
type recorded struct {
	Name      string          `json:"event_name"`
	User      string          `json:"user_id"`
	Timestamp int64           `json:"timestamp"`
	Metadata  json.RawMessage `json:"metadata"`
}

func readRecorded(t testing.TB, path string) []recorded {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var out []recorded
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r recorded
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	if lines.Err() != nil {
		t.Fatal(lines.Err())
	}
	return out
}

// replayFile runs edge replay against in and returns what it printed.
func replayFile(t testing.TB, in *instance, path string) string {
	t.Helper()
	cfg, err := loadConfig(in.env)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := replay(&invocation{ctx: context.Background(), cfg: cfg, args: []string{path}, out: &out}); err != nil {
		t.Fatalf("replay: %v\n%s", err, out.String())
	}
	return out.String()
}

// expected counts events and users of name in [from,to) seconds.
func expected(events []recorded, name string, from, to int64) (total, users int64) {
	seen := make(map[string]struct{})
	for _, e := range events {
		if e.Name == name && e.Timestamp >= from*1000 && e.Timestamp < to*1000 {
			total++
			seen[e.User] = struct{}{}
		}
	}
	return total, int64(len(seen))
}

// uniqueError is the documented error of unique_users, relative.
const uniqueError = 0.01

func checkRange(t *testing.T, in *instance, events []recorded, name string, from, to int64) {
	t.Helper()
	got := in.metrics(name, from, to, "day")
	total, users := expected(events, name, from, to)
	if got.TotalEvents != total {
		t.Errorf("%s in [%d,%d): got %d events; want %d", name, from, to, got.TotalEvents, total)
	}
	if math.Abs(float64(got.UniqueUsers-users)) > math.Ceil(uniqueError*float64(users)) {
		t.Errorf("%s in [%d,%d): got %d users; want %d within %g", name, from, to, got.UniqueUsers, users, uniqueError)
	}
	var sum int64
	for _, g := range got.Data {
		sum += g.TotalEvents
	}
	if sum != total {
		t.Errorf("%s in [%d,%d): groups add up to %d; want %d", name, from, to, sum, total)
	}
}

// The acceptance test: real events in, exact answers out, before and after a
// restart.
func TestRecordedRetailEvents(t *testing.T) {
	path := sharedData(t, "retail_events.ndjson.gz")
	events := readRecorded(t, path)
	const want = 406_829
	if len(events) != want {
		t.Fatalf("file has %d events; want %d", len(events), want)
	}
	counts := map[string]int64{}
	first, last := int64(math.MaxInt64), int64(0)
	for _, e := range events {
		counts[e.Name]++
		first, last = min(first, e.Timestamp), max(last, e.Timestamp)
	}

	dir := t.TempDir()
	in := startEdge(t, dir)
	out := replayFile(t, in, path)
	if !strings.Contains(out, fmt.Sprintf("accepted %d, rejected 0", want)) {
		t.Errorf("replay printed %q; want %d accepted", out, want)
	}

	rng := rand.New(rand.NewPCG(1, 2))
	type span struct{ from, to int64 }
	var spans []span
	for range 20 {
		a, b := first/1000+rng.Int64N((last-first)/1000), first/1000+rng.Int64N((last-first)/1000)
		spans = append(spans, span{min(a, b), max(a, b) + 1})
	}
	check := func() {
		for _, name := range []string{"purchase", "cancellation"} {
			in.total(name, counts[name])
			checkRange(t, in, events, name, 1_200_000_000, 1_900_000_000)
			for _, s := range spans {
				checkRange(t, in, events, name, s.from, s.to)
			}
		}
	}
	check()
	in.close()
	in = startEdge(t, dir)
	check()
}

func TestRecordedGameEvents(t *testing.T) {
	path := sharedData(t, "game_events.ndjson.gz")
	events := readRecorded(t, path)
	counts := map[string]int64{}
	for _, e := range events {
		counts[e.Name]++
	}
	addr := "127.0.0.1:" + freePort(t)
	dir := t.TempDir()
	check := func(in *instance) {
		for name, n := range counts {
			in.total(name, n)
			checkRange(t, in, events, name, 1_200_000_000, 1_900_000_000)
		}
		got, want := storedMetadata(t, addr), make([]string, len(events))
		for i, e := range events {
			want[i] = fmt.Sprintf("%d %s %s %s", e.Timestamp, e.Name, e.User, e.Metadata)
		}
		sort.Strings(want)
		if len(got) != len(want) {
			t.Fatalf("got %d rows; want %d", len(got), len(want))
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("metadata is not what was sent\n got %s\nwant %s", got[i], want[i])
			}
		}
	}
	in := startEdge(t, dir, "EMBEDDED_CLICKHOUSE_LISTEN", addr)
	replayFile(t, in, path)
	check(in)
	in.close()
	check(startEdge(t, dir, "EMBEDDED_CLICKHOUSE_LISTEN", addr))
}

// storedMetadata reads every row's time, name, user and metadata, sorted.
func storedMetadata(t testing.TB, addr string) []string {
	t.Helper()
	if _, _, err := net.SplitHostPort(addr); err != nil {
		t.Fatal(err)
	}
	conn, err := ch.Dial(context.Background(), ch.Options{Address: addr, Database: "events_db"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var line proto.ColStr
	var out []string
	err = conn.Do(context.Background(), ch.Query{
		Body:   "SELECT concat(toString(toUnixTimestamp64Milli(ts)), ' ', event_name, ' ', user_id, ' ', metadata) AS line FROM events",
		Result: proto.Results{{Name: "line", Data: &line}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range line.Rows() {
				out = append(out, line.Row(i))
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(out)
	return out
}
