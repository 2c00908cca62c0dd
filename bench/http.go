//go:build linux

package main

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"time"

	"edge/bench/ledger"
	"edge/bench/load"
)

// The connections of a stage: enough for the server never to wait for the
// generator; what a broker that fsyncs needs to make batches; and so many that its
// disk is not waited for.
const (
	fewConns   = 64
	manyConns  = 256
	crowdConns = 1024
)

// of is a target in front of b.
func (s *server) of(name string, b *broker) *target {
	return &target{name: name, addr: s.addr, server: s.Pid(), others: map[string]int{"broker": b.Pid()}, count: b.count, where: inLog, log: b.dir, admin: s.admin, kill: s.Kill}
}

// bare starts the limit, for requests of so many events.
func (f *fleet) bare(events int64) (*target, error) {
	s, err := f.rival("bare")
	if err != nil {
		return nil, err
	}
	return &target{name: "bare fasthttp", beside: rivals, addr: s.addr, server: s.Pid(), admin: s.admin, where: "its counter", count: func() (int64, error) {
		text, err := get("http://" + s.addr + "/count")
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(string(text), 10, 64)
		return n * events, err
	}}, nil
}

// naive starts the peer in front of a broker of its own.
func (f *fleet) naive(mode string, partitions int) (*target, *broker, error) {
	b, err := f.broker(partitions)
	if err != nil {
		return nil, nil, err
	}
	s, err := f.rival("naive", b.addr, mode)
	if err != nil {
		return nil, nil, err
	}
	t := s.of("naive "+mode, b)
	t.beside = rivals
	return t, b, nil
}

// ours starts edge's HTTP side in front of a broker of its own.
func (f *fleet) ours(name string, settings ...string) (*target, error) {
	b, err := f.broker(1)
	if err != nil {
		return nil, err
	}
	s, err := f.ingest(b, settings...)
	if err != nil {
		return nil, err
	}
	return s.of(name, b), nil
}

// httpStage is one event a request, each connection sending as fast as it is
// answered.
func httpStage(b *bench, s *section, f *fleet) error {
	s.Title = "one event a request, saturated"
	limit, err := f.bare(1)
	if err != nil {
		return err
	}
	single := newGenerated(1).singles(1024)
	for _, m := range []struct {
		ack, peer string
		conns     int
	}{{"memory", "async", fewConns}, {"broker", "sync", manyConns}} {
		ours, err := f.ours("edge ACK="+m.ack, "ACK="+m.ack)
		if err != nil {
			return err
		}
		peer, _, err := f.naive(m.peer, 1)
		if err != nil {
			return err
		}
		out, err := race{limit, ours, peer, load.Load{Conns: m.conns, Requests: single, Events: 1, Duration: b.o.one}}.run(b)
		if err != nil {
			return err
		}
		s.race(fmt.Sprintf("ACK=%s, %d connections", m.ack, m.conns), out, ours.name)
		got := out.typical(ours.name)
		s.number("http_"+m.ack+"_per_second", got.PerSecond)
		s.number("http_"+m.ack+"_cpu_us", got.CPU["server"])
		s.number("http_"+m.ack+"_broker_cpu_us", got.CPU["broker"])
		measured := saturated(got)
		if m.ack == "memory" {
			s.goal(goal{What: "HTTP single, `ACK=memory`", Must: "≥ 0.80 of bare fasthttp, CPU ≤ 1.20x", Stretch: "≥ 0.90, ≤ 1.10x", Measured: measured,
				Ratio:   times("%.2f of", out.ToLimit, "the limit") + ", CPU " + cell("%.2fx", out.CPUToLimit) + "; " + times("%.2fx", out.ToPeer, "naive async"),
				Verdict: paired(out.ToLimit, out.ToLimit >= 0.8 && out.CPUToLimit <= 1.2, out.ToLimit >= 0.9 && out.CPUToLimit <= 1.1)})
			continue
		}
		// A disk that stalls for a moment is the p99 of a run: hence several.
		half, err := b.repeated(b.o.rounds, ours, load.Load{Conns: m.conns, Requests: single, Events: 1, Schedule: load.Constant(got.PerSecond/2, b.o.one)})
		if err != nil {
			return err
		}
		half.Target = "edge at half load"
		s.Tables[len(s.Tables)-1].Rows = append(s.Tables[len(s.Tables)-1].Rows, httpTable("", []sample{half}, nil).Rows...)
		s.goal(goal{What: "HTTP single, `ACK=broker`", Must: "≥ 2.2x naive sync; at half load p99 ≤ 10 ms, 0 errors", Stretch: "≥ 0.70 of the limit",
			Measured: measured + "; at half load p99 " + millis(half.P99) + " ms, the median of " + strconv.Itoa(b.o.rounds) + " runs, " + strconv.FormatInt(half.Refused, 10) + " errors",
			Ratio:    besideSync(out),
			Verdict:  paired(out.ToPeer, out.ToPeer >= 2.2 && half.within(10*time.Millisecond), out.ToLimit >= 0.7)})
		if out, err = (race{limit, ours, peer, load.Load{Conns: crowdConns, Requests: single, Events: 1, Duration: b.o.one}}).run(b); err != nil {
			return err
		}
		s.race(fmt.Sprintf("ACK=%s, %d connections", m.ack, crowdConns), out, ours.name)
		s.goal(goal{What: fmt.Sprintf("HTTP single, `ACK=broker`, %d connections", crowdConns), Must: "≥ 2.2x naive sync", Stretch: "≥ 0.70 of the limit",
			Measured: saturated(out.typical(ours.name)), Ratio: besideSync(out),
			Verdict: paired(out.ToPeer, out.ToPeer >= 2.2, out.ToLimit >= 0.7)})
	}
	return nil
}

