package codec

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

// TestGoldenRecords pins the bytes on the topic: other readers depend on them.
func TestGoldenRecords(t *testing.T) {
	f := func(ev Event, want string) {
		t.Helper()
		got := string(AppendRecord([]byte("x"), &ev))
		if got != "x"+want {
			t.Errorf("\ngot  %s\nwant x%s", got, want)
		}
		if !json.Valid([]byte(want)) {
			t.Errorf("no JSON: %s", want)
		}
	}
	f(Event{Name: []byte("a"), UserID: []byte("u"), Timestamp: 1, EventID: []byte("i"), ReceivedAt: 2},
		`{"event_name":"a","user_id":"u","timestamp":1,"event_id":"i","received_at":2}`)
	f(Event{
		Name: []byte("product_view"), Channel: []byte("web"), CampaignID: []byte("summer_sale_2024"), UserID: []byte("user_12345"),
		Timestamp: 1708732800000, Tags: [][]byte{[]byte("electronics"), []byte("featured")},
		Metadata: []byte(`{"product_id":"SKU-001","page_url":"/products/laptop"}`),
		EventID:  []byte("018dd8a6-3a00-7000-8000-000000000001"), ReceivedAt: 1708732800123,
	}, sample[:len(sample)-1]+`,"event_id":"018dd8a6-3a00-7000-8000-000000000001","received_at":1708732800123}`)
	f(Event{
		Name: []byte("a\"\\/\b\f\n\r\t\x01\x1f\x7f"), UserID: []byte("12345678\n12345678é😀\u2028<&>"), Timestamp: 0,
		Tags: [][]byte{{}, []byte("\x00")}, Metadata: []byte(`{ "a" : "\u0000" }`), EventID: []byte(`"`), ReceivedAt: 4294967295999,
	}, `{"event_name":"a\"\\/\u0008\u000c\n\r\t\u0001\u001f`+"\x7f"+`","user_id":"12345678\n12345678é😀`+"\u2028"+`<&>","timestamp":0,`+
		`"tags":["","\u0000"],"metadata":{ "a" : "\u0000" },"event_id":"\"","received_at":4294967295999}`)
}

// clone copies an event out of the memory it views.
func clone(ev *Event) Event {
	c := *ev
	for _, p := range []*[]byte{&c.Name, &c.Channel, &c.CampaignID, &c.UserID, &c.EventID, &c.Metadata} {
		*p = bytes.Clone(*p)
	}
	c.Tags = nil
	for _, tag := range ev.Tags {
		c.Tags = append(c.Tags, append([]byte{}, tag...))
	}
	return c
}

// decoded is the event of a document that has one.
func decoded(t testing.TB, d *Decoder, doc string) (ev Event) {
	t.Helper()
	if err := d.Decode([]byte(doc), &ev); err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
	return ev
}

func TestRoundTrip(t *testing.T) {
	var d Decoder
	f := func(doc string) {
		t.Helper()
		ev := decoded(t, &d, doc)
		want := clone(&ev)
		want.EventID, want.ReceivedAt = []byte("some \"id\""), 99
		record := AppendRecord(nil, &want)
		if err := d.DecodeRecord(record, &ev); err != nil {
			t.Fatalf("%s: %v", record, err)
		}
		if diff := cmp.Diff(show(&want), show(&ev)); diff != "" {
			t.Errorf("%s\n%s", doc, diff)
		}
		if again := AppendRecord(nil, &ev); !bytes.Equal(again, record) {
			t.Errorf("encoded again: got %s; want %s", again, record)
		}
	}
	f(sample)
	f(minimal + "}")
	f(with(`"tags":["","a\"b","\u0000","\ud800","é"],"metadata":{"\ud800":"\u0000", "x" : [1e999] },"campaign_id":"\/\\\b"`))
	for c := range 0x80 {
		f(with(`"tags":["\u00` + hex.EncodeToString([]byte{byte(c)}) + `"]`))
	}
}

