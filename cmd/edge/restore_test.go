//go:build linux

package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// An older copy of ClickHouse comes back under a log and offsets that are
// further: nothing notices by itself that the group's offsets promise rows that
// are not there, edge verify does, and putting the offsets back to the start brings the
// rows back, each once, while new events come in.
func TestOlderClickHouseIsRestored(t *testing.T) {
	n := startOwnCluster(t, "restored").tenant(t, "restored")
	p := n.start("edge", everything, restless...)
	l := startLoad(t, p.public)
	l.more(1000)
	n.progress()
	backup := t.TempDir()
	n.withoutEngine(func() { copyDir(t, backup, n.engineDir) })
	l.more(2000) // these are in ClickHouse, and not in the copy
	n.progress()
	before := n.stored("SELECT count() AS s FROM events")
	n.withoutEngine(func() {
		if err := os.RemoveAll(n.engineDir); err != nil {
			t.Fatal(err)
		}
		copyDir(t, n.engineDir, backup)
	})
	after := n.stored("SELECT count() AS s FROM events")
	t.Logf("%s rows before, %s in the copy", before[0], after[0])
	n.progress() // the sink goes on behind the gap
	report, err := p.command("verify")
	if err == nil || !strings.Contains(report, "NOT everything adds up") || !strings.Contains(report, "are in no batch") {
		t.Errorf("edge verify says %v after an older copy was restored; want an exit status and the gap:\n%s", err, report)
	}

	p.terminate()
	n.seekToStart()
	n.again(p)
	p.awaitReady()
	l.more(100)
	n.rounds = 1
	n.balance(l)
	if report, err := p.command("verify"); err != nil {
		t.Errorf("edge verify after the repair: %v\n%s", err, report)
	}
}

// seekToStart is what kafka-consumer-groups --reset-offsets --to-earliest and
// rpk group seek --to start do: a commit from outside the group.
func (n *tenant) seekToStart() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var start kadm.Offsets
	for p := range int32(partitions) {
		start.AddOffset(n.name, p, 0, -1)
	}
	if err := n.admin.CommitAllOffsets(ctx, n.name+"-sink", start); err != nil {
		n.t.Fatal(err)
	}
}

// withoutEngine stops ClickHouse in good order, runs f and starts it again.
func (c *cluster) withoutEngine(f func()) {
	c.t.Helper()
	c.engine.terminate()
	f()
	c.spawnEngine()
	c.awaitEngine()
}

func copyDir(t *testing.T, to, from string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}
