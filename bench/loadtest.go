//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"edge/bench/ledger"
	"edge/bench/load"
)

// k6PerCore is what k6 holds for each of the cores that it shares with the server, where
// encoding/json takes standardDecode: 49 µs a request, measured, as much again for the
// server and as much for all that goes on beside the two is 6,800, of which it gets less
// than a third: at 3,000 it dropped six of a thousand iterations.
const k6PerCore = 2000

// loadTest runs loadtest/script.js against an edge of its own, and beside it the
// same shape from this program's generator, at the full 20,000 requests/s that
// k6 has not the processor time for on a small machine.
func loadTest(ctx context.Context, _ []string) (err error) {
	o, err := loadOptions()
	if err != nil {
		return err
	}
	k6 := os.Getenv("BENCH_K6")
	if k6 == "" {
		return errors.New("BENCH_K6 must name the k6 program; make load-test installs it")
	}
	if o.dir, err = os.MkdirTemp("", "edge-load-test-"); err != nil {
		return err
	}
	b := &bench{o: &o, ctx: ctx, current: new(section)}
	slower, err := b.slower()
	if err != nil {
		return err
	}
	f := &fleet{o: &o, ctx: ctx, dir: o.dir}
	defer func() { err = errors.Join(err, f.stop()) }()
	srv, err := f.whole()
	if err != nil {
		return err
	}
	t, err := f.everything("edge, all in one", srv)
	if err != nil {
		return err
	}
	r := loadReport{Machine: thisMachine(&o), Rate: spikeRate(runtime.NumCPU(), slower)}
	r.Explained = explain(r.Rate, slower)
	fmt.Printf("%s\n%s\n\n", r.Machine, r.Explained)
	if r.K6, err = runK6(ctx, k6, srv.addr, &o, r.Rate); err != nil {
		return err
	}
	if err := r.k6Ledger(b.ctx, t); err != nil {
		return err
	}
	if err := r.ownSpike(b, t); err != nil {
		return err
	}
	r.Crossed = append(r.Crossed, crossed(&r.Own)...)
	problems, err := srv.verify(ctx)
	if err != nil {
		return err
	}
	verified(&r.Book[len(r.Book)-1], problems)
	results := filepath.Join("..", "loadtest", "results.json")
	if o.quick { // a twentieth of the test
		results = filepath.Join(o.out, "loadtest.json")
	}
	if err := r.write(results); err != nil {
		return err
	}
	fmt.Print(r.table().String(), "\n", r.Book.Summary(), "\nresults: ", results, "\n")
	switch {
	case len(r.Book.Void()) > 0:
		return errVoid
	case len(r.Crossed) > 0:
		return fmt.Errorf("thresholds crossed: %v", r.Crossed)
	}
	return nil
}

// The script's rates: sustained, and at its peak.
const (
	steadyRate = 2000
	peakRate   = 20_000
)

// spikeRate is the highest spike that k6 can offer beside the server: on the machine of
// standardDecode peakRate from ten cores on.
func spikeRate(cores int, slower float64) int {
	rate := float64(cores*k6PerCore) / slower
	return min(max(int(rate)/100*100, steadyRate), peakRate)
}

func explain(rate int, slower float64) string {
	if rate == peakRate {
		return "k6 offers the whole spike of 20,000 requests/s."
	}
	return fmt.Sprintf("k6 spends about %.0f µs of processor time on a request here, so on these %d cores, which it shares with edge, it cannot offer 20,000 requests/s: "+
		"it would drop iterations and measure itself. It offers a spike of %d requests/s and 20,000 events/s in bodies of 100; the spike of 20,000 requests/s comes from our own generator.",
		49*slower, runtime.NumCPU(), rate)
}

// loadReport is loadtest/results.json.
type loadReport struct {
	Machine   machine         `json:"machine"`
	Explained string          `json:"explained"`
	Rate      int             `json:"k6_spike_rate"`
	Crossed   []string        `json:"thresholds_crossed"`
	Own       sample          `json:"own_generator"`
	Book      ledger.Book     `json:"ledger"`
	K6        json.RawMessage `json:"k6"` // its own summary

	summary k6Summary
}

type k6Summary struct {
	Metrics map[string]struct {
		Values     map[string]float64 `json:"values"`
		Thresholds map[string]struct {
			OK bool `json:"ok"`
		} `json:"thresholds"`
	} `json:"metrics"`
}

func (s k6Summary) value(metric, key string) float64 { return s.Metrics[metric].Values[key] }

