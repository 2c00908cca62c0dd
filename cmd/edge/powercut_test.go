//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
)

// A power cut loses parts that ClickHouse had answered for: they are taken away
// by hand here, some of the rows and some of the rollups, and the host counts as
// booted uncleanly. The log still has the records.
func TestPowerCutLosesParts(t *testing.T) {
	needEngine(t)
	p := newNode(t, "DATA_DIR", t.TempDir(), "FLUSH_INTERVAL", "5ms")
	p.start()
	p.ready()
	l := &promises{promised: make(map[string]struct{})}
	stop := make(chan struct{})
	wg := l.load(func() string { return "http://" + p.public }, 4, stop)
	within(t, time.Minute, "events are accepted", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		return atLeast(len(l.promised), 20_000)
	}, p.process)
	close(stop)
	wg.Wait()
	checkLedger(t, p, l)

	conn, err := ch.Dial(context.Background(), ch.Options{Address: p.engine, Database: "events_db"})
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		// One month of the rows, half the offsets of the other, and other cells
		// of each rollup.
		"ALTER TABLE events DROP PARTITION 202610",
		"ALTER TABLE events DELETE WHERE _first % 3 = 0 SETTINGS mutations_sync = 2",
		"ALTER TABLE events_1m DELETE WHERE event_name = 'e1' SETTINGS mutations_sync = 2",
		"ALTER TABLE events_users DELETE WHERE event_name = 'e2' OR width = 3600 OR width = 300 AND by_channel = 0 SETTINGS mutations_sync = 2",
	} {
		if err := conn.Do(context.Background(), ch.Query{Body: sql}); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if r := p.verify(0); r.Mismatched == 0 || len(r.Problems) == 0 {
		t.Fatalf("the audit does not see what was taken away: %s", r.text)
	}
	p.kill()
	markUncleanBoot(t, p)
	p.start()
	p.ready()
	checkLedger(t, p, l)
	p.terminate()
}

// A power cut takes the tail of the log, of which all was stored: its offsets are given to
// other events. What was promised is stored once, before it and after.
func TestPowerCutLosesTheTail(t *testing.T) {
	needEngine(t)
	p := newNode(t, "DATA_DIR", t.TempDir(), "FLUSH_INTERVAL", "5ms")
	l := &promises{promised: make(map[string]struct{})}
	load := func(until int) {
		t.Helper()
		p.start()
		p.ready()
		stop := make(chan struct{})
		wg := l.load(func() string { return "http://" + p.public }, 4, stop)
		within(t, time.Minute, "events are accepted", func() error {
			l.mu.Lock()
			defer l.mu.Unlock()
			return atLeast(len(l.promised), until)
		}, p.process)
		close(stop)
		wg.Wait()
	}
	load(10_000)
	checkLedger(t, p, l)
	for n := range 2 { // the second takes what is left of the first life's, too
		p.kill()
		segments, err := filepath.Glob(filepath.Join(p.setting("DATA_DIR"), "kafka", "partitions", "events-0", "*.dat"))
		if err != nil || len(segments) != 1 {
			t.Fatalf("%v: the log has %q; want one segment", err, segments)
		}
		st, err := os.Stat(segments[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(segments[0], st.Size()/3); err != nil {
			t.Fatal(err)
		}
		markUncleanBoot(t, p)
		load(10_000 + (n+1)*2000)
		within(t, time.Minute, "all of it is stored", func() error {
			if missing, twice := storedIDs(t, p.engine, l); missing+twice != 0 {
				return fmt.Errorf("%d of %d promised ids are missing, %d are stored more than once", missing, len(l.promised), twice)
			}
			return nil
		}, p.process)
		r := p.verify(0)
		for _, c := range r.Partitions {
			if c.Missing != 0 || c.Extra != 0 {
				t.Errorf("missing %d, extra %d", c.Missing, c.Extra)
			}
		}
		if r.Mismatched != 0 || r.Users != 0 || len(r.Problems) != 0 {
			t.Errorf("it does not add up: %s\n%s", r.text, p.tail(40))
		}
	}
	p.terminate()
}

// markUncleanBoot makes the next start believe that the host went down.
func markUncleanBoot(t *testing.T, p *node) {
	t.Helper()
	path := filepath.Join(p.setting("DATA_DIR"), "kafka", "edge.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	marked := strings.Replace(string(text), `"unscanned":false`, `"unscanned":true`, 1)
	if marked == string(text) {
		t.Fatalf("no mark to set in %s", text)
	}
	if err := os.WriteFile(path, []byte(marked), 0o600); err != nil {
		t.Fatal(err)
	}
}
