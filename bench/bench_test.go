//go:build linux

package main

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"edge/bench/chart"
	"edge/bench/ledger"
	"edge/internal/codec"
)

func TestGrowthIsAgainstTheHighest(t *testing.T) {
	f := func(word, measured, ratio string, costs ...float64) {
		t.Helper()
		g, s := newGrown("things"), new(section)
		for i, c := range costs {
			g.add(i, sample{CPU: map[string]float64{"server": c}})
		}
		g.finish(s, "things", "things", flat)
		if got := s.Goals[0]; got.Verdict != word || got.Ratio != ratio || !strings.HasPrefix(got.Measured, measured) {
			t.Errorf("%v: got %+v; want %s, %s, %s", costs, got, word, measured, ratio)
		}
	}
	f("met", "1.00 → 1.20 µs/event;", "1.20x", 1, 1.1, 1.2)
	f("missed", "1.00 → 1.10 µs/event, 2.00 at 1;", "2.00x", 1, 2, 1.1)
	f("met", "2.00 → 1.00 µs/event;", "0.50x", 2, 1)
	f("met", "2.00 → 2.00 µs/event;", "1.00x", 2)
}

func TestMedianAndQuantile(t *testing.T) {
	f := func(v []float64, want float64) {
		t.Helper()
		before := slices.Clone(v)
		if got := median(v); got != want || !slices.Equal(v, before) {
			t.Errorf("median of %v: got %v; want %v, and the order left alone", before, got, want)
		}
	}
	f(nil, 0)
	f([]float64{3}, 3)
	f([]float64{9, 1, 5}, 5)
	f([]float64{4, 1, 3, 2}, 2.5)
	if got := quantile([]float64{5, 1, 4, 2, 3}, 0.99); got != 5 {
		t.Errorf("p99 of five: got %v; want the largest", got)
	}
	if !math.IsNaN(quantile(nil, 0.5)) {
		t.Error("a quantile of nothing is a number")
	}
}

func TestPeaksNameWhoseTheyAre(t *testing.T) {
	s := sample{RSS: 34e6, OthersRSS: map[string]int64{"engine": 612e6, "broker": 50e6}}
	if got, want := s.peaks(), "34 + broker 50 + engine 612"; got != want {
		t.Errorf("got %q; want %q", got, want)
	}
}

func TestFileSystemIsThatOfTheNearestMount(t *testing.T) {
	if got := fileSystem("/proc/self"); got != "proc" {
		t.Errorf("/proc/self lies on %q; want proc", got)
	}
	if got := fileSystem(t.TempDir()); got == "unknown" || got == "proc" {
		t.Errorf("a directory for temporary files lies on %q", got)
	}
}

// A rival or a limit that loses events is no ratio, and decides nothing.
func TestNoPairSaysSo(t *testing.T) {
	of := func(name string) []sample {
		return []sample{{Target: name, PerSecond: 100, CPU: map[string]float64{"server": 1}}}
	}
	out := &outcome{order: []string{"limit", "edge", "peer"}, limit: "limit", peer: "peer", ToPeer: 2, CPUToPeer: 0.5,
		samples: map[string][]sample{"limit": of("limit"), "edge": of("edge"), "peer": of("peer")}}
	var s section
	s.race("saturated", out, "edge")
	want := [][2]string{{noPair, noPair}, {"1", "1"}, {"0.50", "2.00"}}
	for i, row := range s.Tables[0].Rows {
		if got := [2]string(row[len(row)-2:]); got != want[i] {
			t.Errorf("%s: got %q; want %q", row[0], got, want[i])
		}
	}
	if got, want := besideSync(out), "2.00x naive sync, no pair with the limit"; got != want {
		t.Errorf("got %q; want %q", got, want)
	}
	f := func(to float64, want string) {
		t.Helper()
		if got := paired(to, to >= 2.2, false); got != want {
			t.Errorf("%v: got %s; want %s", to, got, want)
		}
	}
	f(0, noPair)
	f(2, "missed")
	f(3, "met")
}

func TestFasterNeedsBothLedgers(t *testing.T) {
	ours, theirs := &flow{visiblePerSecond: 300}, &flow{visiblePerSecond: 100}
	if got := faster(nil, ours, theirs); !slices.Equal(got, []float64{3}) {
		t.Errorf("got %v; want 3", got)
	}
	theirs.entry = ledger.Entry{Promised: 2, Found: 1}
	if got := faster(nil, ours, theirs); len(got) != 0 {
		t.Errorf("got %v of a peer that lost an event", got)
	}
}

