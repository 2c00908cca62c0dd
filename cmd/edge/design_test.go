package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// faultMatrix is what the design promises to test, and the tests that bear the
// fault's name.
var faultMatrix = []struct{ fault, tests string }{
	{"SIGKILL edge at C1-C4", "TestSIGKILLEdgeAtC1ToC4"},
	{"SIGKILL at C7-C15", "TestSIGKILLAtC7ToC15"},
	{"broker down", "TestBrokerDown"},
	{"broker slow (500 ms)", "TestBrokerSlow"},
	{"ack lost after append", "TestAckLostAfterAppend"},
	{"leader moves, node lost", "TestLeaderMoves TestNodeLost"},
	{"coordinator moves, commit fails", "TestCoordinatorMoves TestCommitFails"},
	{"network cut mid-request", "TestNetworkCutMidRequest"},
	{"log lost its tail", "TestLogLostItsTail"},
	{"topic deleted/recreated", "TestTopicRecreated"},
	{"ClickHouse down", "TestClickHouseDown"},
	{"ClickHouse slow", "TestClickHouseSlow"},
	{"ClickHouse disk full (243) / memory limit (241)", "TestClickHouseDiskFull TestClickHouseMemoryLimit"},
	{"too many parts (252)", "TestTooManyParts"},
	{"MV throws", "TestMVThrows"},
	{"ClickHouse restarts mid-insert", "TestClickHouseRestartsMidInsert"},
	{"events older than MAX_AGE, or TTL changed by hand", "TestEventsOlderThanMaxAge TestTTLChangedByHand"},
	{"schema drift (column missing)", "TestSchemaDrift"},
	{"ring full", "TestRingFull"},
	{"edge disk full (embedded)", "TestEdgeDiskFull"},
	{"fsync EIO (embedded)", "TestFsyncEIO"},
	{"clock jumps +-1 h, backwards", "TestClockJumps"},
	{"poison message (undecodable, too new version)", "TestPoisonMessage"},
	{"DLQ itself fails", "TestDLQItselfFails"},
	{"rebalance mid-insert", "TestRebalanceMidInsert"},
	{"owner frozen (SIGSTOP 60 s) then resumed", "TestOwnerFrozenThenResumed"},
	{"duplicate SDK retries", "TestDuplicateSDKRetries"},
	{"handler times out before promise", "TestHandlerTimesOutBeforePromise"},
	{"slowloris (headers, body, chunks, silent connect)", "TestSlowloris"},
	{"10k idle connections", "Test10kIdleConnections"},
	{"connection flood", "TestConnectionFlood"},
	{"decompression bomb", "TestDecompressionBomb"},
	{"oversized body", "TestOversizedBody"},
	{"malformed JSON corpus", "TestMalformedJSONCorpus"},
	{"deep nesting", "TestDeepNesting"},
	{"request smuggling shapes", "TestRequestSmugglingShapes"},
	{"SIGTERM", "TestSIGTERM"},
	{"OOM pressure", "TestOOMPressure"},
	{"bad config", "TestBadConfig"},
}

// tests returns the tests of this module, and of bench beside it.
func tests(t *testing.T) map[string]bool {
	t.Helper()
	found := make(map[string]bool)
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
			found[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

var testName = regexp.MustCompile("`(Test\\w+)`")

// named returns the tests that text names.
func named(text string) (names []string) {
	for _, m := range testName.FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return names
}

// DESIGN.md names the test of each fault; every name must be a test.
func TestDESIGNNamesRealTests(t *testing.T) {
	design, err := os.ReadFile("../../DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	exist := tests(t)
	for _, name := range named(string(design)) {
		if !exist[name] {
			t.Errorf("DESIGN.md names %s, which is no test", name)
		}
	}
}

// TestFaultMatrix holds DESIGN.md's table to the matrix, row by row, and wants a
// test in every row of every table of faults.
func TestFaultMatrix(t *testing.T) {
	design, err := os.ReadFile("../../DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	var tables [][][2]string // of rows: fault, tests
	in := false
	for line := range strings.Lines(string(design)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "| fault | test |":
			tables, in = append(tables, nil), true
		case !strings.HasPrefix(line, "| "):
			in = false
		case in && !strings.HasPrefix(line, "| ---"):
			fault, tests, _ := strings.Cut(strings.Trim(line, "| "), " | ")
			rows := &tables[len(tables)-1]
			*rows = append(*rows, [2]string{fault, tests})
			if len(named(tests)) == 0 {
				t.Errorf("row %q names no test", fault)
			}
		}
	}
	if len(tables) != 2 {
		t.Fatalf("DESIGN.md has %d tables of faults and their tests; want the matrix and what is added to it", len(tables))
	}
	for i, want := range faultMatrix {
		if i >= len(tables[0]) || tables[0][i][0] != want.fault {
			t.Fatalf("row %d of the matrix is not %q", i+1, want.fault)
		}
		bear := strings.Fields(want.tests)
		if got := named(tables[0][i][1]); len(got) < len(bear) || !slices.Equal(got[:len(bear)], bear) {
			t.Errorf("row %q names %v; want %v first", want.fault, got, bear)
		}
	}
	if got := len(tables[0]); got != len(faultMatrix) {
		t.Errorf("the matrix has %d rows; want %d", got, len(faultMatrix))
	}
}
