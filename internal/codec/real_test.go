package codec

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"

	gojson "github.com/goccy/go-json"
)

// recorded opens a recorded set, which lies beside the repository, or skips.
func recorded(t testing.TB, name string) *bufio.Scanner {
	t.Helper()
	file, err := os.Open(filepath.Join("..", "..", "..", "shared", "data", name))
	if err != nil {
		t.Skipf("the recorded set %s is not here, only generated events are tested", name)
	}
	t.Cleanup(func() { file.Close() })
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(unzipped)
	lines.Buffer(nil, 1<<20)
	return lines
}

// TestRecordedEvents decodes every recorded event and holds each field against
// go-json; then the record made of it decodes to the same event.
func TestRecordedEvents(t *testing.T) {
	f := func(name string, want int) {
		t.Helper()
		lines := recorded(t, name)
		pool := NewPool(Rules{})
		b := pool.Get()
		defer b.Release()
		var d Decoder
		var ev, back Event
		got := 0
		for lines.Scan() {
			line := lines.Bytes()
			got++
			if err := d.Decode(line, &ev); err != nil {
				t.Fatalf("%s line %d: %v", name, got, err)
			}
			if poison && got%16 != 0 { // race builds look at every sixteenth
				continue
			}
			var o struct {
				EventName string            `json:"event_name"`
				UserID    string            `json:"user_id"`
				Timestamp int64             `json:"timestamp"`
				Metadata  gojson.RawMessage `json:"metadata"`
			}
			if err := gojson.Unmarshal(line, &o); err != nil {
				t.Fatal(err)
			}
			if o.EventName != string(ev.Name) || o.UserID != string(ev.UserID) || o.Timestamp != ev.Timestamp ||
				!bytes.Equal(o.Metadata, ev.Metadata) || len(ev.Channel)+len(ev.CampaignID)+len(ev.Tags)+len(ev.EventID) != 0 {
				t.Fatalf("%s line %d: got %s; want %+v", name, got, show(&ev), o)
			}
			if err := b.DecodeOne(line, now); err != nil {
				t.Fatalf("%s line %d: %v", name, got, err)
			}
			if err := d.DecodeRecord(b.Record(0), &back); err != nil || !bytes.Equal(back.Metadata, o.Metadata) ||
				string(back.Name) != o.EventName || string(back.UserID) != o.UserID || back.Timestamp != o.Timestamp {
				t.Fatalf("%s line %d: record %s, %v", name, got, b.Record(0), err)
			}
		}
		if err := lines.Err(); err != nil || got != want {
			t.Errorf("%s: %d events; want %d; %v", name, got, want, err)
		}
	}
	f("game_events.ndjson.gz", 10_000)
	f("retail_events.ndjson.gz", 406_829)
}
