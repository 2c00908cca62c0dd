// Package model is the arithmetic of "past one machine": from what an event
// costs here to what a rate needs elsewhere. It is proportions and ceilings, no
// queueing theory: it says which part runs out first and how many of each part
// there must be, not how they will behave.
//
// What scales how. Edges are stateless and add up. A partition is one ordered
// log with one consumer, so it is a ceiling and not a cost: more rate needs more
// partitions, decided before the topic is made. A sink process takes any number
// of partitions. ClickHouse shards add up for inserts, and a query asks them all.
package model

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Costs are what was measured, per event.
type Costs struct {
	Edge   float64 // µs of processor time, HTTP to broker, bulks of 100
	Single float64 // µs, one event a request, at half of what one edge carries
	Sink   float64 // µs, Kafka to columns
	Engine float64 // µs, the insert with all views and the merges that fell into the run
	// µs of each copy of the log, bulks and singles at half load, of the embedded broker:
	// one node that replicates to nobody and has an fsync a batch.
	Broker, BrokerSingle float64
	Body                 float64 // bytes as the SDK sends them
	Topic                float64 // bytes in the log, compressed
	Stored               float64 // bytes on ClickHouse's disk, rollups included
	Partition            float64 // events/s that one partition has carried
	SinkRate             float64 // events/s that one sink process has carried
}

// Shape is what one would rent and how full one would run it.
type Shape struct {
	EdgeCores, SinkCores, BrokerCores, ShardCores int
	Load                                          float64 // part of a core that is used on average
	Singles                                       float64 // part of the events that come one a request
	LogCopies, TableCopies                        int
	BrokerDisk                                    float64 // bytes/s one broker writes and still fsyncs
	Network                                       float64 // bits/s of one machine
	LogDays, TableDays                            float64 // how long each keeps what it has
	CoreHour, TBMonth                             float64 // prices, in any currency: of a core with its memory, of disk
}

// Usual is machines of a few cores, run at 60 %, every byte three times in the
// log, for the week that is KAFKA_RETENTION's default, and twice in the tables. The
// prices are round ones, of the order of rented machines and network disks.
var Usual = Shape{
	EdgeCores: 4, SinkCores: 4, BrokerCores: 8, ShardCores: 16, Load: 0.6, Singles: 0.1,
	LogCopies: 3, TableCopies: 2, BrokerDisk: 300e6, Network: 10e9,
	LogDays: 7, TableDays: 30, CoreHour: 0.04, TBMonth: 80,
}

// Plan is what one rate needs.
type Plan struct {
	Rate                       float64
	Edges, Partitions, Brokers int
	Sinks, Shards              int
	EdgeUsed, SinkUsed         float64 // cores busy, at 100 %
	BrokerUsed, ShardUsed      float64
	In, Log                    float64 // bits/s from clients; bytes/s into the log, once
	TopicDay, DiskDay          float64 // bytes a day, all copies
	Machines, Cores            int
	CoresMonth                 float64 // price of 730 hours
	LogMonth, TablesMonth      float64 // price of the disk that is full after LogDays and TableDays
	// what one edge, one partition, one sink, one ClickHouse node carries
	EdgeLimit, PartLimit, SinkLimit, NodeLimit float64
}

// For is the plan of rate events a second.
func (c Costs) For(rate float64, s Shape) Plan {
	p := Plan{Rate: rate}
	mixed := func(single, bulk float64) float64 { return s.Singles*single + (1-s.Singles)*bulk }
	edge := mixed(c.Single, c.Edge)
	cores := func(us float64) float64 { return rate * us / 1e6 }
	machines := func(used float64, size int) int { return max(int(math.Ceil(used/(float64(size)*s.Load)-1e-9)), 1) }
	p.EdgeUsed, p.SinkUsed = cores(edge), cores(c.Sink)
	p.BrokerUsed = cores(mixed(c.BrokerSingle, c.Broker)) * float64(s.LogCopies)
	p.ShardUsed = cores(c.Engine)
	p.In = rate * c.Body * 8
	p.Log = rate * c.Topic
	p.EdgeLimit = float64(s.EdgeCores) * s.Load * 1e6 / edge
	p.PartLimit = c.Partition * s.Load
	p.SinkLimit = min(c.SinkRate, float64(s.SinkCores)*1e6/c.Sink) * s.Load
	p.NodeLimit = float64(s.ShardCores) * s.Load * 1e6 / c.Engine
	p.Edges = max(machines(p.EdgeUsed, s.EdgeCores), ceil(p.In/(s.Network*s.Load)))
	p.Sinks = ceil(rate / p.SinkLimit)
	// At least twice as many partitions as sinks, so that one more sink helps.
	p.Partitions = max(ceil(rate/p.PartLimit), 2*p.Sinks)
	// No two copies of the log lie on one broker.
	p.Brokers = max(machines(p.BrokerUsed, s.BrokerCores), ceil(p.Log*float64(s.LogCopies)/s.BrokerDisk), s.LogCopies)
	p.Shards = machines(p.ShardUsed, s.ShardCores)
	p.TopicDay = p.Log * 86400 * float64(s.LogCopies)
	p.DiskDay = rate * c.Stored * 86400 * float64(s.TableCopies)
	nodes := p.Shards * s.TableCopies
	p.Machines = p.Edges + p.Sinks + p.Brokers + nodes
	p.Cores = p.Edges*s.EdgeCores + p.Sinks*s.SinkCores + p.Brokers*s.BrokerCores + nodes*s.ShardCores
	p.CoresMonth = float64(p.Cores) * 730 * s.CoreHour
	p.LogMonth = p.TopicDay / 1e12 * s.LogDays * s.TBMonth
	p.TablesMonth = p.DiskDay / 1e12 * s.TableDays * s.TBMonth
	return p
}

