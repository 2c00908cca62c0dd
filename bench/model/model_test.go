package model

import (
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// easy costs, to be checked by head: one core carries a million events a second
// of bulks at the edge, and 100,000 of singles.
var easy = Costs{Commit: "abc", CPU: "a CPU", Cores: 2, Edge: 1, Single: 10, Broker: 0.5, BrokerSingle: 6, BrokerRead: 0.1, Sink: 1, Engine: 2, Insert: 1.25,
	Body: 250, Topic: 100, Stored: 50, Partition: 500_000, SinkRate: 400_000}

var shape = Shape{EdgeCores: 4, SinkCores: 1, BrokerCores: 4, ShardCores: 10, Inserts: 2, Load: 0.5, Singles: 0, LogCopies: 3, TableCopies: 2, BrokerDisk: 100e6, Network: 10e9,
	LogDays: 2, TableDays: 10, CoreHour: 0.1, TBMonth: 50}

func TestPlan(t *testing.T) {
	f := func(rate float64, edges, partitions, brokers, sinks, shards int) {
		t.Helper()
		p := easy.For(rate, shape)
		if got, want := [5]int{p.Edges, p.Partitions, p.Brokers, p.Sinks, p.Shards}, [5]int{edges, partitions, brokers, sinks, shards}; got != want {
			t.Errorf("%g/s: got %v edges, partitions, brokers, sinks, shards; want %v", rate, got, want)
		}
	}
	// 20 k: a fiftieth of everything; two partitions, so that a second sink helps,
	// and a broker for each copy of the log.
	f(20_000, 1, 2, 3, 1, 1)
	// 1 M: one edge of 4 cores at half load carries 2 M; a partition 250 k; a sink of
	// one core 500 k; a shard of 10 cores at half load 2.5 M.
	f(1_000_000, 1, 4, 3, 2, 1)
	// 10 M: brokers write 10 M × 100 B × 3 = 3 GB/s, 100 MB/s each.
	f(10_000_000, 5, 40, 30, 20, 4)
}

func TestLimits(t *testing.T) {
	f := func(change func(*Costs, *Shape), want Limits) {
		t.Helper()
		c, s := easy, shape
		change(&c, &s)
		if got := c.Limits(s); got != want {
			t.Errorf("got %+v; want %+v", got, want)
		}
	}
	usual := Limits{Edge: 2e6, Sink: 500e3, Partition: 250e3, Broker: 1e6, Node: 2.5e6}
	f(func(*Costs, *Shape) {}, usual)
	// A second core takes a sink to its two inserts, 0.5 × 2 of 1.25 µs, and no further.
	sink := usual
	sink.Sink = 800e3
	f(func(_ *Costs, s *Shape) { s.SinkCores = 2 }, sink)
	f(func(_ *Costs, s *Shape) { s.SinkCores = 16 }, sink)
	// What it was seen to carry, beside others on two cores, is no limit.
	f(func(c *Costs, _ *Shape) { c.SinkRate = 100e3 }, usual)
	// A broker with all the disk it wants ends at its processor, 0.5 × 4 of 0.5 µs
	// and of a third of the 0.1 that reading takes.
	broker := usual
	broker.Broker = 3.75e6
	f(func(_ *Costs, s *Shape) { s.BrokerDisk = 1e12 }, broker)
	// A card of 1 Gbit/s, half used: 62.5 MB/s are 250 k events of 250 bytes, 625 k of 100.
	f(func(_ *Costs, s *Shape) { s.Network = 1e9 }, Limits{Edge: 250e3, Sink: 250e3, Partition: 250e3, Broker: 625e3, Node: 250e3})
}

func TestBytes(t *testing.T) {
	p := easy.For(1_000_000, shape)
	f := func(name string, got, want float64) {
		t.Helper()
		if math.Abs(got/want-1) > 1e-9 {
			t.Errorf("%s: got %g; want %g", name, got, want)
		}
	}
	f("log, TB a day", p.TopicDay, 25.9) // 100e6 × 86400 × 3
	f("tables, TB a day", p.DiskDay, 8.64)
	f("clients", p.Traffic.Clients, 2e9)
	f("produced", p.Traffic.Produced, 800e6)
	f("copied", p.Traffic.Copied, 1.6e9)
	f("consumed", p.Traffic.Consumed, 800e6)
	f("inserted", p.Traffic.Inserted, 2e9)
	f("fetched", p.Traffic.Fetched, 400e6)
	f("busiest card", p.Card(), 2e9) // of the one edge, and of a node that gets all inserts
}

func TestPrice(t *testing.T) {
	p := easy.For(1_000_000, shape)
	f := func(name string, got, want float64) {
		t.Helper()
		if math.Abs(got/want-1) > 1e-9 {
			t.Errorf("%s: got %g; want %g", name, got, want)
		}
	}
	// An edge and three brokers of four cores, two sinks of one, two nodes of ten.
	f("cores", p.CoresMonth, 2770) // 38 × 730 × 0.1, of three digits
	f("log", p.LogMonth, 2590)     // 25.9 TB a day, two days
	f("tables", p.TablesMonth, 4320)
	f("together", p.Month(), 9680)
	f("a million events", p.PerMillion(), 0.00368) // of 2628
}

func TestSinglesCostMore(t *testing.T) {
	mixed := shape
	mixed.Singles, mixed.BrokerDisk = 0.5, 1e12
	// Half at 1 µs and half at 10: two cores of 5.5. Half at 0.5 and half at 6: of 3.25,
	// and 0.03 for reading.
	if got := easy.Limits(mixed); got.Edge != 364e3 || got.Broker != 610e3 {
		t.Errorf("half singles: an edge carries %g, a broker %g; want 364 k, 610 k", got.Edge, got.Broker)
	}
}

// TestBrokersHoldTheCopies: no two copies of the log lie on one broker, at whatever rate.
func TestBrokersHoldTheCopies(t *testing.T) {
	f := func(copies, want int) {
		t.Helper()
		s := shape
		s.LogCopies = copies
		for _, rate := range []float64{1, 20e3, 300e3} {
			if got := easy.For(rate, s).Brokers; got != want {
				t.Errorf("%d copies at %g/s: %d brokers; want %d", copies, rate, got, want)
			}
		}
	}
	f(1, 1)
	f(3, 3)
}

// whole is a report with all that the model takes.
const whole = `{"machine":{"commit":"abc","cpu":"a CPU","cores":2},"sections":[{"numbers":{"bulk_NDJSON_cpu_us":0.80049,"bulk_NDJSON_broker_cpu_us":0.2,
	"bulk_NDJSON_per_second":1960182.8,"body_bytes":225,"topic_bytes":57.53,"http_broker_cpu_us":7}},{"numbers":{"sink_cpu_us":0.5,"sink_engine_cpu_us":1.3,"sink_broker_cpu_us":0.1,
	"sink_per_second":1e6,"steady_engine_cpu_us":3,"steady_stored_bytes":56}},{"tables":[{"header":["","events/s","server µs/event","broker"],
	"rows":[["edge ACK=broker","69.4 k","11.0","4.2"],["edge at half load","34.6 k","19.02","13.83"],[]]}]},{}]}`

func TestFromReport(t *testing.T) {
	c, err := FromReport(strings.NewReader(whole))
	if err != nil {
		t.Fatal(err)
	}
	want := Costs{Commit: "abc", CPU: "a CPU", Cores: 2, Edge: 0.8, Single: 19, Broker: 0.2, BrokerSingle: 13.8, BrokerRead: 0.1, Sink: 0.5, Engine: 3, Insert: 1.3,
		Body: 225, Topic: 57.5, Stored: 56, Partition: 1.96e6, SinkRate: 1e6}
	if c != want {
		t.Errorf("got %+v; want %+v", c, want)
	}
	f := func(report, want string) {
		t.Helper()
		if _, err := FromReport(strings.NewReader(report)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v; want %s", err, want)
		}
	}
	f("no report", "read the report")
	f(strings.Replace(whole, "sink_cpu_us", "sink_cpu_ms", 1), "no sink_cpu_us")
	f("{}", "no body_bytes\nthe report has no bulk_NDJSON_broker_cpu_us\n") // in one order
	f(strings.Replace(whole, `"abc"`, `"abc-dirty"`, 1), "abc-dirty, which is no commit")
	f(strings.Replace(whole, "{", `{"failed":["query: no engine"],`, 1), "a stage failed: query: no engine")
	f(strings.Replace(whole, `,{}]`, `,{"goals":[{"what":"decode","verdict":"met"},{"what":"sink","verdict":"VOID"}]}]`, 1), "sink is VOID")
	f(strings.Replace(whole, "at half load", "at full load", 1), `no row "edge at half load"`)
	f(`{"sections":[{"tables":[{"header":["","broker"],"rows":[["edge at half load","1"]]}]}]}`, `no column "server µs/event"`)
	f(`{"sections":[{"tables":[{"header":["","server µs/event","broker"],"rows":[["edge at half load","1",""]]}]}]}`, `"broker" of the row`)
}

func TestSaveAndLoad(t *testing.T) {
	text, err := easy.Save()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Load(strings.NewReader(string(text)))
	if err != nil || got != easy {
		t.Errorf("got %+v, %v; want %+v", got, err, easy)
	}
	if _, err := Load(strings.NewReader(`{"edge_ms":1}`)); err == nil {
		t.Error("a cost that is none was taken")
	}
	if _, err := Load(strings.NewReader("{}")); err == nil {
		t.Error("no costs were taken for costs")
	}
}

func TestInto(t *testing.T) {
	got, err := Into([]byte("a\n"+begin+"old\n"+end+"b\n"), "new\n")
	if want := "a\n" + begin + "\nnew\n\n" + end + "b\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	for _, document := range []string{"a\n", begin, end + begin} {
		if _, err := Into([]byte(document), "new\n"); err == nil {
			t.Errorf("%q: no error", document)
		}
	}
}