func runK6(ctx context.Context, k6, addr string, o *options, rate int) (json.RawMessage, error) {
	results := filepath.Join(o.dir, "k6.json")
	scale := "1"
	if o.quick {
		scale = "0.05"
	}
	cmd := exec.CommandContext(ctx, k6, "run", "--no-usage-report", "-e", "BASE_URL=http://"+addr, "-e", "RESULTS="+results,
		"-e", "SPIKE_RATE="+strconv.Itoa(rate), "-e", "TIME_SCALE="+scale, "../loadtest/script.js")
	cmd.Stderr = os.Stderr
	err := cmd.Run()
	text, readErr := os.ReadFile(results)
	if readErr != nil { // it did not get as far as a summary
		return nil, fmt.Errorf("k6: %w", errors.Join(err, readErr))
	}
	// A threshold that was crossed is in the summary. A script that threw, or that somebody
	// stopped, has a summary, too, of what there was until then.
	const thresholdsHaveFailed = 99
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == thresholdsHaveFailed {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("k6: %w", err)
	}
	return text, nil
}

// k6Ledger reads k6's summary and compares what it was promised with the tables.
func (r *loadReport) k6Ledger(ctx context.Context, t *target) error {
	if err := json.Unmarshal(r.K6, &r.summary); err != nil {
		return fmt.Errorf("read k6's summary: %w", err)
	}
	for name, m := range r.summary.Metrics {
		for threshold, result := range m.Thresholds {
			if !result.OK {
				r.Crossed = append(r.Crossed, name+" "+threshold)
			}
		}
	}
	promised, doubtful := int64(r.summary.value("events_promised", "count")), int64(r.summary.value("events_undecided", "count"))
	found, _, err := awaitCount(ctx, t.count, promised, time.Minute)
	r.Book = append(r.Book, ledger.Entry{What: "k6", Where: t.where, Promised: promised, Doubtful: doubtful, Found: found})
	t.counted, t.found, t.doubtful = true, found, max(promised+doubtful-found, 0)
	return err
}

// ownSpike is the script's shape at 20,000 requests/s.
func (r *loadReport) ownSpike(b *bench, t *target) (err error) {
	part := func(s float64) time.Duration {
		if b.o.quick {
			s /= 20
		}
		return time.Duration(s * float64(time.Second))
	}
	single := newGenerated(12).singles(1024)
	r.Own, err = b.measure(t, load.Load{Conns: manyConns, Requests: single, Events: 1, Stamp: distinct(single),
		Schedule: load.Spike(steadyRate, peakRate, part(10), part(5), part(30), part(20))})
	r.Own.Target = "our generator"
	r.Book = append(r.Book, r.Own.Entry)
	return err
}

// crossed are the script's thresholds that the spike of our own generator has crossed. It
// has a request an event.
func crossed(own *sample) (names []string) {
	for _, threshold := range []struct {
		name string
		ok   bool
	}{
		{"p(95)<100", own.P95 < 100*time.Millisecond}, {"p(99)<200", own.P99 < 200*time.Millisecond},
		{"failed rate<0.01", 100*own.Refused < own.Events+own.Refused},
	} {
		if !threshold.ok {
			names = append(names, own.Target+" "+threshold.name)
		}
	}
	return names
}

func (r *loadReport) table() table {
	t := table{Header: []string{"", "requests", "p50 ms", "p95", "p99", "failed", "dropped_iterations"}}
	for _, s := range []struct{ name, scenario string }{{fmt.Sprintf("k6, 2,000/s, spike of %d/s", r.Rate), "single"}, {"k6, bodies of 100, 20,000 events/s", "bulk"}} {
		of := func(metric, key string) float64 { return r.summary.value(metric+"{scenario:"+s.scenario+"}", key) }
		sent, dropped := of("iterations", "count"), of("dropped_iterations", "count")
		took := func(key string) string { return fmt.Sprintf("%.2f", of("http_req_duration", key)) }
		t.row(s.name, sent, took("med"), took("p(95)"), took("p(99)"), "", fmt.Sprintf("%.0f, %.3f %%", dropped, 100*dropped/max(sent+dropped, 1)))
	}
	t.row("k6, all", r.summary.value("http_reqs", "count"), "", "", "", fmt.Sprintf("%.3f %%", 100*r.summary.value("http_req_failed", "rate")), r.summary.value("dropped_iterations", "count"))
	t.row("our generator, 2,000/s, spike of 20,000/s", r.Own.Events+r.Own.Refused, millis(r.Own.P50), millis(r.Own.P95), millis(r.Own.P99), r.Own.Refused, "none: it is late instead, and counts it")
	return t
}

func (r *loadReport) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
