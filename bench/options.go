//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// options are the knobs, all of them environment variables.
type options struct {
	quick  bool
	rounds int           // of limit, ours, peer, ours, limit
	one    time.Duration // one run of a round
	long   time.Duration // one run that is not repeated
	soak   time.Duration // end to end, and with a dead broker
	events int64         // stored, at most, in query
	rows   int64         // the sink reads in one run
	stages []string
	pinned bool // servers on core 0, generator on core 1
	edge   string
	out    string
	dir    string // of everything the servers write
}

// stageNames in the order they run. Freshness is the first that has an engine: where
// the file system looks at every file deleted in the last minutes before it makes one
// (ext4 without a journal), an insert after the others is half as slow again.
var stageNames = []string{"decode", "ring", "produce", "freshness", "http", "constant", "bulk", "sink", "e2e", "memory", "query", "growth", "insert"}

// quickStages are those of BENCH_QUICK: the ones that start servers and have a
// ledger. The others are go test -bench and have their own checks.
var quickStages = []string{"freshness", "http", "constant", "bulk", "sink", "e2e", "memory", "query", "growth"}

// ownStages do all of their work, or a rival's, in processes of the bench itself. Pinned
// those have one core, so eight writers would never meet, and ready blocks would have a
// core beside the engine that edge's sink has not.
var ownStages = []string{"decode", "ring", "produce", "sink", "insert"}

func loadOptions() (o options, err error) {
	o = options{rounds: 5, one: 2 * time.Second, long: 10 * time.Second, soak: time.Minute, events: 100_000_000, rows: 2_000_000, stages: stageNames}
	usual := o
	if o.quick = os.Getenv("BENCH_QUICK") == "1"; o.quick {
		o.rounds, o.one, o.long, o.soak, o.events, o.rows, o.stages = 1, 300*time.Millisecond, time.Second, 2*time.Second, 200_000, 50_000, quickStages
	}
	for _, v := range []struct {
		name string
		set  func(float64)
	}{
		{"BENCH_SECONDS", func(n float64) { o.one = time.Duration(n * float64(time.Second)); o.long = 5 * o.one }},
		{"BENCH_SOAK_SECONDS", func(n float64) { o.soak = time.Duration(n * float64(time.Second)) }},
		{"BENCH_ROUNDS", func(n float64) { o.rounds = max(int(n), 1) }},
		{"BENCH_EVENTS", func(n float64) { o.events = int64(n) }},
		{"BENCH_ROWS", func(n float64) { o.rows = int64(n) }},
	} {
		text := strings.ReplaceAll(os.Getenv(v.name), "_", "")
		if text == "" {
			continue
		}
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || n <= 0 {
			return o, fmt.Errorf("%s=%q: want a positive number", v.name, text)
		}
		v.set(n)
	}
	own := func(stage string) bool { return slices.Contains(ownStages, stage) }
	if o.pinned = os.Getenv("BENCH_PIN") == "1"; o.pinned {
		o.stages = slices.DeleteFunc(slices.Clone(o.stages), own)
	}
	if text := os.Getenv("BENCH_STAGES"); text != "" {
		o.stages = nil
		for name := range strings.SplitSeq(text, ",") {
			if !slices.Contains(stageNames, name) {
				return o, fmt.Errorf("BENCH_STAGES has %q; there are %s", name, strings.Join(stageNames, ", "))
			}
			if o.pinned && own(name) {
				return o, fmt.Errorf("BENCH_PIN=1 keeps servers and generator apart, and %s measures no such pair", name)
			}
			o.stages = append(o.stages, name)
		}
	}
	o.edge, o.out = os.Getenv("BENCH_EDGE"), os.Getenv("BENCH_OUT")
	if o.edge == "" {
		o.edge = "../bin/edge"
	}
	if o.out == "" {
		// bench-model reads what a whole run has measured.
		if o.out = "report"; o.lessThan(&usual) || !slices.Equal(o.stages, stageNames) {
			o.out = filepath.Join("report", "part")
		}
	}
	if o.edge, err = filepath.Abs(o.edge); err != nil {
		return o, err
	}
	if _, err = os.Stat(o.edge); err != nil {
		return o, fmt.Errorf("%w: run it as make bench, which builds it, or set BENCH_EDGE", err)
	}
	return o, nil
}

// lessThan tells whether what the model reads is of fewer or shorter runs than those of u.
func (o *options) lessThan(u *options) bool {
	return o.rounds < u.rounds || o.one < u.one || o.long < u.long || o.soak < u.soak || o.rows < u.rows
}

// serverCore is 1 + the core that servers are kept to; 0: any.
func (o *options) serverCore() int {
	if o.pinned {
		return 1
	}
	return 0
}
