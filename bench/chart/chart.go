// Package chart draws lines and points as SVG: the growth plots of the report.
//
// A plotting library would draw more than this needs and bring fonts and
// renderers into a module that is built for every check. Two axes, linear or
// logarithmic, marked points and a legend are all there is to a line that should
// be flat. Text is plain SVG text, readable on light and dark pages alike.
package chart

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
)

// Chart is one plot.
type Chart struct {
	Name  string // of the file, without .svg
	Title string
	X, Y  Axis
	Lines []Line
}

// Axis is a label and a scale. A linear Y starts at 0: a cost that doubles must
// look doubled.
type Axis struct {
	Label string
	Log   bool
}

// Line is one series; points are in the order of X.
type Line struct {
	Label  string
	Points []Point
}

// Point is one measurement.
type Point struct{ X, Y float64 }

const (
	width, height           = 640.0, 360.0
	left, right, top, below = 64.0, 16.0, 36.0, 64.0
	// Above it dots would be a fat line.
	maxMarks = 50
)

var colors = []string{"#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#64748b"}

// SVG draws c.
func (c Chart) SVG() string {
	xs, ys := c.scales()
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%g" height="%g" fill="#fff"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%g" y="20" font-size="14" font-weight="bold">%s</text>`+"\n", left, html.EscapeString(c.Title))
	for _, v := range ys.ticks() {
		y := ys.at(v)
		fmt.Fprintf(&b, `<line x1="%g" y1="%.1f" x2="%g" y2="%.1f" stroke="#ddd"/><text x="%g" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left, y, width-right, y, left-6, y+4, short(v))
	}
	for _, v := range xs.ticks() {
		x := xs.at(v)
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%g" x2="%.1f" y2="%g" stroke="#ddd"/><text x="%.1f" y="%g" text-anchor="middle">%s</text>`+"\n",
			x, top, x, height-below, x, height-below+16, short(v))
	}
	fmt.Fprintf(&b, `<text x="%g" y="%g" text-anchor="middle">%s</text>`+"\n", (left+width-right)/2, height-below+34, html.EscapeString(c.X.Label))
	fmt.Fprintf(&b, `<text transform="translate(14 %g) rotate(-90)" text-anchor="middle">%s</text>`+"\n", (top+height-below)/2, html.EscapeString(c.Y.Label))
	for i, l := range c.Lines {
		c.line(&b, i, l, xs, ys)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (c Chart) line(b *strings.Builder, i int, l Line, xs, ys scale) {
	color := colors[i%len(colors)]
	var path []string
	for _, p := range l.Points {
		if math.IsNaN(p.Y) || math.IsInf(p.Y, 0) {
			continue
		}
		x, y := xs.at(p.X), ys.at(p.Y)
		path = append(path, fmt.Sprintf("%.1f,%.1f", x, y))
		if len(l.Points) > maxMarks {
			continue
		}
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"><title>%s: %s, %s</title></circle>`+"\n",
			x, y, color, html.EscapeString(l.Label), short(p.X), short(p.Y))
	}
	fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(path, " "), color)
	fmt.Fprintf(b, `<text x="%g" y="%g" fill="%s">● %s</text>`+"\n", left+float64(i)*140, height-8, color, html.EscapeString(l.Label))
}

func (c Chart) scales() (xs, ys scale) {
	xs = scale{log: c.X.Log, low: math.Inf(1), high: math.Inf(-1), from: left, to: width - right}
	ys = scale{log: c.Y.Log, low: math.Inf(1), high: math.Inf(-1), from: height - below, to: top}
	for _, l := range c.Lines {
		for _, p := range l.Points {
			xs.include(p.X)
			ys.include(p.Y)
		}
	}
	if !ys.log {
		ys.include(0)
		ys.high *= 1.1
	}
	xs.settle()
	ys.settle()
	return xs, ys
}

// scale maps values onto pixels.
type scale struct {
	log       bool
	low, high float64
	from, to  float64
}

func (s *scale) include(v float64) {
	if math.IsNaN(v) || math.IsInf(v, 0) || s.log && v <= 0 {
		return
	}
	s.low, s.high = min(s.low, v), max(s.high, v)
}

// settle makes the range one that can be divided by.
func (s *scale) settle() {
	if s.low > s.high {
		s.low, s.high = 1, 10
	}
	if s.log {
		s.low = math.Pow(10, math.Floor(math.Log10(s.low)))
		s.high = math.Pow(10, math.Ceil(math.Log10(s.high)))
	}
	if s.low == s.high {
		s.high = s.low + max(math.Abs(s.low), 1)
		if s.log {
			s.high = 10 * s.low
		}
	}
}

func (s scale) at(v float64) float64 {
	low, high := s.low, s.high
	if s.log {
		v, low, high = math.Log10(max(v, s.low)), math.Log10(low), math.Log10(high)
	}
	return s.from + (v-low)/(high-low)*(s.to-s.from)
}

// ticks are powers of ten, or about five round numbers.
func (s scale) ticks() (out []float64) {
	if s.log {
		for v := s.low; v <= s.high*1.0001; v *= 10 {
			out = append(out, v)
		}
		return out
	}
	step := math.Pow(10, math.Floor(math.Log10((s.high-s.low)/4)))
	for _, m := range []float64{1, 2, 5, 10} {
		if (s.high-s.low)/(step*m) <= 6 {
			step *= m
			break
		}
	}
	for v := math.Ceil(s.low/step) * step; v <= s.high; v += step {
		out = append(out, v)
	}
	return out
}

// short is v in at most a handful of characters: 1500000 is 1.5M.
func short(v float64) string {
	for _, u := range []struct {
		factor float64
		suffix string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if math.Abs(v) >= u.factor {
			return strconv.FormatFloat(v/u.factor, 'g', 3, 64) + u.suffix
		}
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}
