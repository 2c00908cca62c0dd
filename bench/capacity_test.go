//go:build linux

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"edge/bench/model"
	"edge/bench/rival"
	"edge/internal/codec"
)

// The model takes a row on its way to ClickHouse to be as large as the event was. It is
// smaller, though not by much.
func TestRowIsAboutAsLargeAsItsEvent(t *testing.T) {
	const events = 5000
	var body []byte
	g := newGenerated(1)
	for range events {
		body = append(g.append(body), '\n')
	}
	batch, block := codec.NewPool(codec.Rules{}).Get(), rival.NewBlock()
	defer batch.Release()
	if bad := batch.DecodeLines(body, time.Now()); bad != nil || batch.Len() != events {
		t.Fatalf("%d events, %v; want %d", batch.Len(), bad, events)
	}
	var d codec.Decoder
	for i := range events {
		if err := block.Append(batch.Record(i), &d); err != nil {
			t.Fatal(err)
		}
	}
	input, err := block.Input()
	if err != nil {
		t.Fatal(err)
	}
	var wire proto.Buffer
	for _, column := range input {
		column.Data.EncodeColumn(&wire)
	}
	if part := float64(len(wire.Buf)) / float64(len(body)); part > 1 || part < 0.75 {
		t.Errorf("a row is %.2f of its event; want a little less than 1", part)
	}
}

// make bench-model, twice: the second time nothing changes.
func TestModelIsWritten(t *testing.T) {
	costs, err := costsIn(committed.costs, model.Load)
	if err != nil {
		t.Fatal(err)
	}
	design, err := os.ReadFile(committed.design)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	at := places{costs: filepath.Join(dir, "costs.json"), design: filepath.Join(dir, "DESIGN.md")}
	if err := os.WriteFile(at.design, design, 0o600); err != nil {
		t.Fatal(err)
	}
	costs.Commit, costs.Edge = "another", 2*costs.Edge
	for range 2 {
		if err := at.write(costs); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := costsIn(at.costs, model.Load); err != nil || got != costs {
		t.Errorf("got %+v, %v; want %+v", got, err, costs)
	}
	got, err := os.ReadFile(at.design)
	if err != nil || !strings.Contains(string(got), "commit another") || bytes.Equal(got, design) {
		t.Errorf("%v; DESIGN.md is not of the new costs", err)
	}
}
