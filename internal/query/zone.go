package query

import (
	"fmt"
	"path"
	"strings"
	"time"

	// Zone names must mean the same on every host, also in an image that has
	// no zone files.
	_ "time/tzdata"
)

// offset is a zone's distance from UTC, in force from one instant on.
type offset struct {
	since   int64 // Unix seconds; 0 if it was in force for an hour and longer when the range began
	seconds int64 // east of UTC
}

// offsets are the distances from UTC that a zone has during a range, in
// ascending order. Go's zone database is the only one asked: the server gets
// plain numbers, so the two cannot disagree about a law that changed.
type offsets []offset

// loadZone returns the zone of an IANA name, UTC for none.
func loadZone(name string) (*time.Location, error) {
	if name == "" {
		return time.UTC, nil
	}
	zone, err := time.LoadLocation(name)
	if err != nil || !portable(name) {
		return nil, fmt.Errorf("timezone must be an IANA name such as Europe/Berlin, not %.64q", name)
	}
	return zone, nil
}

// portable refuses what is a zone here and may be another one or none elsewhere. Package
// time asks the host's zone files first. Beside the zones they have one that is the host's
// own, the rules for zones that have none, and two more trees, of which right counts leap
// seconds; and they are files, which have more names than the one. Factory is a zone that
// is yet to be set.
func portable(name string) bool {
	switch name {
	case "Local", "localtime", "posixrules", "Factory":
		return false
	}
	return path.Clean(name) == name && !strings.HasPrefix(name, "right/") && !strings.HasPrefix(name, "posix/")
}

// zoneOffsets looks from an hour before the range on: a change in it may be what the
// range's first group begins with.
func zoneOffsets(zone *time.Location, from, to int64) offsets {
	var all offsets
	for at := from - hourGrain.seconds(); at < to; {
		t := time.Unix(at, 0).In(zone)
		_, seconds := t.Zone()
		switch n := len(all); {
		case n == 0:
			all = offsets{{0, int64(seconds)}}
		case all[n-1].seconds == int64(seconds):
		case at <= from:
			all[0] = offset{at, int64(seconds)}
		default:
			all = append(all, offset{at, int64(seconds)})
		}
		_, end := t.ZoneBounds()
		switch {
		case end.IsZero():
			return all
		case end.Unix() > at:
			at = end.Unix()
		default:
			// On 31 December of a leap year beyond a zone's table of changes,
			// end is that day's first second in UTC, which has passed. An hour
			// at a time leads out of the year, whose changes are all behind.
			at += 3600
		}
	}
	return all
}

// align reports whether every local bucket edge is a multiple of grain, so
// that no row of a table with that grain belongs to two local buckets.
func (o offsets) align(grain int64) bool {
	for _, x := range o {
		if x.seconds%grain != 0 || x.since%grain != 0 {
			return false
		}
	}
	return true
}

// buckets is the number of local buckets of the given width that [from, to)
// touches, exact but for hours that a change of offset cuts in two.
func (o offsets) buckets(from, to, width int64) int64 {
	last := to - 1 + o[len(o)-1].seconds + zoneBias
	return last/width - (from+o[0].seconds+zoneBias)/width + 1
}

// zoneBias is a multiple of every width, and more than any zone is west of UTC.
const zoneBias = 24 * 60 * 60

// shift is the SQL of "local second plus zoneBias" of x, a UTC second.
func (o offsets) shift(x string) string {
	last := o[len(o)-1]
	if len(o) == 1 {
		return x + " + " + num(last.seconds+zoneBias)
	}
	var b strings.Builder
	b.WriteString(x + " + multiIf(")
	for i, y := range o[:len(o)-1] {
		b.WriteString(x + " < " + num(o[i+1].since) + ", " + num(y.seconds+zoneBias) + ", ")
	}
	b.WriteString(num(last.seconds+zoneBias) + ")")
	return b.String()
}

// key is the SQL of the bucket that holds the UTC second x.
//
// Of a day it is the local date as Unix seconds of that date's midnight in
// UTC: a local day may be 23 or 25 hours long. Of an hour or a minute it is
// the instant the bucket starts: on the night the clocks go back, two
// different hours have the same wall-clock time. A bucket that a change of
// offset cuts starts with the change: the full hour before it was by other clocks.
//
// zoneBias keeps the dividend positive in the first hours of 1970.
func (o offsets) key(x string, width int64) string {
	w := num(width)
	switch {
	case o.align(width):
		return "intDiv(" + x + ", " + w + ") * " + w
	case width == dayGrain.seconds():
		return "intDiv(" + o.shift(x) + ", " + w + ") * " + w + " - " + w
	}
	full := x + " - (" + o.shift(x) + ") % " + w
	var cuts strings.Builder
	for _, y := range o {
		if y.since != 0 && (y.since+y.seconds)%width != 0 {
			since := num(y.since)
			cuts.WriteString(", if(" + x + " < " + since + ", -" + w + ", " + since + ")")
		}
	}
	if cuts.Len() == 0 {
		return full
	}
	return "greatest(" + full + cuts.String() + ")"
}