func TestID(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		id := ID([]byte(text))
		if got := hex.EncodeToString(id[:]); got != want {
			t.Errorf("%q: got %s; want %s", text, got, want)
		}
	}
	f("018dd8a6-3a00-7abc-8def-0123456789ab", "018dd8a63a007abc8def0123456789ab")
	f("018DD8A6-3A00-7ABC-8DEF-0123456789AB", "018dd8a63a007abc8def0123456789ab")
	f("00000000-0000-0000-0000-000000000000", "00000000000000000000000000000000")

	// Anything else is hashed: other spellings of a UUID are other texts.
	hashed := func(text string) {
		t.Helper()
		sum := sha256.Sum256([]byte(text))
		sum[6] = sum[6]&0x0F | 0x80
		sum[8] = sum[8]&0x3F | 0x80
		f(text, hex.EncodeToString(sum[:16]))
		id := uuid.UUID(ID([]byte(text)))
		if id.Version() != 8 || id.Variant() != uuid.RFC4122 {
			t.Errorf("%q: version %d, variant %s", text, id.Version(), id.Variant())
		}
	}
	hashed("a")
	hashed("order-17")
	hashed("018dd8a63a007abc8def0123456789ab")
	hashed("{018dd8a6-3a00-7abc-8def-0123456789ab}")
	hashed("018dd8a6-3a00-7abc-8def-0123456789ag")
	hashed("018dd8a6-3a00-7abc-8def-0123456789a")
	hashed("018dd8a6-3a00-7abc-8def-0123456789abc")
	hashed("018dd8a6x3a00-7abc-8def-0123456789ab")
	hashed("018dd8a6-3a00-7abc-8def-0123456789\xC3\xA9")

	// Every byte in every place is what another library says of it.
	for at := range 36 {
		for c := range 256 {
			text := []byte("018dd8a6-3a00-7abc-8def-0123456789ab")
			text[at] = byte(c)
			want, err := uuid.ParseBytes(text)
			if id, ok := parseUUID(text); ok != (err == nil) || ok && id != want {
				t.Errorf("%q: got %x, %t; want %x, %v", text, id, ok, want, err)
			}
		}
	}

	id := ID([]byte("018dd8a6-3a00-7abc-8def-0123456789ab"))
	if got := string(appendUUID(nil, id)); got != uuid.UUID(id).String() {
		t.Errorf("appendUUID: got %s", got)
	}
}

// TestPartitionHashIsPinned: another value would send a retry to a partition
// that does not know the first attempt.
func TestPartitionHashIsPinned(t *testing.T) {
	f := func(text string, want uint64) {
		t.Helper()
		if got := PartitionHash(ID([]byte(text))); got != want {
			t.Errorf("%s: got %#x; want %#x", text, got, want)
		}
	}
	f("00000000-0000-0000-0000-000000000000", 0)
	f("018dd8a6-3a00-7abc-8def-0123456789ab", 0x87ab754ed5dde3ea)
	f("order-17", 0xb5ea0c474b4d55ec)
}

// TestPartitionHashSpreads counts ids that differ in few bits over partitions,
// and flips each bit.
func TestPartitionHashSpreads(t *testing.T) {
	const partitions, n = 48, 48_000
	f := func(title string, id func(i uint64) [16]byte) {
		t.Helper()
		var low, top [partitions]float64
		for i := range uint64(n) {
			h := PartitionHash(id(i))
			low[h%partitions]++
			hi, _ := bits.Mul64(h, partitions)
			top[hi]++
		}
		for _, counts := range [][partitions]float64{low, top} {
			chi := 0.0
			for _, c := range counts {
				chi += (c - n/partitions) * (c - n/partitions) / (n / partitions)
			}
			if chi > 100 { // 47 degrees of freedom: p < 1e-5
				t.Errorf("%s: chi-squared %.0f over %d partitions", title, chi, partitions)
			}
		}
	}
	at := func(shiftHi, shiftLo int) func(uint64) [16]byte {
		return func(i uint64) (id [16]byte) {
			binary.BigEndian.PutUint64(id[:8], 0x018dd8a63a007000^i<<shiftHi)
			binary.BigEndian.PutUint64(id[8:], 0x8000000000000000^i<<shiftLo)
			return id
		}
	}
	f("a counter in the low bits", at(64, 0))
	f("a counter in the random high bits", at(64, 40))
	f("a clock", at(16, 64))
	f("both halves move together", at(0, 0))

	base := ID([]byte("018dd8a6-3a00-7abc-8def-0123456789ab"))
	for bit := range 128 {
		id := base
		id[bit/8] ^= 1 << (bit % 8)
		if n := bits.OnesCount64(PartitionHash(id) ^ PartitionHash(base)); n < 12 || n > 52 {
			t.Errorf("bit %d flips %d of 64 bits", bit, n)
		}
	}
}

func TestAppendTextEscapesEveryPosition(t *testing.T) {
	for n := range 24 {
		for _, c := range []byte{'"', '\\', '\n', 0, 0x1f} {
			text := strings.Repeat("x", n) + string(c) + strings.Repeat("y", 9)
			var back string
			if err := json.Unmarshal(append(appendText([]byte{'"'}, []byte(text), false), '"'), &back); err != nil || back != text {
				t.Errorf("%q: got %q, %v", text, back, err)
			}
		}
	}
}

func TestAppendMillis(t *testing.T) {
	f := func(ms int64) {
		t.Helper()
		if got, want := string(appendMillis([]byte("at "), ms)), fmt.Sprint("at ", ms); got != want {
			t.Fatalf("got %s; want %s", got, want)
		}
	}
	for _, ms := range []int64{0, 1, -1, 1e12 - 1, 1e12, 1e13 - 1, 1e13, math.MinInt64, math.MaxInt64, 1708732800000} {
		f(ms)
	}
	for n := range int64(1e4) { // every group of four digits, in each place
		f(1e12 + n)
		f(1e12 + n*1e4)
		f(1e12 + n*1e8)
	}
	random := rand.New(rand.NewPCG(1, 1))
	for range 100_000 {
		f(1e12 + random.Int64N(9e12))
	}
}
