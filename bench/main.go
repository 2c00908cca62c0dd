//go:build linux

// Command bench measures edge: each stage beside the limit of what could be
// reached here, and beside what an average team writes, in one run and in turns.
//
// A number alone says more about the machine than about the program: on shared
// cores the same binary varies by 15 % from one minute to the next. So nothing is
// claimed that is not a ratio of runs next to each other: limit, ours, peer, ours,
// limit, and the same again, and the median of the ratios of neighbours. And a
// run counts only when its ledger adds up: what was promised is in the log or in
// the table, exactly. Otherwise the exit status is 1.
//
// Every server is a process of its own, on loopback and a free port, so that
// /proc knows what each costs; the generator reports its own cost beside them.
// The report goes to bench/report, that of a part of the stages, or of fewer or
// shorter runs, to bench/report/part: Markdown, JSON, and plots as SVG.
//
//	bench               all stages, or those in BENCH_STAGES
//	bench model [FILE]  what 20 thousand to 10 million events/s need, from a report
//	bench load-test     the k6 script, and the spike k6 cannot offer by itself
//	bench serve-bare | serve-naive | serve-naive-sink | serve-naive-query | serve-null   the rivals, started by the above
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(command(os.Args[1:])) }

func command(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	name := "run"
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	commands := map[string]func(context.Context, []string) error{
		"run": run, "model": printModel, "load-test": loadTest,
		"serve-bare": telling(serveBare), "serve-naive": telling(serveNaive), "serve-naive-sink": serveNaiveSink, "serve-naive-query": telling(serveNaiveQuery), "serve-null": telling(serveNull),
	}
	f, ok := commands[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "bench: unknown command %q; there are run, model, load-test, serve-bare, serve-naive, serve-naive-sink, serve-naive-query and serve-null\n", name)
		return 2
	}
	if err := f(ctx, args); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}
