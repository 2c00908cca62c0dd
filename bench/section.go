//go:build linux

package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"edge/bench/chart"
	"edge/bench/ledger"
)

// section is what one stage reports.
type section struct {
	Stage   string             `json:"stage"`
	Title   string             `json:"title"`
	Tables  []table            `json:"tables"`
	Goals   []goal             `json:"goals"`
	Book    ledger.Book        `json:"ledger"`
	Notes   []string           `json:"notes,omitempty"`
	Numbers map[string]float64 `json:"numbers,omitempty"` // for the model and for comparing reports
	Samples []sample           `json:"samples,omitempty"` // every run, those to warm up included
	Charts  []chart.Chart      `json:"-"`
	Took    float64            `json:"took_seconds"`
}

func (s *section) note(format string, args ...any) {
	s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
}

func (s *section) number(name string, v float64) {
	if s.Numbers == nil {
		s.Numbers = make(map[string]float64)
	}
	s.Numbers[name] = v
}

// goal is one line of what the system is after.
type goal struct {
	What     string `json:"what"`
	Must     string `json:"must"`
	Stretch  string `json:"stretch"`
	Measured string `json:"measured"`
	Ratio    string `json:"ratio"`
	Verdict  string `json:"verdict"`
	Command  string `json:"command"`
}

// verdict is the word for what was reached.
func verdict(must, stretch bool) string {
	switch {
	case must && stretch:
		return "stretch"
	case must:
		return "met"
	}
	return "missed"
}

// noPair stands where a ratio, or a verdict about one, would be: no two runs next to each
// other had both done what they promised, so there is none.
const noPair = "no pair"

// paired is verdict for a must about a ratio of pairs.
func paired(to float64, must, stretch bool) string {
	if to == 0 {
		return noPair
	}
	return verdict(must, stretch)
}

// cell is a ratio of pairs by itself: format has one verb.
func cell(format string, to float64) string {
	if to == 0 {
		return noPair
	}
	return fmt.Sprintf(format, to)
}

// times is a ratio of pairs and whom it is to.
func times(format string, to float64, whom string) string {
	if to == 0 {
		return noPair + " with " + whom
	}
	return fmt.Sprintf(format, to) + " " + whom
}

// inverse is a ratio from the other side; that of none is none.
func inverse(to float64) float64 {
	if to == 0 {
		return 0
	}
	return 1 / to
}

// wish is the verdict where nothing is a must.
func wish(stretch bool) string {
	if stretch {
		return "stretch"
	}
	return "below stretch"
}

// void takes the verdicts back if a ledger does not add up: the figures are of a program
// that did not do its work.
func (s *section) void() {
	if len(s.Book.Void()) == 0 {
		return
	}
	for i := range s.Goals {
		s.Goals[i].Verdict = "VOID"
	}
}

// goal adds a line; what BENCH_STAGES reproduces it goes with it.
func (s *section) goal(g goal) {
	g.Command = "make bench BENCH_STAGES=" + s.Stage
	s.Goals = append(s.Goals, g)
}

// table is aligned for a terminal and valid as Markdown.
type table struct {
	Title  string     `json:"title,omitempty"`
	Header []string   `json:"header"`
	Rows   [][]string `json:"rows"`
}

func (t *table) row(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = fmt.Sprint(c)
	}
	t.Rows = append(t.Rows, row)
}

// String is t as an aligned Markdown table.
func (t table) String() string {
	width := make([]int, len(t.Header))
	for _, row := range append([][]string{t.Header}, t.Rows...) {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	if t.Title != "" {
		b.WriteString(t.Title + "\n\n")
	}
	line := func(cells []string, pad string) {
		b.WriteByte('|')
		for i, cell := range cells {
			b.WriteString(" " + cell + strings.Repeat(pad, width[i]-len([]rune(cell))) + " |")
		}
		b.WriteByte('\n')
	}
	line(t.Header, " ")
	rule := make([]string, len(t.Header))
	for i := range rule {
		rule[i] = "---"
	}
	line(rule, "-")
	for _, row := range t.Rows {
		line(row, " ")
	}
	return b.String()
}

// httpTable shows samples of programs that take events over HTTP.
func httpTable(title string, samples []sample, ratios func(sample) (string, string)) table {
	t := table{Title: title, Header: []string{"", "events/s", "server µs/event", "broker", "engine", "generator", "server cores",
		"allocs/event", "p50 ms", "p99 ms", "p99.9 ms", "peak RSS MB", "not 202", "events/s to ours", "server CPU to ours"}}
	for _, s := range samples {
		rate, cpu, allocs := "", "", ""
		if s.Allocs >= 0 {
			allocs = fmt.Sprintf("%.2f", s.Allocs)
		}
		if ratios != nil {
			rate, cpu = ratios(s)
		}
		t.row(s.Target, count(s.PerSecond), micros(s.CPU, "server"), micros(s.CPU, "broker"), micros(s.CPU, "engine"), micros(s.CPU, "generator"),
			fmt.Sprintf("%.2f", s.Cores), allocs, millis(s.P50), millis(s.P99), millis(s.P999), s.peaks(), s.Refused, rate, cpu)
	}
	return t
}

func micros(cpu map[string]float64, name string) string {
	v, ok := cpu[name]
	if !ok {
		return ""
	}
	return fmt.Sprintf("%.2f", v)
}

// peaks is the peak of the server in MB, and of what it works with.
func (s *sample) peaks() string {
	text := fmt.Sprintf("%.0f", float64(s.RSS)/1e6)
	for _, name := range slices.Sorted(maps.Keys(s.OthersRSS)) {
		text += fmt.Sprintf(" + %s %.0f", name, float64(s.OthersRSS[name])/1e6)
	}
	return text
}

func millis(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d)/1e6) }

// count is a rate or a number for people: 12,345 or 1.23 M.
func count(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2f M", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.1f k", v/1e3)
	}
	return fmt.Sprintf("%.0f", v)
}

func ratio(v float64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", v)
}

// What a run is whose ledger is not that of edge.
const (
	rivals    = "by rivals"
	nulled    = "by edge into a broker that throws away, its producer's word"
	questions = "answers compared with the raw rows"
)

// take keeps a run and its ledger. That of a rival which does not add up becomes
// a note: it is its work that is not done, not ours.
func (s *section) take(m sample, beside string) {
	m.Entry.Beside = beside
	s.Samples = append(s.Samples, m)
	if beside == rivals && !m.Entry.OK() {
		s.note("a rival's ledger: %s", m.Entry)
		return
	}
	s.Book = append(s.Book, m.Entry)
}