// TestFirst: two that end within what runs differ by are both named.
func TestFirst(t *testing.T) {
	f := func(l Limits, want string) {
		t.Helper()
		if got := l.first(); !strings.Contains(got, want) {
			t.Errorf("%+v: got %q; want %q", l, got, want)
		}
	}
	f(Limits{Edge: 2e6, Sink: 1e6, Broker: 4e6, Node: 3e6}, "is the sink at 1 M.")
	f(Limits{Edge: 1e6, Sink: 1.1e6, Broker: 4e6, Node: 3e6}, "are the edge at 1 M and the sink at 1.1 M,")
}

// TestDesignIsOfTheCosts: DESIGN.md has what the model makes of costs.json, and both are of
// the run of docs/performance.md. make bench-model writes them.
func TestDesignIsOfTheCosts(t *testing.T) {
	c := committed(t)
	design := read(t, "../../DESIGN.md")
	want, err := Into([]byte(design), Text(c, Usual))
	if err != nil {
		t.Fatal(err)
	}
	if design != string(want) {
		t.Errorf("DESIGN.md differs from what costs.json makes, which is\n%s", Text(c, Usual))
	}
	if run := "(commit " + c.Commit + ")"; !strings.Contains(read(t, "../../docs/performance.md"), run) {
		t.Errorf("docs/performance.md is not of the run of costs.json, %s", run)
	}
}

