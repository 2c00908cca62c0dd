package codec

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// canonicals are records that need no escapes, of every set of optional fields.
func canonicals() [][]byte {
	var all [][]byte
	for set := range 1 << 5 {
		ev := Event{
			Name: []byte("product_view"), UserID: []byte("u"), Timestamp: 1708732800000,
			EventID: []byte("018dd8a6-3a00-7000-8000-00000000000a"), ReceivedAt: 1708732800123,
		}
		if set&1 != 0 {
			ev.Channel = []byte("web")
		}
		if set&2 != 0 {
			ev.CampaignID = []byte("été_2024")
		}
		if set&4 != 0 {
			ev.Tags = [][]byte{[]byte("electronics"), {}, []byte("x")}
		}
		if set&8 != 0 {
			ev.Metadata = []byte(`{ "a":[1,"é\n",{}],"b":null}`)
		}
		if set&16 != 0 {
			ev.EventID = []byte("ö17")
		}
		all = append(all, AppendRecord(nil, &ev))
	}
	return all
}

func TestCanonicalRecordsTakeTheShortWay(t *testing.T) {
	var d Decoder
	var ev Event
	for _, record := range canonicals() {
		if !d.canonical(record, &ev) {
			t.Errorf("left to the grammar: %s", record)
		}
	}
}

// reader has both ways in it, and remembers: what is left of one record must not show
// in the next.
type reader struct {
	Decoder
	ev Event
}

// sameAsGrammar holds DecodeRecord, with its short way, against the grammar alone.
func (r *reader) sameAsGrammar(t *testing.T, record []byte) {
	t.Helper()
	var grammar Decoder
	var want Event
	show := func(ev *Event, err *Error) string {
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%+v", ev)
	}
	whole := bytes.Clone(record)
	got := show(&r.ev, r.DecodeRecord(record, &r.ev))
	if !bytes.Equal(record, whole) {
		t.Fatalf("%q was changed", whole)
	}
	err := grammar.document(record, &want, &contract, true)
	if err == nil {
		want.ID = ID(want.EventID)
	}
	if want := show(&want, err); got != want {
		t.Fatalf("%q\ngot  %s\nwant %s", record, got, want)
	}
}

func TestCanonicalAgainstGrammar(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	var r reader
	rounds := 200
	if poison { // race builds are ten times slower
		rounds = 10
	}
	for _, record := range canonicals() {
		for n := range record {
			r.sameAsGrammar(t, record[:n])
			bad := bytes.Clone(record)
			for _, c := range []byte{0, 0x1F, '"', '\\', '0', '9', ':', '{', ',', 0x7F, 0x80, 0xFF, 'g', 'F'} {
				bad[n] = c
				r.sameAsGrammar(t, bad)
			}
		}
		for range rounds {
			at := random.IntN(len(record))
			end := min(at+random.IntN(4)*random.IntN(6), len(record))
			piece := fragments[random.IntN(len(fragments))]
			r.sameAsGrammar(t, bytes.Join([][]byte{record[:at], []byte(piece), record[end:]}, nil))
		}
	}
	for _, ms := range []string{"0000000000000", "0999999999999", "1000000000000", "4294967295999", "4294967296000", "9999999999999", "170873280000a", "/708732800000"} {
		for _, old := range []string{"1708732800000", "1708732800123"} {
			r.sameAsGrammar(t, bytes.Replace(canonicals()[15], []byte(old), []byte(ms), 1))
		}
	}
}

func FuzzCanonical(f *testing.F) {
	for _, record := range canonicals() {
		f.Add(record)
	}
	var r reader
	f.Fuzz(func(t *testing.T, record []byte) { r.sameAsGrammar(t, record) })
}
