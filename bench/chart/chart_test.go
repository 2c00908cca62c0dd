package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

func TestSVGIsWellFormed(t *testing.T) {
	f := func(c Chart, want ...string) {
		t.Helper()
		svg := c.SVG()
		dec := xml.NewDecoder(strings.NewReader(svg))
		for {
			if _, err := dec.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%v in\n%s", err, svg)
			}
		}
		for _, w := range append(want, "<svg") {
			if !strings.Contains(svg, w) {
				t.Errorf("no %q in\n%s", w, svg)
			}
		}
		if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
			t.Errorf("a value that is no number in\n%s", svg)
		}
	}
	f(Chart{Title: "empty"})
	f(Chart{Title: "a < b & c", Lines: []Line{{"one", []Point{{1, 1}}}}}, "a &lt; b &amp; c")
	f(Chart{X: Axis{"names", true}, Y: Axis{"µs", false}, Lines: []Line{
		{"edge", []Point{{1, 1.2}, {100, 1.3}, {10_000, 1.25}}},
		{"engine", []Point{{1, 2}, {100, math.NaN()}, {10_000, 2.5}}},
	}}, ">100<", ">10k<", "● edge", "● engine")
	f(Chart{X: Axis{"", true}, Y: Axis{"", true}, Lines: []Line{{"zero", []Point{{0, 0}, {10, 10}}}}})
	f(Chart{Lines: []Line{{"flat at zero", []Point{{0, 0}, {10, 0}}}}})
}

func TestScaleMapsItsEnds(t *testing.T) {
	f := func(s scale, v, want float64) {
		t.Helper()
		s.settle()
		if got := s.at(v); math.Abs(got-want) > 1e-9 {
			t.Errorf("%+v at %v: got %v; want %v", s, v, got, want)
		}
	}
	f(scale{low: 0, high: 10, from: 100, to: 200}, 0, 100)
	f(scale{low: 0, high: 10, from: 100, to: 200}, 10, 200)
	f(scale{low: 0, high: 10, from: 100, to: 0}, 5, 50)
	f(scale{log: true, low: 1, high: 100, from: 0, to: 200}, 10, 100)
	f(scale{log: true, low: 2, high: 90, from: 0, to: 200}, 1, 0) // widened to whole decades
}

func TestShort(t *testing.T) {
	f := func(v float64, want string) {
		t.Helper()
		if got := short(v); got != want {
			t.Errorf("%v: got %s; want %s", v, got, want)
		}
	}
	f(0, "0")
	f(0.25, "0.25")
	f(1500, "1.5k")
	f(1_500_000, "1.5M")
	f(1e10, "10G")
}
