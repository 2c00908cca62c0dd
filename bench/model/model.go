// Package model is the arithmetic of "past one machine": from what an event
// costs here to what a rate needs elsewhere. It is proportions and ceilings, no
// queueing theory: it says which part runs out first and how many of each part
// there must be, not how they will behave.
//
// What scales how. Edges are stateless and add up. A partition is one ordered
// log with one consumer, so it is a ceiling and not a cost: more rate needs more
// partitions, decided before the topic is made. A sink process takes any number
// of partitions, and has a few inserts under way at a time. ClickHouse shards add
// up for inserts, and a query asks them all.
//
// Every figure is rounded where it is made, to the digits that are printed, and what
// follows is made of the rounded ones: who does the arithmetic by hand comes to the
// same counts.
package model

import (
	"math"
	"strconv"
)

// Costs are what was measured, per event: costs.json, of one run of the whole bench.
type Costs struct {
	Commit string `json:"commit"`
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`

	Edge   float64 `json:"edge_us"`   // processor time, HTTP to broker, bulks of 100
	Single float64 `json:"single_us"` // one event a request, at half of what one edge carries
	Sink   float64 `json:"sink_us"`   // Kafka to columns
	Engine float64 `json:"engine_us"` // the insert with all views and the merges that fell into a minute
	Insert float64 `json:"insert_us"` // the same of the sink's own run: full blocks, few merges
	// Each copy of the log, bulks and singles at half load, of the embedded broker: one
	// node that replicates to nobody and has an fsync a batch.
	Broker       float64 `json:"broker_us"`
	BrokerSingle float64 `json:"broker_single_us"`
	BrokerRead   float64 `json:"broker_read_us"` // while a sink empties it

	Body   float64 `json:"body_bytes"`   // as the SDK sends them
	Topic  float64 `json:"topic_bytes"`  // in the log, compressed
	Stored float64 `json:"stored_bytes"` // on ClickHouse's disk, rollups included

	// What one partition and one sink have carried, events/s: at least, as the two cores were
	// full, mostly of other programs.
	Partition float64 `json:"partition_per_second"`
	SinkRate  float64 `json:"sink_per_second"`
}

// Shape is what one would rent and how full one would run it.
type Shape struct {
	EdgeCores, SinkCores, BrokerCores, ShardCores int
	Inserts                                       int     // FLUSH_INSERTS, of about one core of ClickHouse each
	Load                                          float64 // part of a core, and of a network card, that is used on average
	Singles                                       float64 // part of the events that come one a request
	LogCopies, TableCopies                        int
	BrokerDisk                                    float64 // bytes/s one broker writes and still fsyncs
	Network                                       float64 // bits/s of one machine, each way
	LogDays, TableDays                            float64 // how long each keeps what it has
	CoreHour, TBMonth                             float64 // prices, in any currency: of a core with its memory, of disk
}

// Usual is machines of a few cores, run at 60 %, every byte three times in the
// log, for the week that is KAFKA_RETENTION's default, and twice in the tables. The
// prices are round ones, of the order of rented machines and network disks. A sink has
// one core: with two inserts at a time it has no work for a second one.
var Usual = Shape{
	EdgeCores: 4, SinkCores: 1, BrokerCores: 8, ShardCores: 16, Inserts: 2, Load: 0.6, Singles: 0.1,
	LogCopies: 3, TableCopies: 2, BrokerDisk: 300e6, Network: 10e9,
	LogDays: 7, TableDays: 30, CoreHour: 0.04, TBMonth: 80,
}

// Limits are the events/s that one of each carries at Shape.Load. Nobody has seen them:
// they are its processor time spread over the cores it is given. That of a partition is
// what was seen, as nothing is known of its end.
type Limits struct {
	Edge, Sink, Partition, Broker, Node float64
}

// Limits are those of s.
func (c Costs) Limits(s Shape) Limits {
	by := func(cores int, us float64) float64 { return float64(cores) * s.Load * 1e6 / us }
	card := func(bytes float64) float64 { return s.Network * s.Load / 8 / bytes }
	edge, broker := c.mixed(s)
	return Limits{
		Edge: round(min(by(s.EdgeCores, edge), card(c.Body))),
		// Rows leave a sink about as large as events come, when nothing compresses them.
		Sink:      round(min(by(s.SinkCores, c.Sink), by(s.Inserts, c.Insert), card(c.Body))),
		Partition: round(c.Partition * s.Load),
		// Of one copy. What comes in leaves once, to the sinks or to another broker.
		Broker: round(min(by(s.BrokerCores, broker), s.BrokerDisk/c.Topic, card(c.Topic))),
		Node:   round(min(by(s.ShardCores, c.Engine), card(c.Body))),
	}
}

// mixed is the processor time of an edge and of a broker for an event, with s's part of
// them sent alone. Of a broker it is that of one copy; the sinks read one of them.
func (c Costs) mixed(s Shape) (edge, broker float64) {
	mix := func(single, bulk float64) float64 { return s.Singles*single + (1-s.Singles)*bulk }
	return round(mix(c.Single, c.Edge)), round(mix(c.BrokerSingle, c.Broker) + c.BrokerRead/float64(s.LogCopies))
}

// Plan is what one rate needs.
type Plan struct {
	Rate                       float64
	Edges, Partitions, Brokers int
	Sinks, Shards              int
	Traffic                    Traffic
	TopicDay, DiskDay          float64 // TB a day, all copies
	Cores                      int
	CoresMonth                 float64 // price of 730 hours
	LogMonth, TablesMonth      float64 // price of the disk that is full after LogDays and TableDays
}

// For is the plan of rate events a second.
func (c Costs) For(rate float64, s Shape) Plan {
	p, one := Plan{Rate: rate, Traffic: c.traffic(rate, s)}, c.Limits(s)
	p.Edges = ceil(rate / one.Edge)
	p.Sinks = ceil(rate / one.Sink)
	// At least twice as many partitions as sinks, so that one more sink helps.
	p.Partitions = max(ceil(rate/one.Partition), 2*p.Sinks)
	// No two copies of the log lie on one broker.
	p.Brokers = max(ceil(rate*float64(s.LogCopies)/one.Broker), s.LogCopies)
	p.Shards = ceil(rate / one.Node)
	day := func(bytes float64, copies int) float64 { return round(rate * bytes * 86400 * float64(copies) / 1e12) }
	p.TopicDay, p.DiskDay = day(c.Topic, s.LogCopies), day(c.Stored, s.TableCopies)
	p.Cores = p.Edges*s.EdgeCores + p.Sinks*s.SinkCores + p.Brokers*s.BrokerCores + p.Shards*s.TableCopies*s.ShardCores
	p.CoresMonth = round(float64(p.Cores) * 730 * s.CoreHour)
	p.LogMonth = round(p.TopicDay * s.LogDays * s.TBMonth)
	p.TablesMonth = round(p.DiskDay * s.TableDays * s.TBMonth)
	return p
}

// Month is the price of it all for a month.
func (p Plan) Month() float64 { return round(p.CoresMonth + p.LogMonth + p.TablesMonth) }

// PerMillion is the price of a million events at this rate.
func (p Plan) PerMillion() float64 { return round(p.Month() / (p.Rate * 730 * 3600 / 1e6)) }

// Traffic is bits/s between the parts, all machines of a part together.
type Traffic struct {
	Clients  float64 // clients to edges, bodies that nobody has compressed
	Produced float64 // edges to brokers
	Copied   float64 // brokers to brokers
	Consumed float64 // brokers to sinks
	Inserted float64 // sinks to ClickHouse, rows that nobody has compressed
	Fetched  float64 // ClickHouse to ClickHouse: the parts of inserts; merges each makes itself
}

func (c Costs) traffic(rate float64, s Shape) Traffic {
	bits := func(bytes, times float64) float64 { return round(rate * bytes * 8 * times) }
	return Traffic{
		Clients: bits(c.Body, 1), Produced: bits(c.Topic, 1), Copied: bits(c.Topic, float64(s.LogCopies-1)),
		Consumed: bits(c.Topic, 1), Inserted: bits(c.Body, 1), Fetched: bits(c.Stored, float64(s.TableCopies-1)),
	}
}

// Card is the most that one machine of the plan takes in or sends, bits/s.
func (p Plan) Card() float64 {
	t := p.Traffic
	each := func(bits float64, machines int) float64 { return bits / float64(machines) }
	return round(max(
		each(t.Clients, p.Edges), each(t.Produced+t.Copied, p.Brokers), each(t.Inserted, p.Sinks),
		// A shard's inserts may all go to one of its copies.
		each(t.Inserted, p.Shards), each(t.Fetched, p.Shards)))
}

// ceil is how many there must be, at least one.
func ceil(v float64) int { return max(int(math.Ceil(v-1e-9)), 1) }

// round is v to three digits, and exactly the number that number prints.
func round(v float64) float64 {
	v, _ = strconv.ParseFloat(strconv.FormatFloat(v, 'e', 2, 64), 64) // of what FormatFloat has made
	return v
}

// number is v for people, without an exponent.
func number(v float64) string { return strconv.FormatFloat(round(v), 'f', -1, 64) }
