package query

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const (
	minute = 60
	hour   = 60 * minute
	day    = 24 * hour
)

var everything = grainSet(1<<grains - 2)

// checkPlan states what makes an answer exact: the pieces are the range, cut.
func checkPlan(t rapid.TB, from, to int64, use grainSet) {
	t.Helper()
	pieces := cut(from, to, use)
	if most := 2*int(grains) - 1; len(pieces) > most {
		t.Fatalf("cut(%d, %d, %b): %d pieces; want at most %d", from, to, use, len(pieces), most)
	}
	at := from
	for _, p := range pieces {
		g := p.grain.seconds()
		switch {
		case p.from != at:
			t.Fatalf("cut(%d, %d, %b): piece %+v starts at %d; want %d", from, to, use, p, p.from, at)
		case p.from >= p.to:
			t.Fatalf("cut(%d, %d, %b): piece %+v is empty", from, to, use, p)
		case p.from%g != 0 || p.to%g != 0:
			t.Fatalf("cut(%d, %d, %b): piece %+v is not aligned to %d s", from, to, use, p, g)
		case !use.has(p.grain):
			t.Fatalf("cut(%d, %d, %b): piece %+v reads a table that cannot answer", from, to, use, p)
		}
		at = p.to
	}
	if at != to {
		t.Fatalf("cut(%d, %d, %b): pieces end at %d; want %d", from, to, use, at, to)
	}
	checkEconomy(t, pieces, from, to, use)
}

// checkEconomy states what makes an answer cheap: nothing is read from a fine
// table that a whole bucket of a usable coarser one would have answered.
func checkEconomy(t rapid.TB, pieces []piece, from, to int64, use grainSet) {
	t.Helper()
	for _, p := range pieces {
		for coarse := p.grain + 1; coarse < grains; coarse++ {
			g := coarse.seconds()
			if first := (p.from + g - 1) / g * g; use.has(coarse) && first+g <= p.to {
				t.Fatalf("cut(%d, %d, %b): piece %+v holds a whole bucket of %d s", from, to, use, p, g)
			}
		}
	}
}

// Ranges cluster where planning is easy to get wrong: at, just before and just
// after the edges of minutes, hours and days.
func drawRange(t *rapid.T) (from, to int64) {
	second := func(name string) int64 {
		base := rapid.Int64Range(0, maxTime-day).Draw(t, name)
		grain := rapid.SampledFrom([]int64{1, minute, 5 * minute, hour, day, 16 * day, 256 * day}).Draw(t, name+" grain")
		return max(0, base/grain*grain+rapid.Int64Range(-2, 2).Draw(t, name+" offset"))
	}
	from = second("from")
	if rapid.Bool().Draw(t, "near") {
		length := rapid.SampledFrom([]int64{1, minute, hour, 2 * hour, day, 3 * day, 40 * day}).Draw(t, "length")
		return from, from + rapid.Int64Range(1, length).Draw(t, "span")
	}
	to = second("to")
	if from > to {
		from, to = to, from
	}
	return from, to + 1
}

func TestPlanCoversTheRangeExactly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := drawRange(t)
		use := grainSet(rapid.Uint16Range(0, 1<<(grains-1)-1).Draw(t, "use") << 1)
		checkPlan(t, from, to, use)
	})
}

