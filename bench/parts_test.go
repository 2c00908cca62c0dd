//go:build linux

package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func watched(t *testing.T, directories map[string]string) *partWatch {
	t.Helper()
	w, err := watchParts(directories)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	if err := w.inotify.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil { // for a watch that misses a part
		t.Fatal(err)
	}
	return w
}

// TestPartWatch makes parts as ClickHouse does: written under another name, renamed when
// whole, merged, set aside for removal.
func TestPartWatch(t *testing.T) {
	events, minutes := t.TempDir(), t.TempDir()
	w := watched(t, map[string]string{"events": events, "events_1m": minutes})
	appear := func(dir, was, is string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, was), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, was), filepath.Join(dir, is)); err != nil {
			t.Fatal(err)
		}
	}
	appear(events, "tmp_insert_202611_7_7_0", "202611_7_7_0")
	appear(events, "tmp_insert_202611_8_8_0", "202611_8_8_0")
	appear(events, "tmp_merge_202611_1_8_2", "202611_1_8_2")
	appear(events, "202611_7_7_0", "delete_tmp_202611_7_7_0")
	appear(minutes, "tmp_insert_2026_7_7_1", "2026_7_7_1")
	appear(minutes, "tmp_merge_2026_1_7_2", "2026_1_7_2")
	appear(minutes, "tmp_insert_2026_8_8_1", "2026_8_8_1")
	for n := range int64(2) {
		got, err := w.wait()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []part{{"events", "202611", 7 + n, 7 + n}, {"events_1m", "2026", 7 + n, 7 + n}} {
			if len(got) != 2 || !slices.Contains(got, want) {
				t.Errorf("insert %d: got %v; want two parts with %v", n, got, want)
			}
		}
	}
}

func TestPartCovers(t *testing.T) {
	made, _ := parsePart("events", "202611_7_7_0")
	for name, want := range map[string]bool{
		"202611_7_7_0": true, "202611_1_8_2": true, "202611_1_7_2_9": false, // a mutation, of which there is none here
		"202611_1_6_2": false, "202611_8_9_1": false, "202612_7_7_0": false, "tmp_insert_202611_7_7_0": false,
	} {
		p, ok := parsePart("events", name)
		if got := ok && p.covers(made); got != want {
			t.Errorf("%s covers %v: got %v; want %v", name, made, got, want)
		}
	}
	if later, _ := parsePart("events", "202611_1_8_2"); later.upTo(made) || !made.upTo(later) {
		t.Error("a part with a later insert is up to an earlier one, or the other way round")
	}
	if other, _ := parsePart("events_1m", "202611_7_7_0"); other.covers(made) {
		t.Error("a part of another table covers it")
	}
}

// TestPartOfNoInsert makes a part of one table alone, as the repair of a rollup does.
func TestPartOfNoInsert(t *testing.T) {
	events, users := t.TempDir(), t.TempDir()
	w := watched(t, map[string]string{"events": events, "events_users": users})
	for _, path := range []string{filepath.Join(users, "all_1_1_0"), filepath.Join(users, "all_2_2_0"), filepath.Join(events, "202611_1_1_0")} {
		if err := os.Rename(t.TempDir(), path); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	err := w.each(ctx, func(made []part) (bool, error) {
		asked++
		cancel()
		return true, nil
	})
	if err == nil || !strings.Contains(err.Error(), "1 parts of events_users") || asked != 1 {
		t.Errorf("got %v after %d calls; want one call and an error that names a part too many", err, asked)
	}
}
