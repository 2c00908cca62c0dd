//go:build linux

package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// What comes again is stored in a third of the room: no event of a run is like another.
func TestDistinctEventsDiffer(t *testing.T) {
	f := func(requests [][]byte, each int) {
		t.Helper()
		stamp := distinct(requests)
		seen := make(map[string]bool)
		earliest := time.Now().Add(-time.Minute).UnixMilli()
		for n := range int64(30) {
			buf := slices.Clone(requests[n%3])
			stamp(n, buf)
			if len(buf) != len(requests[n%3]) {
				t.Fatalf("request %d has %d bytes, was of %d", n, len(buf), len(requests[n%3]))
			}
			_, body, _ := strings.Cut(string(buf), "\r\n\r\n")
			for line := range strings.Lines(body) {
				if seen[line] {
					t.Errorf("event %s twice", line)
				}
				seen[line] = true
				var e struct {
					UserID    string `json:"user_id"`
					Timestamp int64
					Metadata  map[string]string
				}
				err := json.Unmarshal([]byte(line), &e)
				if err != nil || e.Timestamp < earliest || e.Timestamp > time.Now().UnixMilli() || len(e.Metadata["product_id"]) != 8 || !strings.HasPrefix(e.UserID, "user_") {
					t.Errorf("%s: %v, %+v", line, err, e)
				}
			}
		}
		if len(seen) != 30*each {
			t.Errorf("%d events; want %d", len(seen), 30*each)
		}
	}
	f(newGenerated(1).lines(3), bulkSize)
	f(newGenerated(1).singles(3), 1)
}

// A run of 10,000 names has 10,000, and as many campaigns, which are not theirs alone.
func TestGeneratedNamesAreAll(t *testing.T) {
	f := func(names, campaigns, atLeast int) {
		t.Helper()
		g := newGenerated(1)
		g.names, g.campaigns = names, campaigns
		n, c, both := make(map[string]bool), make(map[string]bool), make(map[string]bool)
		for _, r := range g.lines(256) {
			for _, part := range strings.Split(string(r), `"event_name":"`)[1:] {
				name := part[:strings.IndexByte(part, '"')]
				_, campaign, _ := strings.Cut(part, `"campaign_id":"`)
				campaign = campaign[:strings.IndexByte(campaign, '"')]
				n[name], c[campaign], both[name+campaign] = true, true, true
			}
		}
		if len(n) != names || len(c) != campaigns || len(both) < atLeast {
			t.Errorf("%d names, %d campaigns, %d of both together; want %d, %d, at least %d", len(n), len(c), len(both), names, campaigns, atLeast)
		}
	}
	f(1, 1, 1)
	f(3, 40, 120)
	f(100, 100, 10_000)
	f(10_000, 10_000, 25_600)
	f(10_000, 40, 25_600)
}