func saturated(m sample) string {
	return fmt.Sprintf("%s/s, %.1f µs, p99 %s ms", count(m.PerSecond), m.CPU["server"], millis(m.P99))
}

func besideSync(out *outcome) string {
	return times("%.2fx", out.ToPeer, "naive sync") + ", " + times("%.2f of", out.ToLimit, "the limit")
}

// race adds a table of medians.
func (s *section) race(title string, out *outcome, ours string) {
	var typicals []sample
	for _, name := range out.order {
		typicals = append(typicals, out.typical(name))
	}
	s.Tables = append(s.Tables, httpTable(title, typicals, func(m sample) (string, string) {
		switch m.Target {
		case ours:
			return "1", "1"
		case out.limit:
			return cell("%.2f", inverse(out.ToLimit)), cell("%.2f", inverse(out.CPUToLimit))
		case out.peer:
			return cell("%.2f", inverse(out.ToPeer)), cell("%.2f", inverse(out.CPUToPeer))
		}
		return "", ""
	}))
}

// bulkStage is a hundred events a request, waiting for the broker.
func bulkStage(b *bench, s *section, f *fleet) error {
	s.Title = "100 events a request, ACK=broker, saturated"
	limit, err := f.bare(bulkSize)
	if err != nil {
		return err
	}
	ours, err := f.ours("edge")
	if err != nil {
		return err
	}
	peer, _, err := f.naive("sync", 1)
	if err != nil {
		return err
	}
	g := newGenerated(3)
	for _, m := range []struct {
		name     string
		requests [][]byte
	}{{"NDJSON", g.lines(64)}, {"array", g.arrays(64)}} {
		out, err := race{limit, ours, peer, load.Load{Conns: manyConns, Requests: m.requests, Events: bulkSize, Duration: b.o.one}}.run(b)
		if err != nil {
			return err
		}
		s.race(m.name, out, ours.name)
		got := out.typical(ours.name)
		s.number("bulk_"+m.name+"_per_second", got.PerSecond)
		s.number("bulk_"+m.name+"_cpu_us", got.CPU["server"])
		s.number("bulk_"+m.name+"_broker_cpu_us", got.CPU["broker"])
		s.goal(goal{What: "HTTP bulk of 100, " + m.name + ", `ACK=broker`", Must: "≥ 1.0 M events/s, ≤ 1 µs/event", Stretch: "≥ 1.65 M",
			Measured: fmt.Sprintf("%s/s, %.2f µs", count(got.PerSecond), got.CPU["server"]), Ratio: times("%.1fx", out.ToPeer, "naive sync") + ", " + times("%.2f of", out.ToLimit, "receiving alone"),
			Verdict: verdict(got.PerSecond >= 1e6 && got.CPU["server"] <= 1, got.PerSecond >= 1.65e6)})
	}
	if err := s.sizes(ours, g.lines(64)); err != nil {
		return err
	}
	return b.nullBroker(s, f, g.lines(64))
}

// sizes notes the bytes of an event on its way in and in the log.
func (s *section) sizes(t *target, requests [][]byte) error {
	var body, log int64
	for _, r := range requests {
		body += int64(len(r))
	}
	err := filepath.WalkDir(t.log, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			log += info.Size()
		}
		return err
	})
	if err != nil {
		return err
	}
	events, err := t.count()
	if err != nil {
		return err
	}
	s.number("body_bytes", float64(body)/float64(len(requests)*bulkSize))
	s.number("topic_bytes", float64(log)/float64(max(events, 1)))
	s.note("an event is %.0f bytes as it is sent and %.0f in the log", s.Numbers["body_bytes"], s.Numbers["topic_bytes"])
	return nil
}

// nullBroker is the bulk path with a broker that throws away: its ledger is what
// the producer says was acknowledged.
func (b *bench) nullBroker(s *section, f *fleet, requests [][]byte) error {
	null, err := f.rival("null", "1")
	if err != nil {
		return err
	}
	srv, err := f.edge("edge", "ROLES=ingest", "KAFKA_BROKERS="+null.addr)
	if err != nil {
		return err
	}
	t := &target{name: "edge, null broker", addr: srv.addr, server: srv.Pid(), admin: srv.admin, others: map[string]int{"broker": null.Pid()}, beside: nulled, where: "the producer's acknowledgements",
		count: func() (int64, error) { m, err := srv.metrics(); return int64(m["edge_produce_records_total"]), err }}
	var samples []sample
	for range b.o.rounds {
		m, err := b.measure(t, load.Load{Conns: manyConns, Requests: requests, Events: bulkSize, Duration: b.o.one})
		if err != nil {
			return err
		}
		samples = append(samples, m)
	}
	got := typical(samples)
	s.Tables = append(s.Tables, httpTable("into a broker that throws away", []sample{got}, nil))
	s.goal(goal{What: "HTTP bulk of 100 into a null broker", Must: "", Stretch: "≥ 2.5 M events/s",
		Measured: fmt.Sprintf("%s/s, %.2f µs", count(got.PerSecond), got.CPU["server"]), Verdict: wish(got.PerSecond >= 2.5e6)})
	return nil
}

// verified enters in e what edge verify has said.
func verified(e *ledger.Entry, problems []string) {
	e.Where = byVerify
	object(e, problems...)
}

// object enters what speaks against e.
func object(e *ledger.Entry, problems ...string) {
	for _, p := range problems {
		if e.Problems != "" {
			e.Problems += "; "
		}
		e.Problems += p
	}
}