func TestInsertRateIsBetweenFirstAndLast(t *testing.T) {
	at := func(ms int64) sight { return sight{at: time.UnixMilli(ms)} }
	if got := insertRate([]sight{at(70), at(170), at(270), at(370)}); math.Abs(got-10) > 1e-9 {
		t.Errorf("an insert each 100 ms: got %v a second; want 10", got)
	}
	if got := insertRate([]sight{at(1)}); got != 0 {
		t.Errorf("one insert: got %v a second; want 0", got)
	}
}

func TestTableIsAlignedMarkdown(t *testing.T) {
	tb := table{Header: []string{"", "µs"}}
	tb.row("edge", 1.5)
	tb.row("n", "12")
	want := "|      | µs  |\n| ---- | --- |\n| edge | 1.5 |\n| n    | 12  |\n"
	if got := tb.String(); got != want {
		t.Errorf("got\n%s; want\n%s", got, want)
	}
}

func TestCount(t *testing.T) {
	f := func(v float64, want string) {
		t.Helper()
		if got := count(v); got != want {
			t.Errorf("%v: got %s; want %s", v, got, want)
		}
	}
	f(0, "0")
	f(9999, "9999")
	f(12_345, "12.3 k")
	f(1_650_000, "1.65 M")
}

func TestVerdict(t *testing.T) {
	f := func(must, stretch bool, want string) {
		t.Helper()
		if got := verdict(must, stretch); got != want {
			t.Errorf("%v, %v: got %s; want %s", must, stretch, got, want)
		}
	}
	f(false, false, "missed")
	f(false, true, "missed")
	f(true, false, "met")
	f(true, true, "stretch")
}

func TestLevels(t *testing.T) {
	f := func(n int64, want ...int64) {
		t.Helper()
		if got := levels(n); !slices.Equal(got, want) {
			t.Errorf("%d: got %v; want %v", n, got, want)
		}
	}
	f(200_000, 200_000)
	f(1_000_000, 1_000_000)
	f(10_000_000, 1_000_000, 3_000_000, 10_000_000)
	f(100_000_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000)
}

func TestBucketsCoverTheRange(t *testing.T) {
	const hour, day = 3600, 86400
	f := func(from, to int64, want ...string) {
		t.Helper()
		if got := buckets(from, to); !slices.Equal(got, want) {
			t.Errorf("%d to %d: got %q; want %q", from, to, got, want)
		}
	}
	f(hour+60, hour+120, "width = 3600 AND at >= 3600 AND at < 7200")
	f(day-hour+5, 2*day+5, "width = 3600 AND at >= 82800 AND at < 86400", "width = 86400 AND at >= 86400 AND at < 172800")
	f(15*day+hour, 34*day-1, "width = 86400 AND at >= 1296000 AND at < 1382400", "width = 1382400 AND at >= 1382400 AND at < 2764800",
		"width = 86400 AND at >= 2764800 AND at < 2851200")
	f(0, 256*day, "width = 22118400 AND at >= 0 AND at < 22118400")
}

func TestBenchmarkLines(t *testing.T) {
	r := &results{values: map[string]map[string][]float64{}}
	for _, out := range []string{
		"goos: linux\nBenchmarkDecode/edge-2    100   200.0 ns/op  1135.00 MB/s  0 B/op  0 allocs/op\nBenchmarkDecode/encoding-json-2  10  2000 ns/op\nPASS\n",
		"BenchmarkDecode/edge-2  100  100.0 ns/op  0 allocs/op\nBenchmarkDecode/encoding-json-2  10  3000 ns/op\n",
	} {
		r.read([]byte(out))
	}
	if got := r.median("Decode/edge", "ns/op"); got != 150 {
		t.Errorf("got %v ns/op; want 150", got)
	}
	if got := r.against("Decode/encoding-json", "Decode/edge", "ns/op"); got != "20.00x" { // 10x, then 30x
		t.Errorf("got %s; want 20.00x", got)
	}
	tb := r.table("Decode", "ns/op", "allocs/op")
	if len(tb.Rows) != 2 || tb.Rows[0][0] != "edge" || tb.Rows[0][3] != "1.00x" {
		t.Errorf("got %v", tb.Rows)
	}
}

func TestPaceIsFasterOrSlower(t *testing.T) {
	f := func(slower float64, want string) {
		t.Helper()
		if got := pace(slower); got != want {
			t.Errorf("%v: got %s; want %s", slower, got, want)
		}
	}
	f(0.8, "1.2 times faster")
	f(0.77, "1.3 times faster")
	f(1.04, "as fast")
	f(2.44, "2.4 times slower")
}

