package query

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const (
	minute = 60
	hour   = 60 * minute
	day    = 24 * hour
)

var everything = tableSet(1<<minuteTable | 1<<hourTable | 1<<dayTable)

// checkPlan states what makes an answer exact: the pieces are the range, cut.
func checkPlan(t rapid.TB, from, to int64, use tableSet) {
	t.Helper()
	pieces := plan(from, to, use)
	if len(pieces) > 7 {
		t.Fatalf("plan(%d, %d, %b): %d pieces; want at most 7", from, to, use, len(pieces))
	}
	at := from
	for _, p := range pieces {
		g := p.table.grain()
		switch {
		case p.from != at:
			t.Fatalf("plan(%d, %d, %b): piece %+v starts at %d; want %d", from, to, use, p, p.from, at)
		case p.from >= p.to:
			t.Fatalf("plan(%d, %d, %b): piece %+v is empty", from, to, use, p)
		case p.from%g != 0 || p.to%g != 0:
			t.Fatalf("plan(%d, %d, %b): piece %+v is not aligned to %d s", from, to, use, p, g)
		case !use.has(p.table):
			t.Fatalf("plan(%d, %d, %b): piece %+v reads a table that cannot answer", from, to, use, p)
		}
		at = p.to
	}
	if at != to {
		t.Fatalf("plan(%d, %d, %b): pieces end at %d; want %d", from, to, use, at, to)
	}
	checkEconomy(t, pieces, from, to, use)
}

// checkEconomy states what makes an answer cheap: nothing is read from a fine
// table that a whole bucket of a usable coarser one would have answered.
func checkEconomy(t rapid.TB, pieces []piece, from, to int64, use tableSet) {
	t.Helper()
	for _, p := range pieces {
		for coarse := p.table + 1; coarse < tables; coarse++ {
			g := coarse.grain()
			if first := (p.from + g - 1) / g * g; use.has(coarse) && first+g <= p.to {
				t.Fatalf("plan(%d, %d, %b): piece %+v holds a whole %s", from, to, use, p, coarse)
			}
		}
	}
}

// Ranges cluster where planning is easy to get wrong: at, just before and just
// after the edges of minutes, hours and days.
func drawRange(t *rapid.T) (from, to int64) {
	second := func(name string) int64 {
		base := rapid.Int64Range(0, maxTime-day).Draw(t, name)
		grain := rapid.SampledFrom([]int64{1, minute, hour, day}).Draw(t, name+" grain")
		return max(0, base/grain*grain+rapid.Int64Range(-2, 2).Draw(t, name+" offset"))
	}
	from = second("from")
	if rapid.Bool().Draw(t, "near") {
		length := rapid.SampledFrom([]int64{1, minute, hour, 2 * hour, day, 3 * day}).Draw(t, "length")
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
		use := tableSet(rapid.Uint8Range(0, 7).Draw(t, "use") << 1)
		checkPlan(t, from, to, use)
	})
}

func TestPlan(t *testing.T) {
	f := func(from, to int64, use tableSet, want ...piece) {
		t.Helper()
		got := plan(from, to, use)
		if d := cmp.Diff(want, got, cmp.AllowUnexported(piece{})); d != "" {
			t.Errorf("plan(%d, %d, %b): -want +got\n%s", from, to, use, d)
		}
	}
	d := int64(20000 * day)
	f(d+5, d+50, everything, piece{rawTable, d + 5, d + 50})
	f(d+5, d+minute+5, everything, piece{rawTable, d + 5, d + minute + 5})
	f(d, d+minute, everything, piece{minuteTable, d, d + minute})
	f(d, d+3*day, everything, piece{dayTable, d, d + 3*day})
	f(d-1, d+day, everything, piece{rawTable, d - 1, d}, piece{dayTable, d, d + day})
	f(d, d+day, 0, piece{rawTable, d, d + day})
	f(d, d+2*day, 1<<hourTable, piece{hourTable, d, d + 2*day})
	f(d-hour-minute-1, d+day+hour+minute+1, everything,
		piece{rawTable, d - hour - minute - 1, d - hour - minute},
		piece{minuteTable, d - hour - minute, d - hour},
		piece{hourTable, d - hour, d},
		piece{dayTable, d, d + day},
		piece{hourTable, d + day, d + day + hour},
		piece{minuteTable, d + day + hour, d + day + hour + minute},
		piece{rawTable, d + day + hour + minute, d + day + hour + minute + 1})
	f(d-hour-1, d+day+1, 1<<hourTable|1<<dayTable,
		piece{rawTable, d - hour - 1, d - hour},
		piece{hourTable, d - hour, d},
		piece{dayTable, d, d + day},
		piece{rawTable, d + day, d + day + 1})
}

func TestUsable(t *testing.T) {
	f := func(r Request, want ...table) {
		t.Helper()
		var set tableSet
		for _, w := range want {
			set |= 1 << w
		}
		if r.To == 0 {
			r.To = 30 * day
		}
		if got := usable(&r, zoneOffsets(time.UTC, r.From, r.To)); got != set {
			t.Errorf("usable(%+v) = %04b; want %04b", r, got, set)
		}
	}
	f(Request{}, hourTable, dayTable)
	f(Request{Channel: "web"}, hourTable, dayTable)
	f(Request{GroupBy: "channel"}, hourTable, dayTable)
	f(Request{GroupBy: "day"}, hourTable, dayTable)
	f(Request{GroupBy: "hour"}, hourTable)
	f(Request{GroupBy: "minute"})
	f(Request{GroupBy: "campaign_id"})
	f(Request{CampaignID: "spring"})
	f(Request{To: rawSpan}, hourTable, dayTable)
	f(Request{To: rawSpan - 1})

	f(Request{CountsOnly: true}, minuteTable, hourTable, dayTable)
	f(Request{CountsOnly: true, GroupBy: "day"}, minuteTable, hourTable, dayTable)
	f(Request{CountsOnly: true, GroupBy: "hour"}, minuteTable, hourTable)
	f(Request{CountsOnly: true, GroupBy: "minute"}, minuteTable)
	f(Request{CountsOnly: true, GroupBy: "campaign_id"})
	f(Request{CountsOnly: true, CampaignID: "spring"})
	f(Request{CountsOnly: true, To: 60}, minuteTable, hourTable, dayTable)
}
