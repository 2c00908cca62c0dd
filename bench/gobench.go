//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// goBench is the compiled benchmarks of a package. They run once per round, all
// of them, so that what is compared is measured in turns.
type goBench struct{ binary string }

func compile(b *bench, pkg string) (*goBench, error) {
	g := &goBench{binary: filepath.Join(b.o.dir, filepath.Base(pkg)+".test")}
	out, err := exec.CommandContext(b.ctx, "go", "test", "-c", "-o", g.binary, pkg).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("compile the benchmarks of %s: %w: %s", pkg, err, out)
	}
	return g, nil
}

// results are medians over rounds, by benchmark and unit.
type results struct {
	order  []string
	values map[string]map[string][]float64
}

func (r *results) median(name, unit string) float64 { return median(r.values[name][unit]) }

func (g *goBench) run(b *bench, pattern string) (*results, error) {
	r := &results{values: make(map[string]map[string][]float64)}
	at := "200ms"
	if b.o.quick {
		at = "5ms"
	}
	for range b.o.rounds {
		cmd := exec.CommandContext(b.ctx, g.binary, "-test.run", "^$", "-test.bench", pattern, "-test.benchtime", at, "-test.benchmem")
		cmd.Env = os.Environ()
		cmd.Dir = "."
		out, err := cmd.Output()
		if err != nil {
			var exit *exec.ExitError
			errors.As(err, &exit)
			return nil, fmt.Errorf("go test -bench %s: %w: %s", pattern, err, out)
		}
		r.read(out)
	}
	if len(r.order) == 0 {
		return nil, fmt.Errorf("go test -bench %s ran nothing", pattern)
	}
	return r, nil
}

var benchLine = regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)

// read adds the lines of one go test -bench.
func (r *results) read(out []byte) {
	sc := bufio.NewScanner(bytes.NewReader(out))
	for sc.Scan() {
		m := benchLine.FindStringSubmatch(sc.Text())
		if m == nil {
			continue
		}
		if r.values[m[1]] == nil {
			r.values[m[1]] = make(map[string][]float64)
			r.order = append(r.order, m[1])
		}
		fields := strings.Fields(m[2])
		for i := 0; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				r.values[m[1]][fields[i+1]] = append(r.values[m[1]][fields[i+1]], v)
			}
		}
	}
}

// table shows the benchmarks under prefix, relative to the one called edge.
func (r *results) table(prefix string, units ...string) table {
	t := table{Header: append([]string{""}, units...)}
	t.Header = append(t.Header, "to edge")
	for _, name := range r.order {
		short, ok := strings.CutPrefix(name, prefix+"/")
		if !ok {
			continue
		}
		cells := []any{short}
		for _, u := range units {
			cells = append(cells, strconv.FormatFloat(r.median(name, u), 'f', precision(r.median(name, u)), 64))
		}
		base := prefix + "/edge"
		if i := strings.IndexByte(short, '/'); i >= 0 {
			base += short[i:]
		}
		t.row(append(cells, r.against(name, base, units[0]))...)
	}
	return t
}

func precision(v float64) int {
	switch {
	case v > 0 && v < 1:
		return 2
	case v < 100:
		return 1
	}
	return 0
}

// ratio is the median of the ratios of neighbours in a round; 0 of none.
func (r *results) ratio(name, base, unit string) float64 {
	a, b := r.values[name][unit], r.values[base][unit]
	var ratios []float64
	for i := range min(len(a), len(b)) {
		ratios = append(ratios, a[i]/b[i])
	}
	return median(ratios)
}

// against is ratio in words; empty if there is none.
func (r *results) against(name, base, unit string) string {
	to := r.ratio(name, base, unit)
	if to == 0 {
		return ""
	}
	return fmt.Sprintf("%.2fx", to)
}

func (b *bench) rivals(pattern string) (*results, error) {
	if b.command == nil {
		g, err := compile(b, "./rival")
		if err != nil {
			return nil, err
		}
		b.command = g
	}
	return b.command.run(b, pattern)
}

// standardDecode is what encoding/json took for the event, in nanoseconds, on the machine
// from which the aims in nanoseconds come. They are ratios where they can be.
const standardDecode = 2375

// pace is how many times slower in words, and how many times faster where it is that.
func pace(slower float64) string {
	switch {
	case slower < 0.95:
		return fmt.Sprintf("%.1f times faster", 1/slower)
	case slower < 1.05:
		return "as fast"
	}
	return fmt.Sprintf("%.1f times slower", slower)
}

// slower tells how many times slower this machine is than that one.
func (b *bench) slower() (float64, error) {
	r, err := b.rivals("^BenchmarkDecode$/^encoding-json$")
	if err != nil {
		return 0, err
	}
	return r.median("Decode/encoding-json", "ns/op") / standardDecode, nil
}