func TestOptions(t *testing.T) {
	edge := filepath.Join(t.TempDir(), "edge")
	if err := os.WriteFile(edge, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	f := func(want string, env ...string) options {
		t.Helper()
		for _, name := range []string{"BENCH_QUICK", "BENCH_SECONDS", "BENCH_SOAK_SECONDS", "BENCH_ROUNDS", "BENCH_EVENTS", "BENCH_ROWS", "BENCH_STAGES", "BENCH_PIN", "BENCH_OUT"} {
			t.Setenv(name, "")
		}
		t.Setenv("BENCH_EDGE", edge)
		for i := 0; i < len(env); i += 2 {
			t.Setenv(env[i], env[i+1])
		}
		o, err := loadOptions()
		switch {
		case want == "" && err != nil:
			t.Fatalf("%v: %v", env, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%v: got %v; want an error with %q", env, err, want)
		}
		return o
	}
	if o := f(""); o.rounds != 5 || o.one != 2*time.Second || !slices.Equal(o.stages, stageNames) || len(stages) != len(stageNames) || o.out != "report" {
		t.Errorf("defaults: %+v", o)
	}
	if o := f("", "BENCH_QUICK", "1", "BENCH_EVENTS", "1_000"); o.rounds != 1 || o.events != 1000 || slices.Contains(o.stages, "decode") || o.out != filepath.Join("report", "part") {
		t.Errorf("quick: %+v", o)
	}
	if o := f("", "BENCH_STAGES", "http,bulk", "BENCH_SECONDS", "0.5", "BENCH_PIN", "1"); !slices.Equal(o.stages, []string{"http", "bulk"}) || o.one != time.Second/2 || o.serverCore() != 1 || o.out != filepath.Join("report", "part") {
		t.Errorf("chosen: %+v", o)
	}
	if o := f("", "BENCH_STAGES", "http", "BENCH_OUT", "here"); o.out != "here" {
		t.Errorf("where asked for: %+v", o)
	}
	for name, less := range map[string]string{"BENCH_ROUNDS": "4", "BENCH_SECONDS": "1", "BENCH_SOAK_SECONDS": "10", "BENCH_ROWS": "1_000_000"} {
		if o := f("", name, less); o.out != filepath.Join("report", "part") {
			t.Errorf("%s=%s goes to %s, which is that of a whole run", name, less, o.out)
		}
	}
	if o := f("", "BENCH_ROUNDS", "7", "BENCH_SECONDS", "4", "BENCH_EVENTS", "10_000_000"); o.out != "report" {
		t.Errorf("longer: %+v", o)
	}
	if o := f("", "BENCH_PIN", "1"); slices.Contains(o.stages, "ring") || !slices.Contains(o.stages, "http") || o.out != filepath.Join("report", "part") {
		t.Errorf("pinned: %+v", o)
	}
	f("sink", "BENCH_STAGES", "http,sink", "BENCH_PIN", "1")
	f("BENCH_STAGES", "BENCH_STAGES", "http,nosuch")
	f("BENCH_ROUNDS", "BENCH_ROUNDS", "many")
	f("BENCH_SECONDS", "BENCH_SECONDS", "-1")
	f("make bench", "BENCH_EDGE", filepath.Join(t.TempDir(), "none"))
}

func TestSpikeRate(t *testing.T) {
	f := func(cores int, slower float64, want int) {
		t.Helper()
		if got := spikeRate(cores, slower); got != want {
			t.Errorf("%d cores, %g times slower: got %d; want %d", cores, slower, got, want)
		}
	}
	f(2, 1, 4000)
	f(2, 2.5, steadyRate)
	f(1, 4, steadyRate) // it sustains that or fails
	f(10, 1, peakRate)
	f(64, 1, peakRate)
}

func TestOwnSpikeCanFail(t *testing.T) {
	f := func(p95, p99 time.Duration, events, refused int64, want ...string) {
		t.Helper()
		own := sample{Target: "ours", P95: p95 * time.Millisecond, P99: p99 * time.Millisecond, Events: events, Refused: refused}
		if got := crossed(&own); !slices.Equal(got, want) {
			t.Errorf("%+v: got %q; want %q", own, got, want)
		}
	}
	f(99, 199, 991, 9)
	f(100, 150, 1, 0, "ours p(95)<100")
	f(10, 200, 1, 0, "ours p(99)<200")
	f(1, 1, 99, 1, "ours failed rate<0.01")
	f(0, 0, 0, 0, "ours failed rate<0.01") // nothing was taken
}

func TestK6MayOnlyCrossThresholds(t *testing.T) {
	f := func(script string, ok bool) {
		t.Helper()
		dir := t.TempDir()
		k6 := filepath.Join(dir, "k6")
		if err := os.WriteFile(k6, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
			t.Fatal(err)
		}
		text, err := runK6(t.Context(), k6, "host:1", &options{dir: dir}, 1)
		if (err == nil) != ok || ok && string(text) != "{}" {
			t.Errorf("%q: got %s, %v", script, text, err)
		}
	}
	summary := `for a; do case $a in RESULTS=*) printf '{}' > "${a#RESULTS=}";; esac; done; `
	f(summary, true)
	f(summary+"exit 99", true)
	f(summary+"exit 107", false) // an exception
	f("exit 0", false)           // no summary
}

// The made-up events must be events, in each of the three shapes.
func TestGeneratedEventsAreEvents(t *testing.T) {
	pool := codec.NewPool(codec.Rules{})
	f := func(g *generated) {
		t.Helper()
		for _, m := range []struct {
			name     string
			requests [][]byte
			events   int
			decode   func(*codec.Batch, []byte) *codec.Error
		}{
			{"single", g.singles(20), 1, func(b *codec.Batch, body []byte) *codec.Error { return b.DecodeOne(body, time.Now()) }},
			{"lines", g.lines(3), bulkSize, func(b *codec.Batch, body []byte) *codec.Error { return b.DecodeLines(body, time.Now()) }},
			{"array", g.arrays(3), bulkSize, func(b *codec.Batch, body []byte) *codec.Error { return b.DecodeArray(body, time.Now()) }},
		} {
			for _, r := range m.requests {
				_, body, _ := strings.Cut(string(r), "\r\n\r\n")
				batch := pool.Get()
				if err := m.decode(batch, []byte(body)); err != nil || batch.Len() != m.events {
					t.Errorf("%s: %d events, want %d: %s", m.name, batch.Len(), m.events, body)
				}
				batch.Release()
			}
		}
	}
	f(newGenerated(1))
	many := newGenerated(2)
	many.names, many.withID = 10_000, true
	f(many)
	if a, b := newGenerated(3).singles(5), newGenerated(3).singles(5); !slices.EqualFunc(a, b, func(x, y []byte) bool { return len(x) == len(y) }) {
		t.Error("the same seed makes other events")
	}
}

// Ours voids the run; a rival that loses events only gets a note.
func TestTakeKeepsTheBook(t *testing.T) {
	lost := sample{Target: "x", Entry: ledger.Entry{What: "x", Where: "log", Promised: 2, Found: 1}}
	var s section
	s.take(lost, rivals)
	if len(s.Book) != 0 || len(s.Notes) != 1 {
		t.Errorf("a rival: book %v, notes %v; want a note", s.Book, s.Notes)
	}
	s.take(lost, "")
	s.goal(goal{What: "HTTP single", Verdict: "met"})
	s.void()
	if len(s.Book.Void()) != 1 || len(s.Notes) != 1 || len(s.Samples) != 2 || s.Goals[0].Verdict != "VOID" {
		t.Errorf("ours: book %v, notes %v, goals %v; want a void entry, and no verdict", s.Book, s.Notes, s.Goals)
	}
}

func TestReportIsWritten(t *testing.T) {
	s := section{Stage: "http", Title: "one event a request", Numbers: map[string]float64{"http_memory_cpu_us": 9},
		Book:   ledger.Book{{What: "run", Where: "log", Promised: 2, Found: 1}},
		Charts: []chart.Chart{{Name: "plot", Title: "a plot"}}}
	s.goal(goal{What: "HTTP single", Must: "much", Verdict: "met"})
	r := report{Sections: []section{s}, Failed: []string{"query: no engine"}}
	dir := filepath.Join(t.TempDir(), "report")
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	f := func(name string, want ...string) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(string(text), w) {
				t.Errorf("%s does not say %q:\n%s", name, w, text)
			}
		}
	}
	f("README.md", "HTTP single", "make bench BENCH_STAGES=http", "VOID", "1 void", "(plot.svg)", "query: no engine")
	f("report.json", `"http_memory_cpu_us": 9`, `"promised": 2`)
	f("plot.svg", "<svg")
}
