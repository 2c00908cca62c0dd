package codec

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestReasonLabels(t *testing.T) {
	var got []string
	for _, r := range Reasons {
		got = append(got, r.String())
	}
	if got, want := strings.Join(got, " "), "malformed invalid_field too_old too_large too_deep too_many"; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
	if got := Reason(0).String(); got != "unknown" {
		t.Errorf("zero reason: got %s", got)
	}
}

// TestErrorTextsAreJSONSafe holds every sentence to what AppendText promises.
func TestErrorTextsAreJSONSafe(t *testing.T) {
	for w := none; int(w) < len(sentences); w++ {
		for _, field := range []string{"", "user_id"} {
			e := newError(w, field, 17, 64)
			text := e.Error()
			quoted, err := json.Marshal(text)
			if err != nil || string(quoted) != `"`+text+`"` {
				t.Errorf("%q needs escaping: %s", text, quoted)
			}
			if sentences[w] == "" || !strings.HasSuffix(text, "(byte 17)") || !strings.HasPrefix(text, field) {
				t.Errorf("sentence %d: got %q", w, text)
			}
		}
	}
}
