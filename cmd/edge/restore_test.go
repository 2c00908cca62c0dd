//go:build linux

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// An older copy of ClickHouse comes back under a log and offsets that are
// further: nothing notices by itself that the group's offsets promise rows that
// are not there, edge verify does, and putting the offsets back to the start brings the
// rows back, each once, while new events come in.
func TestOlderClickHouseIsRestored(t *testing.T) {
	t.Parallel() // it waits more than it works
	n := startOwnCluster(t, "restored").tenant(t, "restored")
	p := n.start("edge", everything, restless...)
	l := startLoad(t, p.public)
	l.more(1000)
	n.progress()
	backup := t.TempDir()
	var inLog int
	n.withoutEngine(func() {
		copyDir(t, backup, n.engineDir)
		inLog = n.inLog()
	})
	// A plan that is open when the copy comes back is recovered, and leaves no gap.
	within(t, time.Minute, "what is not in the copy is stored and committed", func() error {
		committed, err := n.committed()
		return errors.Join(err, atLeast(committed, inLog+1))
	})
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
	if err := seekToStart(n.admin, n.name+"-sink", n.name, partitions); err != nil {
		t.Fatal(err)
	}
	n.again(p)
	p.awaitReady()
	l.more(100)
	n.rounds = 1
	n.balance(l)
	if report, err := p.command("verify"); err != nil {
		t.Errorf("edge verify after the repair: %v\n%s", err, report)
	}
}

// The same, embedded, when the directory of ClickHouse is lost and the log is
// not: edge kafka serves the log alone while the offsets are put back.
func TestLostClickHouseIsFilledFromTheLog(t *testing.T) {
	t.Parallel()
	needEngine(t)
	dir := t.TempDir()
	p := newNode(t, "DATA_DIR", dir)
	p.start()
	p.ready()
	body := []byte(`{"event_name":"a","user_id":"u1","timestamp":1708732800000,"event_id":"1"}
{"event_name":"a","user_id":"u2","timestamp":1708732800000,"event_id":"2"}
{"event_name":"b","user_id":"u1","timestamp":1740355200000,"event_id":"3"}`)
	for range 2 { // the second time they are duplicates, which leave no row
		if !postBody("http://"+p.public, body) {
			t.Fatal("not accepted")
		}
	}
	if r := p.verify(6); len(r.Problems) > 0 {
		t.Fatal(r.text)
	}
	p.terminate()
	if err := os.RemoveAll(filepath.Join(dir, "clickhouse")); err != nil {
		t.Fatal(err)
	}
	p.start()
	p.ready()
	if r := p.verify(0); len(r.Problems) == 0 {
		t.Errorf("edge verify does not see that everything is gone: %s", r.text)
	}
	p.terminate()

	port := freePort(t)
	broker := spawn(t, "kafka", append(p.settings, "EMBEDDED_KAFKA_LISTEN", "127.0.0.1:"+port), os.Args[0], "kafka")
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:" + port))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	within(t, time.Minute, "the offsets are put back", func() error {
		return seekToStart(kadm.NewClient(client), "edge-sink", "events", 1)
	}, broker)
	broker.terminate()
	p.start()
	p.ready()
	if r := p.verify(6); len(r.Problems) > 0 || r.sum() != 6 || r.Partitions[0].Rows != 3 || r.Mismatched != 0 || r.Users != 0 {
		t.Errorf("after the repair: %s", r.text)
	}
}

// seekToStart is what kafka-consumer-groups --reset-offsets --to-earliest and
// rpk group seek --to start do: a commit from outside the group.
func seekToStart(admin *kadm.Client, group, topic string, partitions int32) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var start kadm.Offsets
	for p := range partitions {
		start.AddOffset(topic, p, 0, -1)
	}
	return admin.CommitAllOffsets(ctx, group, start)
}

// inLog adds up how many records the partitions have had.
func (n *tenant) inLog() (sum int) {
	n.t.Helper()
	ends, err := n.admin.ListEndOffsets(n.t.Context(), n.name)
	if err := errors.Join(err, ends.Error()); err != nil {
		n.t.Fatal(err)
	}
	ends.Each(func(end kadm.ListedOffset) { sum += int(end.Offset) })
	return sum
}

// committed adds up how many of them lie before the group's offsets.
func (n *tenant) committed() (sum int, err error) {
	commits, err := n.admin.FetchOffsets(n.t.Context(), n.name+"-sink")
	commits.Each(func(o kadm.OffsetResponse) { sum += int(o.At) })
	return sum, errors.Join(err, commits.Error())
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
