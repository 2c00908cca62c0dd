package embedded

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestSIGKILLLosesNothing kills a producing broker process at five arbitrary
// moments. Every acknowledged record must be at the offset it was acknowledged
// with, and no record may be in the log twice.
func TestSIGKILLLosesNothing(t *testing.T) {
	dir := t.TempDir()
	ledger := make(map[string]string) // value → "partition offset"
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 5 {
		produceAndKill(t, dir, ledger, 500+rnd.IntN(3000))
	}

	b := start(t, BrokerConfig{Dir: dir, Topics: map[string]int32{topic: 2}})
	if !b.uncleanStart {
		t.Error("the start after a kill is not reported as unclean")
	}
	total := 0
	for _, p := range b.Partitions(topic) {
		total += int(p.HighWatermark)
	}
	cl := newClient(t, b, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	seen := make(map[string]bool)
	for _, r := range consume(t, cl, total) {
		v := string(r.Value)
		if seen[v] {
			t.Fatalf("%s is in the log twice", v)
		}
		seen[v] = true
		at, acked := ledger[v]
		if got := fmt.Sprint(r.Partition, r.Offset); acked && got != at {
			t.Fatalf("%s is at %s; acknowledged at %s", v, got, at)
		}
		delete(ledger, v)
	}
	if len(ledger) > 0 {
		t.Fatalf("%d acknowledged records are lost", len(ledger))
	}
	t.Logf("%d records in the log", total)
}

func produceAndKill(t *testing.T, dir string, ledger map[string]string, acks int) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+dir)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ {
		if n == acks {
			child.Process.Kill()
		}
		f := strings.Fields(lines.Text())
		if len(f) != 3 || len(f[2])-strings.LastIndexByte(f[2], '-') != 1+64 {
			continue // the kill cut the last line short
		}
		ledger[f[2]] = f[0] + " " + f[1]
	}
	if err := child.Wait(); child.ProcessState.ExitCode() != -1 {
		t.Fatalf("the child ended by itself: %v", err)
	}
}
