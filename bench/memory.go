//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
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
	s.Title = fmt.Sprintf("memory with a dead broker, %d events/s offered", deadRate)
	t := table{Header: []string{"", "offered/s", "seconds dead", "promised", "told 503 or 429", "never answered", "never sent", "RSS MB alive", "middle third dead", "last third dead", "peak"}}
	c := chart.Chart{Name: "memory", Title: fmt.Sprintf("Resident memory; the broker dies after %.0f s", (b.o.long / 2).Seconds()),
		X: chart.Axis{Label: "seconds"}, Y: chart.Axis{Label: "MB"}}
	run := func(t1 *target, broker *broker) (dead, error) {
		d, err := b.deadBroker(f, t1, broker)
		if err != nil {
			return d, err
		}
		s.take(sample{Target: t1.name, Events: d.entry.Promised, RSS: int64(d.peak * 1e6), Refused: d.told + d.unknown + d.unsent, Entry: d.entry}, t1.beside)
		t.row(t1.name, deadRate, fmt.Sprintf("%.0f", b.o.soak.Seconds()), d.entry.Promised, d.told, d.unknown, d.unsent, whole(d.alive), whole(d.middle), whole(d.late), whole(d.peak))
		c.Lines = append(c.Lines, chart.Line{Label: t1.name, Points: d.rss})
		return d, f.end() // the machine for each alone
	}
	limit, err := f.bare(bulkSize) // nothing behind it can die, and it keeps nothing
	if err != nil {
		return err
	}
	least, err := run(limit, nil)
	if err != nil {
		return err
	}
	broker, err := f.broker(1)
	if err != nil {
		return err
	}
	srv, err := f.ingest(broker)
	if err != nil {
		return err
	}
	ours, err := run(srv.of("edge", broker), broker)
	if err != nil {
		return err
	}
	peer, broker, err := f.naive("sync", 1)
	if err != nil {
		return err
	}
	theirs, err := run(peer, broker)
	if err != nil {
		return err
	}
	s.Tables = append(s.Tables, t)
	s.Charts = append(s.Charts, c)
	s.goal(goal{What: "memory with a dead broker", Must: "flat for 60 s",
		Measured: fmt.Sprintf("%s MB, then %s MB; peak %s MB; requests: %s", whole(ours.middle), whole(ours.late), whole(ours.peak), ours.lost()),
		Ratio: fmt.Sprintf("%s; bare fasthttp %s MB; naive sync %s MB, then %s MB, requests: %s", ratio(ours.late/ours.middle), whole(least.late),
			whole(theirs.middle), whole(theirs.late), theirs.lost()),
		Verdict: verdict(ours.late <= 1.1*ours.middle, false)})
	return nil
}

const deadRate = 20_000 // events a second

func whole(v float64) string { return strconv.FormatFloat(v, 'f', 0, 64) }

// dead is what a run with a broker that dies came to. Memory is in MB: the highest
// before, in the second and the last third of the time after, and of all.
type dead struct {
	alive, middle, late, peak float64
	rss                       []chart.Point
	told, unknown, unsent     int64 // requests: refused, sent and never answered, never sent
	entry                     ledger.Entry
}

func (d *dead) lost() string {
	return fmt.Sprintf("%d never answered, %d never sent", d.unknown, d.unsent)
}

// deadBroker kills broker under load for t, which has none if it is nil.
func (b *bench) deadBroker(f *fleet, t *target, broker *broker) (d dead, err error) {
	before, err := t.count()
	if err != nil {
		return d, err
	}
	healthy := b.o.long / 2
	l := load.Load{Addr: t.addr, Conns: 1024, Requests: newGenerated(7).lines(64), Events: bulkSize,
		Schedule: load.Constant(deadRate/bulkSize, healthy+b.o.soak)}
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	began := time.Now()
	died := time.Duration(0)
	watched := make(chan error, 1)
	go func() {
		watched <- poll(ctx, 100*time.Millisecond, func() error {
			if died == 0 && time.Since(began) > healthy {
				if broker != nil {
					broker.Kill()
				}
				died = time.Since(began)
			}
			now, _ := child.Memory(t.server)
			if now == 0 { // no memory is no flat memory
				return fmt.Errorf("%s is gone, %.0f s into the run", t.name, time.Since(began).Seconds())
			}
			d.rss = append(d.rss, chart.Point{X: time.Since(began).Seconds(), Y: float64(now) / 1e6})
			return nil
		})
	}()
	res, err := load.Run(b.ctx, l)
	cancel()
	if err = errors.Join(err, <-watched); err != nil {
		return d, err
	}
	_, peak := child.Memory(t.server)
	// What the server still holds must not reach the log now: everything that was
	// promised is on the broker's disk already. The same directory again:
	if broker != nil {
		t.kill()
		if err := f.startBroker(broker, 1); err != nil {
			return d, err
		}
	}
	found, err := t.count()
	if err != nil {
		return d, err
	}
	d.entry = ledger.Entry{What: "memory, " + t.name, Where: t.where, Promised: res.Accepted, Doubtful: res.Doubtful, Found: found - before}
	// Flat: once records are given up as fast as they come, the last third is no
	// higher than the third before.
	without := after(d.rss, died.Seconds())
	third := len(without) / 3
	if died == 0 || third == 0 {
		return d, fmt.Errorf("the memory of %s was read %d times after its broker had died: too seldom to compare thirds", t.name, len(without))
	}
	d.alive, d.middle, d.late, d.peak = highest(d.rss[:len(d.rss)-len(without)]), highest(without[third:2*third]), highest(without[2*third:]), float64(peak)/1e6
	d.told, d.unknown, d.unsent = res.Refused(), res.Unknown, res.Unsent
	return d, nil
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
