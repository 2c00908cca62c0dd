//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	engine "edge/internal/embedded/clickhouse"
)

// block is a fenced block of a page.
type block struct {
	page string
	line int
	kind string // the words behind the fence
	text string
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

// pages are what an operator reads.
func pages(t *testing.T) []string {
	t.Helper()
	docs, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(docs) == 0 {
		t.Fatalf("no docs: %v", err)
	}
	return append([]string{"../../README.md"}, docs...)
}

func blocks(t *testing.T, page string) (out []block) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	open, indent := false, ""
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		before, kind, fence := strings.Cut(strings.TrimRight(line, "\n"), "```")
		switch {
		case fence && !open:
			open, indent = true, before
			out = append(out, block{page: filepath.Base(page), line: n, kind: kind})
		case fence:
			open = false
		case open:
			out[len(out)-1].text += strings.TrimPrefix(line, indent)
		}
	}
	return out
}

// Blocks of kind sh are run, and the README's of kind console. A second word says
// what a block needs that is not here: it is read by the shell and compared with
// what there is. Kind text is no command.
var elsewhere = []string{"sh make", "sh docker", "sh kafka", "sh clickhouse", "sh kubernetes", "sh systemd"}

// The sh blocks of docs are run in order, each page against a fresh edge, or
// against what it starts itself.
func TestDocsCommands(t *testing.T) {
	for _, tool := range []string{"bash", "curl", "grep"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("the pages need ", tool)
		}
	}
	needEngine(t)
	library, err := engine.FindLibrary()
	if err != nil {
		t.Fatal(err)
	}
	if library, err = filepath.Abs(library); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(self, filepath.Join(bin, "edge")); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, page := range pages(t)[1:] { // the README's transcripts have a test of their own
		t.Run(filepath.Base(page), func(t *testing.T) {
			var scripts []block
			starts := false
			for _, b := range blocks(t, page) {
				if b.kind == "sh" {
					scripts = append(scripts, b)
					starts = starts || strings.Contains(b.text, "edge serve")
				}
			}
			if len(scripts) == 0 {
				return
			}
			dir := t.TempDir()
			n := newNode(t, "DATA_DIR", filepath.Join(dir, "data"))
			if !starts {
				n.start()
				n.ready()
				if !postBody("http://"+n.public, []byte(`{"event_name":"a","user_id":"u","timestamp":1708732800000}`)) {
					t.Fatal("the page's edge takes no event")
				}
			}
			// To migrate, the page's engine is a server like any other.
			ports := strings.NewReplacer("localhost:8080", n.public, "localhost:9091", n.admin, "edge migrate", "EMBEDDED=false edge migrate")
			for _, b := range scripts {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"+ports.Replace(b.text))
				cmd.Dir = dir
				// A group of its own, so that what it started ends with it.
				cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
				cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
				cmd.WaitDelay = 5 * time.Second
				cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "CHDB_LIBRARY="+library, "LOG_LEVEL=warn",
					"CLICKHOUSE_HOST=127.0.0.1", "CLICKHOUSE_PORT="+strings.TrimPrefix(n.engine, "127.0.0.1:"),
					"EMBEDDED=true", "DATA_DIR="+n.setting("DATA_DIR"), "SERVER_HOST=127.0.0.1", "SERVER_PORT="+n.setting("SERVER_PORT"), "ADMIN_PORT="+n.setting("ADMIN_PORT"))
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%s: %v\n%s\n%s", b, err, b.text, out)
				}
				ran++
			}
		})
	}
	if ran < 8 {
		t.Errorf("ran %d blocks; the pages had more", ran)
	}
}

// What cannot run here is at least a script, and names targets, subcommands,
// settings and files that there are.
func TestCommandBlocks(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	settings := make(map[string]bool)
	for f := range reflect.TypeFor[config]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("env"), ",")
		settings[name] = true
	}
	target := regexp.MustCompile(`(?m)\bmake ([a-z][a-z-]*)`)
	command := regexp.MustCompile(`(?m)(?:^|[ ;&|(])edge ([a-z][a-z-]*)`)
	assigned := regexp.MustCompile(`(?m)(?:^|\s)([A-Z][A-Z0-9_]+)=`)
	file := regexp.MustCompile(`\b(?:deploy|docs|migrations|bench)/[\w./-]*\w`)
	for _, page := range pages(t) {
		for _, b := range blocks(t, page) {
			switch {
			case b.kind == "text":
				continue
			case b.kind == "console" && page == pages(t)[0]:
				continue // TestREADMETranscripts
			case b.kind == "sh" && page == pages(t)[0]:
				t.Errorf("%s: the README's sh blocks are not run; want console or one of %q", b, elsewhere)
			case b.kind != "sh" && !slices.Contains(elsewhere, b.kind):
				t.Errorf("%s: a block of kind %q; want sh, text or one of %q", b, b.kind, elsewhere)
				continue
			}
			check := exec.Command("bash", "-n")
			check.Stdin = strings.NewReader(b.text)
			if out, err := check.CombinedOutput(); err != nil {
				t.Errorf("%s is no script: %v\n%s", b, err, out)
			}
			for _, m := range target.FindAllStringSubmatch(b.text, -1) {
				if !regexp.MustCompile(`(?m)^` + m[1] + `:`).Match(makefile) {
					t.Errorf("%s: there is no make %s", b, m[1])
				}
			}
			for _, m := range command.FindAllStringSubmatch(b.text, -1) {
				if !regexp.MustCompile(`(?m)^  ` + m[1] + ` `).MatchString(usage) {
					t.Errorf("%s: there is no edge %s", b, m[1])
				}
			}
			for _, m := range assigned.FindAllStringSubmatch(b.text, -1) {
				if !settings[m[1]] && m[1] != "FILE" {
					t.Errorf("%s: there is no setting %s", b, m[1])
				}
			}
			for _, name := range file.FindAllString(b.text, -1) {
				if _, err := os.Stat(filepath.Join("../..", name)); err != nil {
					t.Errorf("%s: %v", b, err)
				}
			}
		}
	}
}

