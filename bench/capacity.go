//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"edge/bench/model"
)

// Where the report of a whole run is, and what is made of it, from bench/.
var (
	wholeReport = filepath.Join("report", "report.json")
	committed   = places{costs: filepath.Join("model", "costs.json"), design: filepath.Join("..", "DESIGN.md")}
)

// places are where the model's costs are kept, and the document that has its tables.
type places struct{ costs, design string }

// printModel prints the figures of "past one machine". Those of the last whole run it
// also writes, to costs.json and into DESIGN.md, so that neither can be of another run.
// Without such a run they are of costs.json, and those of a report that is named are only
// printed.
func printModel(_ context.Context, args []string) error {
	if len(args) > 0 {
		costs, err := costsIn(args[0], model.FromReport)
		if err != nil {
			return err
		}
		fmt.Print(model.Text(costs, model.Usual))
		return nil
	}
	costs, err := costsIn(wholeReport, model.FromReport)
	if errors.Is(err, os.ErrNotExist) {
		costs, err = costsIn(committed.costs, model.Load)
	}
	if err != nil {
		return err
	}
	fmt.Print(model.Text(costs, model.Usual))
	return committed.write(costs)
}

func costsIn(path string, read func(io.Reader) (model.Costs, error)) (model.Costs, error) {
	f, err := os.Open(path)
	if err != nil {
		return model.Costs{}, err
	}
	defer f.Close()
	return read(f)
}

// write writes costs and what follows from them.
func (p places) write(costs model.Costs) error {
	text, err := costs.Save()
	if err != nil {
		return err
	}
	design, err := os.ReadFile(p.design)
	if err != nil {
		return err
	}
	if design, err = model.Into(design, model.Text(costs, model.Usual)); err != nil {
		return fmt.Errorf("%s: %w", p.design, err)
	}
	return errors.Join(replace(p.costs, text), replace(p.design, design))
}

// replace writes text to path and says so, unless it is there.
func replace(path string, text []byte) error {
	if before, err := os.ReadFile(path); err == nil && bytes.Equal(before, text) {
		return nil
	}
	fmt.Fprintf(os.Stderr, "bench: %s is new\n", path)
	return os.WriteFile(path, text, 0o644)
}
