package load

import (
	"math"
	"time"
)

// Segment is a time in which the rate goes from From to To, in a straight line,
// in requests a second.
type Segment struct {
	For      time.Duration
	From, To float64
}

// Schedule is when requests are due.
type Schedule []Segment

// Constant is one rate.
func Constant(rate float64, d time.Duration) Schedule { return Schedule{{d, rate, rate}} }

// Ramp goes from one rate to another.
func Ramp(from, to float64, d time.Duration) Schedule { return Schedule{{d, from, to}} }

// Spike holds base, jumps to peak within rise, holds it, and falls back to base.
func Spike(base, peak float64, before, rise, hold, after time.Duration) Schedule {
	return Schedule{{before, base, base}, {rise, base, peak}, {hold, peak, peak}, {rise, peak, base}, {after, base, base}}
}

// Total is how many requests there are in all.
func (s Schedule) Total() int64 {
	var sum float64
	for _, g := range s {
		sum += g.total()
	}
	return int64(math.Round(sum))
}

// Length is how long it takes.
func (s Schedule) Length() (d time.Duration) {
	for _, g := range s {
		d += g.For
	}
	return d
}

// total is the area under the line.
func (g Segment) total() float64 { return (g.From + g.To) / 2 * g.For.Seconds() }

// at is when n requests of the segment are due: the t with
// From·t + (To−From)/(2·For)·t² = n, in the form that does not lose its digits
// when the rate hardly changes.
func (g Segment) at(n float64) time.Duration {
	slope := (g.To - g.From) / g.For.Seconds()
	root := math.Sqrt(max(g.From*g.From+2*slope*n, 0))
	if g.From+root == 0 {
		return 0
	}
	return min(time.Duration(2*n/(g.From+root)*float64(time.Second)), g.For)
}

// At is when request n, counted from 0, is due, from the start of the schedule.
func (s Schedule) At(n int64) time.Duration {
	var before time.Duration
	left := float64(n)
	for i, g := range s {
		if total := g.total(); left < total || i == len(s)-1 {
			return before + g.at(min(left, total))
		} else {
			left -= total
			before += g.For
		}
	}
	return before
}
