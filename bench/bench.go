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
	"strings"
	"time"

	"edge/bench/child"
	"edge/bench/ledger"
	"edge/bench/load"
)

// bench is one run of the whole.
type bench struct {
	o       *options
	ctx     context.Context
	command *goBench // compiled once, when the first stage needs it
	current *section
}

// report is everything a run found.
type report struct {
	Machine  machine   `json:"machine"`
	Sections []section `json:"sections"`
	Failed   []string  `json:"failed,omitempty"`
}

// machine is where, and what of.
type machine struct {
	Time   string `json:"time"`
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	Commit string `json:"commit"`
	Files  string `json:"file_system"` // that the servers write to
	Pinned bool   `json:"pinned"`
	Rounds int    `json:"rounds"`
	One    string `json:"one_run"`
}

func (m machine) String() string {
	pin := "nothing pinned"
	if m.Pinned {
		pin = "servers on core 0, generator on core 1"
	}
	files := m.Files
	if files == "tmpfs" {
		files += ", which is memory: nothing waits for a disk here"
	}
	return fmt.Sprintf("%s, %d cores, Linux %s, %s, commit %s, %s; %d rounds of %s, %s; data on %s",
		m.CPU, m.Cores, m.Kernel, m.Go, m.Commit, m.Time, m.Rounds, m.One, pin, files)
}

func thisMachine(o *options) machine {
	m := machine{Files: fileSystem(o.dir), Time: time.Now().UTC().Format(time.RFC3339), Cores: runtime.NumCPU(), Go: runtime.Version(), Pinned: o.pinned, Rounds: o.rounds, One: o.one.String()}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(text))
	}
	if text, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil {
		m.Commit = strings.TrimSpace(string(text))
	}
	return m
}

// fileSystem is the type of the one that dir lies on: of the mounts above it the nearest.
func fileSystem(dir string) string {
	mounts, _ := os.ReadFile("/proc/self/mounts")
	kind, nearest := "unknown", ""
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 3 || len(f[1]) < len(nearest) {
			continue
		}
		if inside, err := filepath.Rel(f[1], dir); err == nil && filepath.IsLocal(inside) {
			kind, nearest = f[2], f[1]
		}
	}
	return kind
}

// stages is what there is to run; a stage returns what it measured even when it
// fails half-way.
var stages = map[string]func(*bench, *section, *fleet) error{
	"decode": decodeStage, "ring": ringStage, "produce": produceStage,
	"http": httpStage, "constant": constantStage, "bulk": bulkStage, "insert": insertStage,
	"sink": sinkStage, "e2e": endToEndStage, "freshness": freshnessStage,
	"memory": memoryStage, "query": queryStage, "growth": growthStage,
}

var errVoid = errors.New("a ledger does not add up: the numbers of that run mean nothing")

func run(ctx context.Context, _ []string) (err error) {
	o, err := loadOptions()
	if err != nil {
		return err
	}
	if o.dir, err = os.MkdirTemp("", "edge-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	if o.pinned {
		if err := child.KeepTo(runtime.NumCPU() - 1); err != nil {
			return fmt.Errorf("keep the generator to one core: %w", err)
		}
	}
	b := &bench{o: &o, ctx: ctx}
	r := report{Machine: thisMachine(&o)}
	fmt.Println(r.Machine)
	var book ledger.Book
	for _, name := range o.stages {
		s := section{Stage: name}
		began := time.Now()
		err := b.stage(&s)
		s.Took = time.Since(began).Seconds()
		s.void()
		fmt.Print(s.markdown())
		if err != nil {
			r.Failed = append(r.Failed, fmt.Sprintf("%s: %v", name, err))
			fmt.Printf("stage %s failed: %v\n", name, err)
		}
		book = append(book, s.Book...)
		r.Sections = append(r.Sections, s)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	fmt.Printf("\n%s\n\n%s\n", headline(r.Sections), book.Summary())
	if err := r.write(o.out); err != nil {
		return err
	}
	fmt.Println("report:", filepath.Join(o.out, "README.md"))
	switch {
	case len(book.Void()) > 0:
		return errVoid
	case len(r.Failed) > 0:
		return fmt.Errorf("%d of %d stages failed: %s", len(r.Failed), len(o.stages), strings.Join(r.Failed, "; "))
	}
	return nil
}

// stage runs one stage with a fleet of its own.
func (b *bench) stage(s *section) (err error) {
	dir, err := os.MkdirTemp(b.o.dir, s.Stage+"-")
	if err != nil {
		return err
	}
	f := &fleet{o: b.o, ctx: b.ctx, dir: dir}
	defer func() { err = errors.Join(err, f.stop()) }()
	b.current = s
	return stages[s.Stage](b, s, f)
}

// measure offers l to t and enters what came of it in the book of the stage,
// whatever the run was for.
func (b *bench) measure(t *target, l load.Load) (sample, error) {
	if b.ctx.Err() != nil {
		return sample{}, b.ctx.Err()
	}
	m, err := t.measure(b.ctx, l)
	if err == nil {
		b.current.take(m, t.beside)
	}
	return m, err
}

// repeated is measure n times over, and the medians of it.
func (b *bench) repeated(n int, t *target, l load.Load) (sample, error) {
	var all []sample
	for range n {
		m, err := b.measure(t, l)
		if err != nil {
			return sample{}, err
		}
		all = append(all, m)
	}
	return typical(all), nil
}

// headline is every goal of a run, one row each.
func headline(sections []section) table {
	t := table{Title: "## What was reached", Header: []string{"stage", "must", "stretch", "measured", "ratio", "verdict", "reproduce"}}
	for _, s := range sections {
		for _, g := range s.Goals {
			t.row(g.What, g.Must, g.Stretch, g.Measured, g.Ratio, g.Verdict, "`"+g.Command+"`")
		}
	}
	return t
}

func (s *section) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n### %s: %s (%.0f s)\n\n", s.Stage, s.Title, s.Took)
	for _, t := range s.Tables {
		b.WriteString(t.String() + "\n")
	}
	for _, n := range s.Notes {
		b.WriteString("- " + n + "\n")
	}
	if len(s.Book) > 0 {
		b.WriteString("- " + strings.ReplaceAll(s.Book.Summary(), "\n", "\n  - ") + "\n")
	}
	return b.String()
}

// write makes the report's files: README.md, report.json and the plots.
func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var md strings.Builder
	fmt.Fprintf(&md, "# Benchmark report\n\n%s.\n\n%s", r.Machine, headline(r.Sections))
	for i := range r.Sections {
		s := &r.Sections[i]
		md.WriteString(s.markdown())
		for _, c := range s.Charts {
			fmt.Fprintf(&md, "\n![%s](%s.svg)\n", c.Title, c.Name)
			if err := os.WriteFile(filepath.Join(dir, c.Name+".svg"), []byte(c.SVG()), 0o644); err != nil {
				return err
			}
		}
	}
	for _, f := range r.Failed {
		fmt.Fprintf(&md, "\nFailed: %s\n", f)
	}
	if err := os.WriteFile(filepath.Join(dir, "README.md"), []byte(md.String()), 0o644); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "report.json"), append(text, '\n'), 0o644)
}