// Every alert has its heading in the operations guide, with what to look at,
// what to do and how to see that it is over; and no heading is of an alert that
// is gone.
func TestAlertsAreInTheGuide(t *testing.T) {
	var alerts []string
	rules, err := filepath.Glob("../../deploy/prometheus/rules/*.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range rules {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^\s*- alert: (\w+)`).FindAllStringSubmatch(string(text), -1) {
			alerts = append(alerts, m[1])
			if want := "runbook: docs/operations.md#" + strings.ToLower(m[1]); !strings.Contains(string(text), want) {
				t.Errorf("%s: %s has no %q", path, m[1], want)
			}
		}
	}
	if len(alerts) < 15 {
		t.Fatalf("found %d alerts in %v; there were more", len(alerts), rules)
	}
	guide, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, sections, _ := strings.Cut(string(guide), "\n## Alerts\n")
	seen := make(map[string]bool)
	for _, section := range strings.Split(sections, "\n### ")[1:] {
		name, body, _ := strings.Cut(section, "\n")
		seen[name] = true
		if !slices.Contains(alerts, name) {
			t.Errorf("the guide has %s, which is no alert", name)
		}
		for _, part := range []string{"- **Over**", "- **Do**", "- **Look**"} {
			if !strings.Contains(body, part) && (name != "EdgeLedgerOff" || part != "- **Do**") {
				t.Errorf("%s: the guide has no %s", name, part)
			}
		}
	}
	for _, name := range alerts {
		if !seen[name] {
			t.Errorf("%s has no heading in docs/operations.md", name)
		}
	}
}

// Links between pages lead to pages and headings that are there; metrics,
// settings and log messages that the pages name exist.
func TestDocsNameWhatThereIs(t *testing.T) {
	anchor := func(heading string) string {
		return regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(heading), "")
	}
	headings := make(map[string]map[string]bool)
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		at := make(map[string]bool)
		for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(string(text), -1) {
			at[strings.ReplaceAll(anchor(m[1]), " ", "-")] = true
		}
		headings[filepath.Base(page)] = at
	}
	source := sourceText(t)
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(page)
		for _, m := range regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`).FindAllStringSubmatch(string(text), -1) {
			to := m[1]
			if to == "" {
				to = name
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), to)); err != nil {
				t.Errorf("%s links to %s: %v", name, to, err)
			}
			if at := headings[filepath.Base(to)]; m[2] != "" && !at[m[2]] {
				t.Errorf("%s links to #%s of %s, which has no such heading", name, m[2], to)
			}
		}
		for _, metric := range regexp.MustCompile(`\bedge_[a-z_]+[a-z]\b`).FindAllString(string(text), -1) {
			if !strings.Contains(source, `"`+metric+`"`) && !prefixOfMetric(source, metric) {
				t.Errorf("%s names the metric %s, which nothing exports", name, metric)
			}
		}
		for _, m := range regexp.MustCompile("`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)`").FindAllStringSubmatch(string(text), -1) {
			if !strings.Contains(source, strings.TrimSuffix(m[1], "_FILE")) { // a secret may come in a file
				t.Errorf("%s names the setting %s, which is none", name, m[1])
			}
		}
	}
}

// prefixOfMetric allows for edge_audit in a grep.
func prefixOfMetric(source, name string) bool { return strings.Contains(source, `"`+name+`_`) }

// sourceText is the program, without its tests.
func sourceText(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, dir := range []string{"*/*.go", "*/*/*.go", "*/*/*/*.go"} {
		paths, err := filepath.Glob(filepath.Join("../..", dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			out.Write(text)
		}
	}
	return out.String()
}
