package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The README's transcripts are run, in order, against one fresh edge.
func TestREADMETranscripts(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"curl", "gzip"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("the transcripts need ", tool)
		}
	}
	in := startEdge(t, t.TempDir())
	ran := 0
	for _, step := range transcripts(string(readme)) {
		command := strings.ReplaceAll(step.command, "localhost:8080", in.public)
		in.eventually("$ "+step.command, func() error {
			got, err := exec.Command("bash", "-c", command).Output()
			if err != nil {
				return err
			}
			if strings.TrimSpace(string(got)) != step.want {
				err := fmt.Errorf("got  %s\nwant %s", got, step.want)
				if !strings.Contains(command, "/metrics") {
					t.Fatal(err) // only a count may still be on its way
				}
				return err
			}
			return nil
		})
		ran++
	}
	if ran < 8 {
		t.Errorf("ran %d commands; the README had more", ran)
	}
}

type transcript struct{ command, want string }

// transcripts returns the commands of console blocks with the lines after them.
func transcripts(text string) (out []transcript) {
	inside := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case !inside:
		case strings.HasPrefix(line, "$ "):
			out = append(out, transcript{command: line[2:]})
		default:
			last := &out[len(out)-1]
			last.want = strings.TrimSpace(last.want + "\n" + line)
		}
	}
	return out
}
