package model

import (
	"math"
	"strings"
	"testing"
)

// easy costs, to be checked by head: one core carries a million events a second
// of bulks at the edge, and 100,000 of singles.
var easy = Costs{Edge: 1, Single: 10, Broker: 0.5, BrokerSingle: 6, Sink: 1, Engine: 2, Body: 250, Topic: 100, Stored: 50, Partition: 500_000, SinkRate: 400_000}

var shape = Shape{EdgeCores: 4, SinkCores: 4, BrokerCores: 4, ShardCores: 10, Load: 0.5, Singles: 0, LogCopies: 3, TableCopies: 2, BrokerDisk: 100e6, Network: 10e9,
	LogDays: 2, TableDays: 10, CoreHour: 0.1, TBMonth: 50}

func TestPlan(t *testing.T) {
	f := func(rate float64, want Plan) {
		t.Helper()
		p := easy.For(rate, shape)
		if p.Edges != want.Edges || p.Partitions != want.Partitions || p.Brokers != want.Brokers || p.Sinks != want.Sinks || p.Shards != want.Shards {
			t.Errorf("%g/s: got %d edges, %d partitions, %d brokers, %d sinks, %d shards; want %d, %d, %d, %d, %d", rate,
				p.Edges, p.Partitions, p.Brokers, p.Sinks, p.Shards, want.Edges, want.Partitions, want.Brokers, want.Sinks, want.Shards)
		}
		if first := p.First(); !strings.Contains(first, want.first()) {
			t.Errorf("%g/s: %q breaks first; want %q", rate, first, want.first())
		}
	}
	// 20 k: a twentieth of everything; two partitions, so that a second sink helps,
	// and a broker for each copy of the log.
	f(20_000, Plan{Edges: 1, Partitions: 2, Brokers: 3, Sinks: 1, Shards: 1})
	// 1 M: one edge of 4 cores at half load carries 2 M; a partition 250 k; a sink
	// 200 k; a shard of 10 cores at half load 2.5 M.
	f(1_000_000, Plan{Edges: 1, Partitions: 10, Brokers: 3, Sinks: 5, Shards: 1, SinkLimit: 1})
	// 10 M: brokers write 10 M × 100 B × 3 = 3 GB/s, 100 MB/s each; their
	// processors need 15 cores, 8 machines.
	f(10_000_000, Plan{Edges: 5, Partitions: 100, Brokers: 30, Sinks: 50, Shards: 4, SinkLimit: 1})
}

// first is what a wanted plan says about the part that breaks first.
func (p Plan) first() string {
	if p.SinkLimit == 1 {
		return "sink"
	}
	return "nothing"
}

func TestPlanBytes(t *testing.T) {
	p := easy.For(1_000_000, shape)
	f := func(name string, got, want float64) {
		t.Helper()
		if math.Abs(got/want-1) > 1e-9 {
			t.Errorf("%s: got %g; want %g", name, got, want)
		}
	}
	f("in", p.In, 2e9)
	f("log", p.Log, 100e6)
	f("log a day", p.TopicDay, 100e6*86400*3)
	f("tables a day", p.DiskDay, 50e6*86400*2)
	f("edge limit", p.EdgeLimit, 2e6)
}

func TestPrice(t *testing.T) {
	p := easy.For(1_000_000, shape)
	f := func(name string, got, want float64) {
		t.Helper()
		if math.Abs(got/want-1) > 1e-9 {
			t.Errorf("%s: got %g; want %g", name, got, want)
		}
	}
	// An edge, three brokers, five sinks of four cores, two nodes of ten.
	f("cores", p.CoresMonth, 56*730*0.1)
	// 300 MB/s for two days are 51.84 TB; 100 MB/s for ten 86.4.
	f("log", p.LogMonth, 51.84*50)
	f("tables", p.TablesMonth, 86.4*50)
	f("a million events", p.PerMillion(), (56*730*0.1+51.84*50+86.4*50)/(730*3600))
}

func TestSinglesCostMore(t *testing.T) {
	mixed := shape
	mixed.Singles = 0.5
	p := easy.For(1e6, mixed)
	if got, want := p.EdgeUsed, 5.5; math.Abs(got-want) > 1e-9 {
		t.Errorf("half singles: %g cores of edges; want %g", got, want)
	}
	// Half at 0.5 µs, half at 6, three copies: 9.75 cores, of which two are used of each broker.
	if got, want := p.BrokerUsed, 9.75; math.Abs(got-want) > 1e-9 || p.Brokers != 5 {
		t.Errorf("half singles: %g cores of %d brokers; want %g of 5", got, p.Brokers, want)
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

func TestReadTakesMeasuredCosts(t *testing.T) {
	c, err := easy.Read(strings.NewReader(`{"sections":[{"numbers":{"bulk_NDJSON_cpu_us":0.8,"sink_cpu_us":0}},{"numbers":{"steady_stored_bytes":30,"http_broker_cpu_us":7},
		"tables":[{"header":["","events/s","server µs/event","broker"],"rows":[["edge ACK=broker","69.4 k","11.0","4.2"],["edge at half load","34.6 k","19.02","13.83"],[]]}]},{}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Edge != 0.8 || c.Stored != 30 || c.Sink != easy.Sink || c.Single != 19.02 || c.BrokerSingle != 13.83 || c.Broker != easy.Broker {
		t.Errorf("got %+v", c)
	}
	f := func(report, want string) {
		t.Helper()
		if _, err := easy.Read(strings.NewReader(report)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v; want %s", err, want)
		}
	}
	f("no report", "read the report")
	f(`{"sections":[{"tables":[{"header":["","broker"],"rows":[["edge at half load","1"]]}]}]}`, `no column "server µs/event"`)
	f(`{"sections":[{"tables":[{"header":["","server µs/event","broker"],"rows":[["edge at half load","1",""]]}]}]}`, `"broker" of the row`)
}

func TestTable(t *testing.T) {
	text := Table(easy.For(20_000, shape), easy.For(1e7, shape))
	if lines := strings.Split(strings.TrimSpace(text), "\n"); len(lines) != 4 || !strings.HasPrefix(lines[2], "| 20 k | 1 | 2 |") || !strings.HasPrefix(lines[3], "| 10 M | 5 | 100 |") {
		t.Errorf("got\n%s", text)
	}
}