func decodeStage(b *bench, s *section, _ *fleet) error {
	s.Title = "one event of 227 bytes from JSON"
	r, err := b.rivals("^BenchmarkDecode$")
	if err != nil {
		return err
	}
	s.Tables = append(s.Tables, r.table("Decode", "ns/op", "B/op", "allocs/op"))
	s.note("the limit, utf8.Valid, reads every byte once: it is the least that the standard library needs to validate every byte")
	s.note("edge validates every byte, UTF-8 and metadata included; what its rivals leave unchecked stands in bench/rival")
	ns, allocs := r.median("Decode/edge", "ns/op"), r.median("Decode/edge", "allocs/op")
	standard := r.median("Decode/encoding-json", "ns/op")
	times := r.ratio("Decode/encoding-json", "Decode/edge", "ns/op")
	s.note("encoding/json took %d ns where the aims in ns and events/s were set; this machine is %s", standardDecode, pace(standard/standardDecode))
	s.number("decode_ns", ns)
	s.goal(goal{What: "decode", Must: "≤ 350 ns, 0 allocs, ≥ 7x encoding/json", Stretch: "≤ 200 ns", Measured: fmt.Sprintf("%.0f ns, %.0f allocs", ns, allocs),
		Ratio: fmt.Sprintf("limit %s, encoding/json %.1fx", r.against("Decode/limit-utf8-valid", "Decode/edge", "ns/op"), times), Verdict: verdict(ns <= 350 && allocs == 0 && times >= 7, ns <= 200)})
	return nil
}

func ringStage(b *bench, s *section, _ *fleet) error {
	s.Title = "hand-over from eight producers to one reader"
	r, err := b.rivals("^BenchmarkHandOver$")
	if err != nil {
		return err
	}
	s.Tables = append(s.Tables, r.table("HandOver", "ns/event", "cpu-ns/event", "allocs/op"))
	s.note("the limit is one atomic add an item by the eight producers, with nothing handed over: the writers of one shared queue have at least that word in common")
	one, hundred := r.median("HandOver/edge/1-event", "ns/event"), r.median("HandOver/edge/100-events", "ns/event")
	allocs := r.median("HandOver/edge/1-event", "allocs/op")
	s.number("ring_ns", one)
	beside := func(name string) string {
		return r.against("HandOver/"+name+"/1-event", "HandOver/edge/1-event", "ns/event")
	}
	s.goal(goal{What: "ring hand-over", Must: "≤ 20 ns/event at 8 producers, 0 allocs", Stretch: "≤ 5 ns amortised",
		Measured: fmt.Sprintf("%.1f ns; %.2f ns in requests of 100; %.0f allocs", one, hundred, allocs),
		Ratio:    fmt.Sprintf("limit %s, channel %s, mutex-swap %s", beside("limit-atomic-add"), beside("channel"), beside("mutex-swap")), Verdict: verdict(one <= 20 && allocs == 0, hundred <= 5)})
	return nil
}

func produceStage(b *bench, s *section, _ *fleet) error {
	s.Title = "records to an acknowledging broker, acks=all, keyed"
	r, err := b.rivals("^BenchmarkProduce$")
	if err != nil {
		return err
	}
	s.Tables = append(s.Tables, r.table("Produce", "cpu-ns/record", "records/s", "allocs/record"))
	ns := r.median("Produce/edge/100-events", "cpu-ns/record")
	s.number("produce_ns", ns)
	beside := func(name string) string {
		return r.against("Produce/"+name+"/100-events", "Produce/edge/100-events", "cpu-ns/record")
	}
	s.note("the broker throws away, in a process of its own; cpu-ns/record is the client's")
	s.note("the limit sends requests that are ready, of as many records as wait at once: a write and a read each, no encoding, packing or checksum")
	s.goal(goal{What: "produce", Must: "≤ 400 ns/record client CPU", Stretch: "≤ 160 ns", Measured: fmt.Sprintf("%.0f ns in requests of 100, %.0f ns alone", ns, r.median("Produce/edge/1-event", "cpu-ns/record")),
		Ratio: fmt.Sprintf("limit %s, kgo.Produce %s", beside("limit-ready-batches"), beside("kgo")), Verdict: verdict(ns <= 400, ns <= 160)})
	return nil
}

// insertStage has no aim of its own: it says how much of a sink is its way to write.
func insertStage(b *bench, s *section, _ *fleet) error {
	s.Title = "decoded events into events and all rollups, in blocks of 100,000"
	r, err := b.rivals("^BenchmarkInsert$")
	if err != nil {
		return err
	}
	s.Tables = append(s.Tables, r.table("Insert", "cpu-ns/row", "engine-cpu-ns/row", "rows/s"))
	to := func(name, unit string) string { return r.against("Insert/"+name, "Insert/edge", unit) }
	beside := func(unit string) string {
		return fmt.Sprintf("limit %s, clickhouse-go rows %s", to("limit-ready-block", unit), to("clickhouse-go-rows", unit))
	}
	s.note("all start from the same decoded events; the limit is a block of them that is ready in wire form; cpu-ns/row is the client's, and the last column is of it")
	s.note("rows/s to edge, most of which is the engine's: %s", beside("rows/s"))
	s.note("JSONEachRow is text in a native statement, since the embedded engine has no HTTP; ClickHouse parses the same lines")
	cpu := r.median("Insert/edge", "cpu-ns/row")
	s.number("insert_ns", cpu)
	s.goal(goal{What: "column writer", Measured: fmt.Sprintf("%.0f ns/row client CPU, %s rows/s", cpu, count(r.median("Insert/edge", "rows/s"))),
		Ratio: beside("cpu-ns/row") + ", JSONEachRow " + to("json-each-row", "cpu-ns/row"), Verdict: "no aim"})
	return nil
}