func TestCut(t *testing.T) {
	f := func(from, to int64, use grainSet, want ...piece) {
		t.Helper()
		got := cut(from, to, use)
		if d := cmp.Diff(want, got, cmp.AllowUnexported(piece{})); d != "" {
			t.Errorf("cut(%d, %d, %b): -want +got\n%s", from, to, use, d)
		}
	}
	d := int64(20001 * day) // the first day of 16, the second of them
	f(d+5, d+50, everything, piece{rowGrain, d + 5, d + 50})
	f(d+5, d+minute+5, everything, piece{rowGrain, d + 5, d + minute + 5})
	f(d, d+minute, everything, piece{minuteGrain, d, d + minute})
	f(d, d+3*day, everything, piece{dayGrain, d, d + 3*day})
	f(d-1, d+day, everything, piece{rowGrain, d - 1, d}, piece{dayGrain, d, d + day})
	f(d, d+day, 0, piece{rowGrain, d, d + day})
	f(d, d+2*day, 1<<hourGrain, piece{hourGrain, d, d + 2*day})
	f(d-hour-minute-1, d+day+hour+6*minute+1, everything,
		piece{rowGrain, d - hour - minute - 1, d - hour - minute},
		piece{minuteGrain, d - hour - minute, d - hour},
		piece{hourGrain, d - hour, d},
		piece{dayGrain, d, d + day},
		piece{hourGrain, d + day, d + day + hour},
		piece{fiveGrain, d + day + hour, d + day + hour + 5*minute},
		piece{minuteGrain, d + day + hour + 5*minute, d + day + hour + 6*minute},
		piece{rowGrain, d + day + hour + 6*minute, d + day + hour + 6*minute + 1})
	f(d-hour-1, d+day+1, 1<<hourGrain|1<<dayGrain,
		piece{rowGrain, d - hour - 1, d - hour},
		piece{hourGrain, d - hour, d},
		piece{dayGrain, d, d + day},
		piece{rowGrain, d + day, d + day + 1})
	l := int64(79 * 256 * day)
	f(l-17*day, l+256*day+16*day, everything,
		piece{dayGrain, l - 17*day, l - 16*day},
		piece{longGrain, l - 16*day, l},
		piece{longerGrain, l, l + 256*day},
		piece{longGrain, l + 256*day, l + 272*day})
}

// However long the range, the states that its users are merged of are few.
func TestAnyRangeIsFewBuckets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := drawRange(t)
		n := int64(0)
		for _, p := range cut(from, to, usable(&Request{From: from, To: to}, offsets{{}})) {
			switch p.grain {
			case rowGrain:
				if p.to-p.from >= rawSpan {
					t.Fatalf("[%d, %d): %d s of rows", from, to, p.to-p.from)
				}
			case longerGrain: // one in eight months
			default:
				n += (p.to - p.from) / p.grain.seconds()
			}
		}
		if most := int64(2 * (11 + 23 + 15 + 15)); n > most {
			t.Fatalf("[%d, %d): %d buckets; want at most %d", from, to, n, most)
		}
	})
}

func TestUsable(t *testing.T) {
	f := func(r Request, want ...grain) {
		t.Helper()
		var set grainSet
		for _, w := range want {
			set |= 1 << w
		}
		if r.To == 0 {
			r.To = 30 * day
		}
		if got := usable(&r, zoneOffsets(mustZone(t, r.Zone), r.From, r.To)); got != set {
			t.Errorf("usable(%+v) = %07b; want %07b", r, got, set)
		}
	}
	f(Request{}, fiveGrain, hourGrain, dayGrain, longGrain, longerGrain)
	f(Request{Channel: "web"}, fiveGrain, hourGrain, dayGrain, longGrain, longerGrain)
	f(Request{GroupBy: "channel"}, fiveGrain, hourGrain, dayGrain, longGrain, longerGrain)
	f(Request{GroupBy: "day"}, fiveGrain, hourGrain, dayGrain)
	f(Request{GroupBy: "day", Zone: "Europe/Berlin"}, fiveGrain, hourGrain)
	f(Request{GroupBy: "day", Zone: "Asia/Kathmandu"}, fiveGrain)
	f(Request{GroupBy: "hour"}, fiveGrain, hourGrain)
	f(Request{GroupBy: "hour", Channel: "web"}, fiveGrain, hourGrain)
	f(Request{GroupBy: "minute"})
	f(Request{GroupBy: "campaign_id"})
	f(Request{CampaignID: "spring"})
	f(Request{To: rawSpan}, fiveGrain, hourGrain, dayGrain, longGrain, longerGrain)
	f(Request{To: rawSpan - 1})

	f(Request{CountsOnly: true}, minuteGrain, fiveGrain, hourGrain, dayGrain, longGrain, longerGrain)
	f(Request{CountsOnly: true, GroupBy: "channel"}, minuteGrain, fiveGrain, hourGrain, dayGrain, longGrain, longerGrain)
	f(Request{CountsOnly: true, GroupBy: "day"}, minuteGrain, fiveGrain, hourGrain, dayGrain)
	f(Request{CountsOnly: true, GroupBy: "hour"}, minuteGrain, fiveGrain, hourGrain)
	f(Request{CountsOnly: true, GroupBy: "minute"}, minuteGrain)
	f(Request{CountsOnly: true, GroupBy: "campaign_id"})
	f(Request{CountsOnly: true, CampaignID: "spring"})
	f(Request{CountsOnly: true, To: 60}, minuteGrain, fiveGrain, hourGrain, dayGrain, longGrain, longerGrain)
}
