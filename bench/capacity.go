//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"edge/bench/model"
)

// measuredHere stands in for what a report lacks: two cores of a shared AMD EPYC
// at 2.6 GHz, everything on them.
var measuredHere = model.Costs{
	Edge: 1.0, Single: 19, Broker: 0.3, BrokerSingle: 14, Sink: 0.9, Engine: 2.5, Body: 245, Topic: 110, Stored: 45,
	Partition: 800_000, SinkRate: 500_000,
}

// printModel is the table of DESIGN.md, from the report of the last whole run or
// the file named.
func printModel(_ context.Context, args []string) error {
	path := filepath.Join("report", "report.json")
	if len(args) > 0 {
		path = args[0]
	}
	costs := measuredHere
	f, err := os.Open(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && len(args) == 0:
		fmt.Println("no report yet; with the costs that bench/capacity.go states:")
	case err != nil:
		return err
	default:
		defer f.Close()
		if costs, err = costs.Read(f); err != nil {
			return err
		}
	}
	fmt.Printf("\nPer event: edge %.2f µs in bulks of 100, %.1f µs alone at half load; broker %.2f and %.1f µs; sink %.2f µs; ClickHouse %.2f µs;\n"+
		"%.0f bytes sent, %.0f in the log, %.0f stored. One partition has carried %.2f M/s, one sink %.2f M/s.\n\n",
		costs.Edge, costs.Single, costs.Broker, costs.BrokerSingle, costs.Sink, costs.Engine, costs.Body, costs.Topic, costs.Stored, costs.Partition/1e6, costs.SinkRate/1e6)
	var plans []model.Plan
	for _, rate := range []float64{20e3, 1e6, 10e6} {
		plans = append(plans, costs.For(rate, model.Usual))
	}
	fmt.Print(model.Table(plans...))
	m := model.Usual
	fmt.Printf("\nThe price of a month is at %g a core hour and %g a TB and month, the log kept %g days and tables %g.\n", m.CoreHour, m.TBMonth, m.LogDays, m.TableDays)
	p := plans[0]
	fmt.Printf("One edge of %d cores carries %.2f M events/s, one partition %.2f M, one sink %.2f M, one ClickHouse node of %d cores %.2f M; all run at %.0f %%.\n",
		m.EdgeCores, p.EdgeLimit/1e6, p.PartLimit/1e6, p.SinkLimit/1e6, m.ShardCores, p.NodeLimit/1e6, 100*m.Load)
	return nil
}
