// Package chaos is what the fault tests share: how often a fault is repeated,
// and the line each leaves in the table of make chaos. Only tests import it.
//
// An ordinary test run repeats each fault a few times, enough to notice that
// something broke. EDGE_CHAOS=1 asks for as many rounds as a claim needs, and
// EDGE_CHAOS_REPORT names the file that collects the results.
package chaos

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// Long reports whether the long version was asked for.
func Long() bool { return os.Getenv("EDGE_CHAOS") == "1" }

// Rounds is few, or many in the long version.
func Rounds(few, many int) int {
	if Long() {
		return many
	}
	return few
}

// Result is one line of the table.
type Result struct {
	Fault      string
	Rounds     int
	Accepted   int // events promised, or records on the log
	Lost       int
	Duplicated int
	Worst      time.Duration // recovery; 0: not measured
}

// Report logs r and adds it to the report, if there is one.
func Report(t testing.TB, r Result) {
	t.Helper()
	worst := "-"
	if r.Worst > 0 {
		worst = r.Worst.Round(10 * time.Millisecond).String()
	}
	t.Logf("%s: %d rounds, %d accepted, %d lost, %d duplicated, worst recovery %s", r.Fault, r.Rounds, r.Accepted, r.Lost, r.Duplicated, worst)
	path := os.Getenv("EDGE_CHAOS_REPORT")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Errorf("chaos report: %v", err)
		return
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "| %s | %d | %d | %d | %d | %s |\n", r.Fault, r.Rounds, r.Accepted, r.Lost, r.Duplicated, worst); err != nil {
		t.Errorf("chaos report: %v", err)
	}
}
