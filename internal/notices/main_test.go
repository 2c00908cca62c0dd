package main

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
)

// THIRD_PARTY_NOTICES has the licence of everything that is linked now.
func TestNoticesAreComplete(t *testing.T) {
	have, err := os.ReadFile("../../THIRD_PARTY_NOTICES")
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := modules()
	if err != nil {
		t.Fatal(err)
	}
	for path := range dirs {
		if !bytes.Contains(have, []byte("\n"+path+"\n")) {
			t.Errorf("THIRD_PARTY_NOTICES has no %s: make notices", path)
		}
	}
	var want bytes.Buffer
	if err := write(&want); err != nil {
		t.Fatal(err)
	}
	if !t.Failed() && !bytes.Equal(have, want.Bytes()) {
		t.Error("THIRD_PARTY_NOTICES is not what is linked now: make notices")
	}
}

// The release is configured for the platforms whose modules were looked at, and
// brings the texts along.
func TestReleaseBringsTheNotices(t *testing.T) {
	text, err := os.ReadFile("../../.goreleaser.yaml")
	if err != nil {
		t.Fatal(err)
	}
	list := func(key string) []string {
		m := regexp.MustCompile(`(?m)^\s+` + key + `: \[([^\]]*)\]$`).FindStringSubmatch(string(text))
		if m == nil {
			t.Fatalf("no %s in .goreleaser.yaml", key)
		}
		return strings.Split(m[1], ", ")
	}
	var built []string
	for _, system := range list("goos") {
		for _, arch := range list("goarch") {
			built = append(built, system+"/"+arch)
		}
	}
	if got, want := strings.Join(built, " "), strings.Join(platforms, " "); got != want {
		t.Errorf("released for %s; licences are of %s", got, want)
	}
	for _, file := range []string{"LICENSE", "THIRD_PARTY_NOTICES", "CHANGELOG.md"} {
		if !strings.Contains(string(text), file) {
			t.Errorf("the archives do not have %s", file)
		}
		if _, err := os.Stat("../../" + file); err != nil {
			t.Error(err)
		}
	}
}
