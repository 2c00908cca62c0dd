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
	Where    string `json:"where"`    // what was counted: "log", "events", "events_1m"
	Promised int64  `json:"promised"` // events in 202 answers
	Doubtful int64  `json:"doubtful"` // events whose request ended undecided
	Found    int64  `json:"found"`
	Problems string `json:"problems,omitempty"` // what edge verify said against it
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

// Summary is the book in one line, and a line for each entry that is void.
func (b Book) Summary() string {
	var promised, found int64
	for _, e := range b {
		promised += e.Promised
		found += e.Found
	}
	void := b.Void()
	var s strings.Builder
	fmt.Fprintf(&s, "ledger: %d runs, %d events promised, %d found, %d void", len(b), promised, found, len(void))
	for _, e := range void {
		s.WriteString("\n" + e.String())
	}
	return s.String()
}