// TestByHand does the sums again with nothing but what is printed.
func TestByHand(t *testing.T) {
	c := committed(t)
	for _, times := range []float64{1, 0.61, 1.37, 2.3} {
		dearer := c
		for _, v := range dearer.figures() {
			*v = round(*v * times)
		}
		byHand(t, Text(dearer, Usual))
	}
}

func byHand(t *testing.T, text string) {
	t.Helper()
	limit := func(part string) float64 { return printed(t, text, `(?m)^\| `+part+` \|.*?\| ([\d.]+ [kM])[ ,|]`) }
	edge, sink, broker, node, partition := limit("edge"), limit("sink"), limit("broker, for one copy"), limit("ClickHouse node"), printed(t, text, `(?m)^\| partition \|.*?([\d.]+ [kM]) \|`)
	bulk, alone := printed(t, text, `\| edge \| ([\d.]+) µs`), printed(t, text, `\| edge \| [\d.]+ µs \| ([\d.]+) µs`)
	if by := round(4 * 0.6e6 / round(0.9*bulk+0.1*alone)); by != edge {
		t.Errorf("an edge carries %g by what is printed, and %g is printed", by, edge)
	}
	appended, appendedAlone := printed(t, text, `\| broker, each copy \| ([\d.]+) µs`), printed(t, text, `\| broker, each copy \| [\d.]+ µs \| ([\d.]+) µs`)
	read, inLog, inTables := printed(t, text, `\| broker, as the sinks read it \| ([\d.]+) µs`), printed(t, text, `([\d.]+) in the log`), printed(t, text, `([\d.]+) in the tables`)
	if by := round(min(8*0.6e6/round(0.9*appended+0.1*appendedAlone+read/3), 300e6/inLog)); by != broker {
		t.Errorf("a broker carries %g by what is printed, and %g is printed", by, broker)
	}
	insert := printed(t, text, `2 inserts of ([\d.]+) µs`)
	own := printed(t, text, `\| sink \| ([\d.]+) µs`)
	if by := round(0.6e6 * min(2/insert, 1/own)); by != sink {
		t.Errorf("a sink carries %g by what is printed, and %g is printed", by, sink)
	}
	f := func(name string, got, want float64) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %g by what is printed, and %g is printed", name, want, got)
		}
	}
	for _, perSecond := range Rates {
		row := cells(t, text, rate(perSecond), "events/s")
		f("edges", row[1], math.Ceil(perSecond/edge))
		f("brokers", row[3], max(math.Ceil(3*perSecond/broker), 3))
		f("sinks", row[4], math.Ceil(perSecond/sink))
		f("partitions", row[2], max(math.Ceil(perSecond/partition), 2*row[4]))
		f("shards", row[5], math.Ceil(perSecond/node))
		f("cores", row[6], row[1]*4+row[3]*8+row[4]+row[5]*2*16)
		f("log a day", row[7], round(perSecond*inLog*3*86400/1e12))
		f("tables a day", row[8], round(perSecond*inTables*2*86400/1e12))
		bill := cells(t, text, rate(perSecond), "a month at")
		f("price of cores", bill[1], round(row[6]*730*0.04))
		f("price of the log", bill[2], round(row[7]*7*80))
		f("price of the tables", bill[3], round(row[8]*30*80))
		f("price", bill[4], round(bill[1]+bill[2]+bill[3]))
		f("price of a million", bill[5], round(bill[4]/(perSecond*730*3600/1e6)))
	}
}

// printed is the number that pattern finds in text.
func printed(t *testing.T, text, pattern string) float64 {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("nothing is %s in\n%s", pattern, text)
	}
	digits, unit, _ := strings.Cut(m[1], " ")
	v, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v * map[string]float64{"": 1, "k": 1e3, "M": 1e6}[unit]
}

// cells are the numbers of the row of rate in the table whose first header is header.
func cells(t *testing.T, text, rate, header string) []float64 {
	t.Helper()
	_, rest, _ := strings.Cut(text, "| "+header+" |")
	_, rest, found := strings.Cut(rest, "\n| "+rate+" |")
	line, _, _ := strings.Cut(rest, "\n")
	if !found {
		t.Fatalf("no row %s under %s in\n%s", rate, header, text)
	}
	all := []float64{0}
	for cell := range strings.SplitSeq(strings.TrimSuffix(line, "|"), "|") {
		v, err := strconv.ParseFloat(strings.TrimSpace(cell), 64)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

func committed(t *testing.T) Costs {
	t.Helper()
	c, err := Load(strings.NewReader(read(t, "costs.json")))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
