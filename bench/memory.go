//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"edge/bench/chart"
	"edge/bench/child"
	"edge/bench/ledger"
	"edge/bench/load"
)

// memoryStage kills the broker under 20,000 events a second and watches what
// edge keeps. The events come in bulks, each request waits its ACK_TIMEOUT and
// is told 503, and what it brought stays in memory until the client gives its
// records up: the worst that a dead broker can make of the buffers.
func memoryStage(b *bench, s *section, f *fleet) error {
	const rate = 20_000
	s.Title = "memory with a dead broker, 20,000 events/s offered"
	broker, err := f.broker(1)
	if err != nil {
		return err
	}
	srv, err := f.ingest(broker)
	if err != nil {
		return err
	}
	before, err := broker.count()
	if err != nil {
		return err
	}
	healthy := b.o.long / 2
	l := load.Load{Addr: srv.addr, Conns: 1024, Requests: newGenerated(7).lines(64), Events: bulkSize,
		Schedule: load.Constant(rate/bulkSize, healthy+b.o.soak)}
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	began := time.Now()
	var rss []chart.Point
	died := time.Duration(0)
	watched := make(chan error, 1)
	go func() {
		watched <- poll(ctx, 100*time.Millisecond, func() error {
			if died == 0 && time.Since(began) > healthy {
				broker.Kill()
				died = time.Since(began)
			}
			now, _ := child.Memory(srv.Pid())
			rss = append(rss, chart.Point{X: time.Since(began).Seconds(), Y: float64(now) / 1e6})
			return nil
		})
	}()
	res, err := load.Run(b.ctx, l)
	cancel()
	if err = errors.Join(err, <-watched); err != nil {
		return err
	}
	_, peak := child.Memory(srv.Pid())
	// What edge still holds must not reach the log now: everything that was
	// promised is on the broker's disk already. The same directory again:
	srv.Kill()
	if err := f.startBroker(broker, 1); err != nil {
		return err
	}
	found, err := broker.count()
	if err != nil {
		return err
	}
	s.Book = append(s.Book, ledger.Entry{What: "broker killed under load", Where: inLog, Promised: res.Accepted, Doubtful: res.Doubtful, Found: found - before})
	// Flat: once records are given up as fast as they come, the last third is no
	// higher than the third before.
	dead := after(rss, died.Seconds())
	middle, late := highest(dead[len(dead)/3:2*len(dead)/3]), highest(dead[2*len(dead)/3:])
	alive := highest(rss[:len(rss)-len(dead)])
	t := table{Header: []string{"offered/s", "seconds dead", "promised", "told 503 or 429", "RSS MB alive", "middle third dead", "last third dead", "peak"}}
	t.row(rate, fmt.Sprintf("%.0f", b.o.soak.Seconds()), res.Accepted, res.Refused(), fmt.Sprintf("%.0f", alive), fmt.Sprintf("%.0f", middle), fmt.Sprintf("%.0f", late), fmt.Sprintf("%.0f", float64(peak)/1e6))
	s.Tables = append(s.Tables, t)
	s.Charts = append(s.Charts, chart.Chart{Name: "memory", Title: fmt.Sprintf("Resident memory of edge; the broker dies after %.0f s", died.Seconds()),
		X: chart.Axis{Label: "seconds"}, Y: chart.Axis{Label: "MB"}, Lines: []chart.Line{{Label: "edge", Points: rss}}})
	s.goal(goal{What: "memory with a dead broker", Must: "flat for 60 s", Measured: fmt.Sprintf("%.0f MB, then %.0f MB; peak %.0f MB", middle, late, float64(peak)/1e6),
		Ratio: ratio(late / max(middle, 1)), Verdict: verdict(late <= 1.1*middle, false)})
	return nil
}

func after(points []chart.Point, x float64) []chart.Point {
	for i, p := range points {
		if p.X >= x {
			return points[i:]
		}
	}
	return nil
}

func highest(points []chart.Point) (y float64) {
	for _, p := range points {
		y = max(y, p.Y)
	}
	return y
}
