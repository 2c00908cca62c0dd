// Command notices writes the licences of everything that is shipped with edge:
// the modules linked into the binary on any platform it is released for, Go's
// own library, and the ClickHouse engine. Licences ask that their text goes
// where the code goes, so the file is made from what is linked and not by hand,
// and a test fails when it is not what would be made now.
//
// It names no versions: a text is the same for most of them, and the file would
// change with every update for nothing.
package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// platforms are those of .goreleaser.yaml.
var platforms = []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64"}

// engine is what the embedded mode loads; its package brings no text.
const engine = "libchdb (ClickHouse), Copyright 2016-2026 ClickHouse, Inc. and contributors; " +
	"the libraries in it and their licences: SELECT * FROM system.licenses"

func main() {
	if err := write(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "notices:", err)
		os.Exit(1)
	}
}

// write writes every text once, with the modules it is of.
func write(w io.Writer) error {
	dirs, err := modules()
	if err != nil {
		return err
	}
	of := make(map[string][]string) // a text's modules
	apache := ""
	for path, dir := range dirs {
		text, err := licence(dir)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		of[text] = append(of[text], path)
		if path == "github.com/ClickHouse/ch-go" {
			apache = text
		}
	}
	if apache == "" {
		return fmt.Errorf("no text for %s", engine)
	}
	of[apache] = append(of[apache], engine)
	for _, names := range of {
		slices.Sort(names)
	}
	texts := slices.SortedFunc(maps.Keys(of), func(a, b string) int { return strings.Compare(of[a][0], of[b][0]) })
	var out bytes.Buffer
	out.WriteString("edge contains the work of others. Each text below is the licence of what is\nnamed above it. Made by make notices.\n")
	for _, text := range texts {
		fmt.Fprintf(&out, "\n%s\n\n", strings.Repeat("=", 80))
		for _, name := range of[text] {
			fmt.Fprintln(&out, name)
		}
		fmt.Fprintf(&out, "\n%s\n\n%s", strings.Repeat("-", 80), text)
	}
	_, err = w.Write(out.Bytes())
	return err
}

// modules returns the directories of all modules that are linked into edge, and
// of Go itself.
func modules() (map[string]string, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("ask for GOROOT: %w", err)
	}
	dirs := map[string]string{"the Go standard library and runtime": strings.TrimSpace(string(root))}
	for _, p := range platforms {
		system, arch, _ := strings.Cut(p, "/")
		cmd := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}\t{{.Dir}}{{end}}{{end}}", "edge/cmd/edge")
		cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH="+arch, "CGO_ENABLED=0")
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("list what is linked on %s: %w", p, err)
		}
		for line := range strings.Lines(string(out)) {
			if path, dir, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
				dirs[path] = dir
			}
		}
	}
	return dirs, nil
}

var legal = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice)(\.(md|txt))?$`)

// licence returns the legal texts of a module, one after another.
func licence(dir string) (string, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for _, f := range files {
		if f.IsDir() || !legal.MatchString(f.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return "", err
		}
		fmt.Fprintln(&out, strings.TrimSpace(strings.ReplaceAll(string(text), "\r\n", "\n")))
	}
	if out.Len() == 0 {
		return "", fmt.Errorf("no licence in %s", dir)
	}
	return out.String(), nil
}
