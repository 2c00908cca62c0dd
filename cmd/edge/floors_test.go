package main

import (
	"cmp"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"
)

// floors are the oldest versions that have the fixes we know of. Neither project
// asks for CVE numbers as a rule, so govulncheck is silent about most of them.
var floors = map[string]string{
	"github.com/valyala/fasthttp": "v1.77.0", // duplicate Transfer-Encoding, chunked on HTTP/1.0, chunk extensions
	"github.com/goccy/go-json":    "v0.12.0", // unsynchronised decoder cache, encoder panics of 0.10
}

func TestDependenciesAreNotBelowTheirFloors(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for path, floor := range floors {
		m := regexp.MustCompile(`(?m)^\s*(?:require )?` + regexp.QuoteMeta(path) + ` (v\S+)`).FindSubmatch(mod)
		if m == nil {
			t.Errorf("go.mod does not require %s", path)
			continue
		}
		if got := string(m[1]); compareVersions(t, got, floor) < 0 {
			t.Errorf("go.mod has %s %s; it must not be older than %s", path, got, floor)
		}
		// A replace could put anything in its place.
		if regexp.MustCompile(regexp.QuoteMeta(path) + `(?: v\S+)? =>`).Match(mod) {
			t.Errorf("go.mod replaces %s", path)
		}
	}
	f := func(a, b string, want int) {
		t.Helper()
		if got := compareVersions(t, a, b); got != want {
			t.Errorf("%s and %s: got %d; want %d", a, b, got, want)
		}
	}
	f("v1.77.0", "v1.9.9", 1)
	f("v1.77.0", "v1.77.0", 0)
	f("v0.12.0", "v1.0.0", -1)
	f("v1.77.0-rc.1", "v1.77.0", -1)
}

// compareVersions compares two released versions; one with a suffix is before
// its release.
func compareVersions(t *testing.T, a, b string) int {
	t.Helper()
	parse := func(v string) []int {
		m := regexp.MustCompile(`^v(\d+)\.(\d+)\.(\d+)(-.*)?$`).FindStringSubmatch(v)
		if m == nil {
			t.Fatalf("%s is no version", v)
		}
		var n []int
		for _, digits := range m[1:4] {
			i, _ := strconv.Atoi(digits) // the pattern has seen to it
			n = append(n, i)
		}
		return append(n, cmp.Compare("", m[4]))
	}
	return slices.Compare(parse(a), parse(b))
}
