package model

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Rates are the three of DESIGN.md.
var Rates = []float64{20e3, 1e6, 10e6}

// Between these lines DESIGN.md has what Text makes.
const (
	begin = "<!-- make bench-model writes from here -->\n"
	end   = "<!-- to here -->\n"
)

// Into is document with text between its two lines.
func Into(document []byte, text string) ([]byte, error) {
	before, rest, ok := bytes.Cut(document, []byte(begin))
	_, after, closed := bytes.Cut(rest, []byte(end))
	if !ok || !closed {
		return nil, fmt.Errorf("the document lacks the line %q or %q", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return slices.Concat(before, []byte(begin+"\n"+text+"\n"+end), after), nil
}

// Text is all figures of "past one machine", as Markdown.
func Text(c Costs, s Shape) string {
	var plans []Plan
	for _, rate := range Rates {
		plans = append(plans, c.For(rate, s))
	}
	return c.measured() + "\n" + c.limits(s) + "\n" + s.parts(plans) + "\n" + traffic(plans) + "\n" + c.prices(s, plans) + "\n" + s.assumed()
}

// markdown is a table.
func markdown(rows ...[]string) string {
	var b strings.Builder
	for i, row := range rows {
		b.WriteString("| " + strings.Join(row, " | ") + " |\n")
		if i == 0 {
			b.WriteString("|" + strings.Repeat(" --- |", len(row)) + "\n")
		}
	}
	return b.String()
}

func (c Costs) measured() string {
	us := func(v float64) string { return number(v) + " µs" }
	head := fmt.Sprintf("Measured by the bench of commit %s on %d cores that everything shared\n(%s), and rounded before anything is made of it:\n\n", c.Commit, c.Cores, c.CPU)
	return head + markdown(
		[]string{"per event", "in bulks of 100 (NDJSON)", "alone, at half load"},
		[]string{"edge", us(c.Edge), us(c.Single)},
		[]string{"broker, each copy", us(c.Broker), us(c.BrokerSingle)},
		[]string{"broker, as the sinks read it", us(c.BrokerRead), "the same"},
		[]string{"sink", us(c.Sink), "the same"},
		[]string{"ClickHouse in a minute of load, views and merges of that minute included", us(c.Engine), "the same"},
		[]string{"ClickHouse of full blocks, as a topic is emptied", us(c.Insert), "the same"},
		[]string{"bytes", fmt.Sprintf("%s sent, %s in the log, %s in the tables", number(c.Body), number(c.Topic), number(c.Stored)), "the same"})
}

// limits is what one of each carries, and what is known of it: how many cores it would
// have to keep busy for that, and how many it was seen to.
func (c Costs) limits(s Shape) string {
	one := c.Limits(s)
	edge, broker := c.mixed(s)
	row := func(name, given string, us, limit, most, seenUs float64, seen string) []string {
		return []string{name, given, number(us), rate(limit), busy(limit, us), rate(most) + " " + seen, busy(most, seenUs)}
	}
	const bulks, emptied = "in bulks", "as a topic was emptied"
	return fmt.Sprintf("One of each, at %g %%:\n\n", 100*s.Load) + markdown(
		[]string{"", "is given", "µs an event", "carries, events/s", "on cores busy", "was seen to carry, at least", "on cores busy"},
		row("edge", fmt.Sprintf("%d cores", s.EdgeCores), edge, one.Edge, c.Partition, c.Edge, bulks),
		row("sink", fmt.Sprintf("%d core, %d inserts of %s µs", s.SinkCores, s.Inserts, number(c.Insert)), c.Sink, one.Sink, c.SinkRate, c.Sink, emptied),
		row("broker, for one copy", fmt.Sprintf("%d cores, a disk", s.BrokerCores), broker, one.Broker, c.Partition, c.Broker, bulks),
		row("ClickHouse node", fmt.Sprintf("%d cores", s.ShardCores), c.Engine, one.Node, c.SinkRate, c.Insert, emptied),
		[]string{"partition", "a writer, a reader", "", rate(one.Partition), "", rate(c.Partition) + " " + bulks, ""}) +
		"\n" + one.first() + c.seen(s)
}

// seen is which part ends first if none can do more than it was seen to.
func (c Costs) seen(s Shape) string {
	least, one, place := round(c.SinkRate*s.Load), c.Limits(s), ""
	if least < min(one.Edge, one.Broker, one.Node) {
		place = ", before all others"
	}
	return fmt.Sprintf("The sink was seen at %s/s beside ClickHouse and a broker: %s, %s and %s of %d cores\n"+
		"were busy. If it could do no more, a sink would end at %s%s, and %s events/s\n"+
		"would take %d sinks.\n",
		rate(c.SinkRate), busy(c.SinkRate, c.Sink), busy(c.SinkRate, c.Insert), busy(c.SinkRate, c.BrokerRead), c.Cores,
		rate(least), place, rate(Rates[2]), ceil(Rates[2]/least))
}

// busy is the cores that perSecond events of us each keep busy.
func busy(perSecond, us float64) string { return strconv.FormatFloat(perSecond*us/1e6, 'f', 2, 64) }

// first names what ends first as the rate grows, with what ends so near it that no run
// tells them apart. A partition is not among them: nobody has seen its end.
func (l Limits) first() string {
	type part struct {
		name  string
		limit float64
	}
	parts := []part{{"edge", l.Edge}, {"sink", l.Sink}, {"broker", l.Broker}, {"ClickHouse node", l.Node}}
	slices.SortStableFunc(parts, func(a, b part) int { return cmp.Compare(a.limit, b.limit) })
	const noise = 1.15 // the same program differs by 15 % from minute to minute
	var near []string
	for _, p := range parts {
		if p.limit <= parts[0].limit*noise {
			near = append(near, fmt.Sprintf("the %s at %s", p.name, rate(p.limit)))
		}
	}
	if len(near) == 1 {
		return "By processor time the first to end is " + near[0] + ".\n"
	}
	return "By processor time the first to end are " + strings.Join(near, " and ") + ", which are\nnearer to each other than two runs of one program.\n"
}

func (s Shape) parts(plans []Plan) string {
	rows := [][]string{{"events/s", fmt.Sprintf("edges (%d cores)", s.EdgeCores), "partitions", fmt.Sprintf("brokers (%d)", s.BrokerCores), fmt.Sprintf("sinks (%d)", s.SinkCores),
		fmt.Sprintf("shards (%d nodes of %d)", s.TableCopies, s.ShardCores), "cores", "log, TB a day", "tables, TB a day"}}
	for _, p := range plans {
		rows = append(rows, []string{rate(p.Rate), fmt.Sprint(p.Edges), fmt.Sprint(p.Partitions), fmt.Sprint(p.Brokers), fmt.Sprint(p.Sinks), fmt.Sprint(p.Shards),
			fmt.Sprint(p.Cores), number(p.TopicDay), number(p.DiskDay)})
	}
	return markdown(rows...)
}

func traffic(plans []Plan) string {
	rows := [][]string{{"Gbit/s at", "clients to edges", "edges to brokers", "broker to broker", "brokers to sinks", "sinks to ClickHouse", "replica to replica", "the busiest card, one way"}}
	for _, p := range plans {
		t := p.Traffic
		row := []string{rate(p.Rate)}
		for _, bits := range []float64{t.Clients, t.Produced, t.Copied, t.Consumed, t.Inserted, t.Fetched, p.Card()} {
			row = append(row, number(bits/1e9))
		}
		rows = append(rows, row)
	}
	return markdown(rows...)
}

// shorter is s for who keeps little.
func (s Shape) shorter() Shape {
	s.LogDays, s.TableDays = 1, 7
	return s
}

func (c Costs) prices(s Shape, plans []Plan) string {
	less := s.shorter()
	rows := [][]string{{"a month at", "cores", "log", "tables", "together", "a million events", fmt.Sprintf("together, with %g day of log and %g of tables", less.LogDays, less.TableDays)}}
	for _, p := range plans {
		rows = append(rows, []string{rate(p.Rate), number(p.CoresMonth), number(p.LogMonth), number(p.TablesMonth), number(p.Month()), number(p.PerMillion()), number(c.For(p.Rate, less).Month())})
	}
	return markdown(rows...)
}

// assumed is what nobody has measured.
func (s Shape) assumed() string {
	return fmt.Sprintf(`Assumed (`+"`model.Usual`"+`; put in your own):

- Every machine runs at %g %% of its processors and of its network card of %g Gbit/s each
  way, and a sink's inserts are under way for as much of the time.
- %g %% of the events come alone, the rest in bulks of 100.
- The log has %d copies and is kept %g days, the tables %d and %g days.
- A broker's disk takes %g MB/s, all of it used, with its fsyncs.
- A sink has %d inserts under way (`+"`FLUSH_INSERTS`"+`), each on about one core of
  ClickHouse.
- Neither bodies nor inserts are compressed on the network, and a row is as large there as
  the event was. Replicas fetch the parts of inserts, and merge for themselves.
- A core with its memory costs %g an hour, of which a month has 730, and a TB of disk %g a
  month: round prices of rented machines and network disks.

Nothing here was measured on more than two cores, over a network, or with a replica.
`, 100*s.Load, s.Network/1e9, 100*s.Singles, s.LogCopies, s.LogDays, s.TableCopies, s.TableDays, s.BrokerDisk/1e6, s.Inserts, s.CoreHour, s.TBMonth)
}

// rate is events/s for people.
func rate(v float64) string {
	if v = round(v); v >= 1e6 {
		return number(v/1e6) + " M"
	}
	return number(v/1e3) + " k"
}
