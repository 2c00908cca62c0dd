// Package ledger is the arithmetic that makes a measurement count: what was
// promised to clients against what the log or the table holds afterwards.
//
// The rule is exact. Every event that a 202 promised is there once. An event
// whose request ended without an answer that decides (no answer, 5xx) may be
// there or not; so the number found lies between Promised and Promised +
// Doubtful, and where nothing was doubtful they are equal. Anything else voids
// the run it belongs to: its numbers describe a program that did not do its work.
package ledger

import (
	"fmt"
	"strings"
)

// Entry is one run's sum.
type Entry struct {
	What     string `json:"what"`
	Where    string `json:"where"`    // where it was looked for, and how: "log, by count"
	Promised int64  `json:"promised"` // events in 202 answers
	Doubtful int64  `json:"doubtful"` // events whose request ended undecided
	Found    int64  `json:"found"`
	Problems string `json:"problems,omitempty"` // what edge verify said against it
	// Beside is empty for a promise of edge's that a log or a table was asked about. Else
	// it is whose run it was, or what was compared there instead.
	Beside string `json:"beside,omitempty"`
}

// OK reports whether e adds up.
func (e Entry) OK() bool {
	return e.Found >= e.Promised && e.Found <= e.Promised+e.Doubtful && e.Problems == ""
}

// String is e as a sentence.
func (e Entry) String() string {
	verdict := "adds up"
	if !e.OK() {
		verdict = "VOID: does not add up"
		if e.Problems != "" {
			verdict += " (" + e.Problems + ")"
		}
	}
	doubt := ""
	if e.Doubtful > 0 {
		doubt = fmt.Sprintf(" (+ up to %d undecided)", e.Doubtful)
	}
	return fmt.Sprintf("%s: %d promised%s, %d in %s: %s", e.What, e.Promised, doubt, e.Found, e.Where, verdict)
}

// Book is all entries of a run.
type Book []Entry

// Void returns the entries that do not add up.
func (b Book) Void() (bad Book) {
	for _, e := range b {
		if !e.OK() {
			bad = append(bad, e)
		}
	}
	return bad
}

// Summary is edge's own book: what it promised, what was found and by which comparison;
// in a line of its own what else was run; and a line for each entry that is void.
func (b Book) Summary() string {
	var promised, found int64
	var ways, others []string // in the order of their first runs
	runs, sums := make(map[string]int), make(map[string]int64)
	own := 0
	for _, e := range b {
		key, keys := e.Where, &ways
		if e.Beside != "" {
			key, keys = e.Beside, &others
			sums[key] += e.Promised
		} else {
			own++
			promised += e.Promised
			found += e.Found
		}
		if runs[key]++; runs[key] == 1 {
			*keys = append(*keys, key)
		}
	}
	void := b.Void()
	var s strings.Builder
	fmt.Fprintf(&s, "ledger: %d runs of edge, %d events promised, %d found, %d void", own, promised, found, len(void))
	for _, w := range ways {
		fmt.Fprintf(&s, "; %s: %d", w, runs[w])
	}
	for i, o := range others {
		separator := "; "
		if i == 0 {
			separator = "\nin none of these sums: "
		}
		fmt.Fprintf(&s, "%s%s %d in %d runs", separator, o, sums[o], runs[o])
	}
	for _, e := range void {
		s.WriteString("\n" + e.String())
	}
	return s.String()
}
