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
	for set := range 1 << 4 {
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

// sameAsGrammar holds the short way against the grammar: it may leave a record to it,
// and takes none that the grammar refuses or reads differently.
func sameAsGrammar(t *testing.T, record []byte) {
	t.Helper()
	var short, long Decoder
	var got, want Event
	whole := bytes.Clone(record)
	taken := short.canonical(record, &got)
	if !bytes.Equal(record, whole) {
		t.Fatalf("%q was changed", whole)
	}
	if !taken {
		return
	}
	if err := long.document(record, &want, &contract, true); err != nil {
		t.Fatalf("%q: %v", record, err)
	}
	want.ID = ID(want.EventID)
	if a, b := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); a != b {
		t.Fatalf("%q\ngot  %s\nwant %s", record, a, b)
	}
}

func TestCanonicalAgainstGrammar(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	rounds := 300
	if poison { // race builds are ten times slower
		rounds = 10
	}
	for _, record := range canonicals() {
		for n := range record {
			sameAsGrammar(t, record[:n])
			bad := bytes.Clone(record)
			for _, c := range []byte{0, 0x1F, '"', '\\', '0', '9', ':', '{', ',', 0x7F, 0x80, 0xFF, 'g', 'F'} {
				bad[n] = c
				sameAsGrammar(t, bad)
			}
		}
		for range rounds {
			at := random.IntN(len(record))
			end := min(at+random.IntN(4)*random.IntN(6), len(record))
			piece := fragments[random.IntN(len(fragments))]
			sameAsGrammar(t, bytes.Join([][]byte{record[:at], []byte(piece), record[end:]}, nil))
		}
	}
	for _, ms := range []string{"0000000000000", "0999999999999", "1000000000000", "4294967295999", "4294967296000", "9999999999999", "170873280000a", "/708732800000"} {
		for _, old := range []string{"1708732800000", "1708732800123"} {
			sameAsGrammar(t, bytes.Replace(canonicals()[15], []byte(old), []byte(ms), 1))
		}
	}
}

func FuzzCanonical(f *testing.F) {
	for _, record := range canonicals() {
		f.Add(record)
	}
	f.Fuzz(sameAsGrammar)
}