func ceil(v float64) int { return int(math.Ceil(v - 1e-9)) }

// First is the part that a single one of no longer carries the rate, the one
// with the least room before the others.
func (p Plan) First() string {
	first, least := "nothing: one of each is enough", 1.0
	for _, part := range []struct {
		name  string
		limit float64
	}{{"the edge process", p.EdgeLimit}, {"the partition", p.PartLimit}, {"the sink", p.SinkLimit}, {"the ClickHouse node", p.NodeLimit}} {
		if room := part.limit / p.Rate; room < least {
			first, least = part.name, room
		}
	}
	return first
}

// PerMillion is the price of a million events at this rate.
func (p Plan) PerMillion() float64 {
	return (p.CoresMonth + p.LogMonth + p.TablesMonth) / (p.Rate * 730 * 3600 / 1e6)
}

// halfLoad is the row of singles near the load that machines run at. Saturated they
// cost edge three fifths of it and the broker a third, because more of them share a
// wake-up and a batch.
const halfLoad = "edge at half load"

// table is one of a report's, as text.
type table struct {
	Header []string   `json:"header"`
	Rows   [][]string `json:"rows"`
}

// Read takes the costs out of a benchmark report; what it lacks stays as it is.
func (c Costs) Read(r io.Reader) (Costs, error) {
	var report struct {
		Sections []struct {
			Numbers map[string]float64 `json:"numbers"`
			Tables  []table            `json:"tables"`
		} `json:"sections"`
	}
	if err := json.NewDecoder(r).Decode(&report); err != nil {
		return c, fmt.Errorf("read the report: %w", err)
	}
	for _, s := range report.Sections {
		for name, to := range map[string]*float64{
			"bulk_NDJSON_cpu_us": &c.Edge, "bulk_NDJSON_broker_cpu_us": &c.Broker,
			"bulk_NDJSON_per_second": &c.Partition, "body_bytes": &c.Body, "topic_bytes": &c.Topic,
			"sink_cpu_us": &c.Sink, "steady_engine_cpu_us": &c.Engine, "sink_per_second": &c.SinkRate, "steady_stored_bytes": &c.Stored,
		} {
			if v, ok := s.Numbers[name]; ok && v > 0 {
				*to = v
			}
		}
		for _, t := range s.Tables {
			if err := c.readSingles(t); err != nil {
				return c, fmt.Errorf("read the report: %w", err)
			}
		}
	}
	return c, nil
}

// readSingles takes the costs of singles out of the table that has them.
func (c *Costs) readSingles(t table) error {
	for _, row := range t.Rows {
		if len(row) == 0 || row[0] != halfLoad {
			continue
		}
		for _, cell := range []struct {
			column string
			to     *float64
		}{{"server µs/event", &c.Single}, {"broker", &c.BrokerSingle}} {
			i := slices.Index(t.Header, cell.column)
			if i < 0 || i >= len(row) {
				return fmt.Errorf("the row %q has no column %q", halfLoad, cell.column)
			}
			v, err := strconv.ParseFloat(row[i], 64)
			if err != nil {
				return fmt.Errorf("%q of the row %q: %w", cell.column, halfLoad, err)
			}
			*cell.to = v
		}
	}
	return nil
}

// Table is the plans as Markdown.
func Table(plans ...Plan) string {
	var b strings.Builder
	b.WriteString("| events/s | edges | partitions | brokers | sinks | ClickHouse shards | in Gbit/s | log MB/s | log TB/day | tables TB/day | machines | cores | a month: cores | log | tables | per million events | breaks first on one of each |\n")
	b.WriteString("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, p := range plans {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %.2f | %.0f | %.2f | %.3f | %d | %d | %.0f | %.0f | %.0f | %.4f | %s |\n", rate(p.Rate), p.Edges, p.Partitions, p.Brokers, p.Sinks, p.Shards,
			p.In/1e9, p.Log/1e6, p.TopicDay/1e12, p.DiskDay/1e12, p.Machines, p.Cores,
			p.CoresMonth, p.LogMonth, p.TablesMonth, p.PerMillion(), p.First())
	}
	return b.String()
}

func rate(v float64) string {
	if v >= 1e6 {
		return fmt.Sprintf("%g M", v/1e6)
	}
	return fmt.Sprintf("%g k", v/1e3)
}
