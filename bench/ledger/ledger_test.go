package ledger

import (
	"strings"
	"testing"
)

func TestEntryAddsUp(t *testing.T) {
	f := func(promised, doubtful, found int64, problems string, want bool) {
		t.Helper()
		e := Entry{What: "run", Where: "log", Promised: promised, Doubtful: doubtful, Found: found, Problems: problems}
		if got := e.OK(); got != want {
			t.Errorf("%+v: got %v; want %v", e, got, want)
		}
		if got := strings.Contains(e.String(), "VOID"); got == want {
			t.Errorf("%+v reads %q", e, e)
		}
	}
	f(0, 0, 0, "", true)
	f(100, 0, 100, "", true)
	f(100, 0, 99, "", false)  // lost one
	f(100, 0, 101, "", false) // stored one twice
	f(100, 5, 100, "", true)
	f(100, 5, 105, "", true)
	f(100, 5, 106, "", false)
	f(100, 5, 99, "", false)
	f(100, 0, 100, "2 rows of events_1m too many", false)
}

func TestBookNamesWhatIsVoid(t *testing.T) {
	b := Book{
		{What: "first", Where: "log", Promised: 10, Found: 10},
		{What: "second", Where: "log", Promised: 10, Found: 9},
	}
	b = append(b, Entry{What: "other", Where: "its counter", Promised: 7, Found: 7, Beside: "rivals"})
	if void := b.Void(); len(void) != 1 || void[0].What != "second" {
		t.Errorf("got %v; want the second entry", void)
	}
	s := b.Summary()
	for _, want := range []string{"2 runs of edge", "20 events promised", "19 found", "1 void; log: 2", "in none of these sums: rivals 7 in 1 runs", "second: 10 promised, 9 in log"} {
		if !strings.Contains(s, want) {
			t.Errorf("summary %q does not say %q", s, want)
		}
	}
}
