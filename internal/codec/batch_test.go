package codec

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var now = time.UnixMilli(1_800_000_000_000)

// verdict prints what became of a body: the names kept, then index and text of
// each rejection, or the error of the whole body.
func verdict(b *Batch, err *Error) string {
	if err != nil {
		if b.Len() != 0 || len(b.Rejected()) != 0 || b.Size() != 0 {
			return "BUG: an error, yet not empty"
		}
		return fmt.Sprintf("%s: %v", err.Reason, err)
	}
	var d Decoder
	var ev Event
	var out []string
	for i := range b.Len() {
		if err := d.DecodeRecord(b.Record(i), &ev); err != nil {
			return fmt.Sprintf("record %d %s: %v", i, b.Record(i), err)
		}
		out = append(out, string(ev.Name))
	}
	for _, r := range b.Rejected() {
		out = append(out, fmt.Sprintf("%d %s", r.Index, r.Err.Error()))
	}
	return strings.Join(out, "; ")
}

// one is an event called name.
func one(name string) string {
	return `{"event_name":"` + name + `","user_id":"u","timestamp":1708732800000}`
}

func TestDecodeArray(t *testing.T) {
	pool := NewPool(Rules{MaxEvents: 4, MaxEventBytes: 100})
	f := func(body, want string) {
		t.Helper()
		b := pool.Get()
		defer b.Release()
		if got := verdict(b, b.DecodeArray([]byte(body), now)); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", body, got, want)
		}
	}
	a, z := one("a"), one("z")
	f("["+a+"]", "a")
	f(" [ "+a+" , "+z+" ] \n", "a; z")
	f("[]", "")
	f("[ ]", "")

	// One bad event does not take its neighbours down.
	f("["+a+`,{"event_name":5},`+z+"]", "a; z; 1 event_name must be a string (byte 74)")
	f("["+a+`,{},`+z+"]", "a; z; 1 event_name is required (byte 60)")
	f("["+a+`,null,17,`+z+"]", "a; z; 1 expected an object (byte 60); 2 expected an object (byte 65)")
	f("["+a+`,[{"x":[]}],`+z+"]", "a; z; 1 expected an object (byte 60)")
	f("["+a+",{\"x\":\"\xff\"},"+z+"]", "a; z; 1 a string is not valid UTF-8 (byte 66)")
	f("["+a+`,{"x":`+strings.Repeat("[", 80)+strings.Repeat("]", 80)+`},`+z+"]", "a; z; 1 the event is nested deeper than the limit, 64 (byte 128)")
	f("["+a+`,{"x":"`+strings.Repeat("x", 100)+`"},`+z+"]", "a; z; 1 the event is larger than the limit in bytes, 100 (byte 60)")
	f("["+a+`,{"event_name":"a","user_id":"u","timestamp":1},`+z+"]",
		"a; z; 1 timestamp lies before the oldest time accepted, in Unix milliseconds 946684800000 (byte 104)")

	// A body that is no JSON has no events.
	f("", "malformed: malformed JSON: the body is empty (byte 0)")
	f("  ", "malformed: malformed JSON: the body is empty (byte 2)")
	f("["+a, "malformed: malformed JSON: unexpected end (byte 59)")
	f("["+a+",", "malformed: malformed JSON: unexpected end (byte 60)")
	f("["+a+",]", "malformed: malformed JSON: expected a value (byte 60)")
	f("["+a+" "+z+"]", "malformed: malformed JSON: expected a comma or the closing bracket (byte 60)")
	f("["+a+`,{"event_name":tru}]`, "malformed: malformed JSON: expected true, false or null (byte 74)")
	f("["+a+"]]", "malformed: malformed JSON: unexpected data after the document (byte 60)")
	f("["+a+"]\x00", "malformed: malformed JSON: unexpected data after the document (byte 60)")
	f("["+a+`,{"x":`+strings.Repeat("[", 5000), "malformed: malformed JSON: unexpected end (byte 5065)")
	f("17", "malformed: malformed JSON: expected an array of events or an object with the key events (byte 0)")
	f("null", "malformed: malformed JSON: expected an array of events or an object with the key events (byte 0)")
	f("\xEF\xBB\xBF[]", "malformed: malformed JSON: expected an array of events or an object with the key events (byte 0)")

	f("["+a+","+a+",{},"+z+"]", "a; a; z; 2 event_name is required (byte 119)")
	f("["+a+","+a+",{},"+a+","+z+"]", "too_many: the body has more events than the limit, 4 (byte 181)")
}

func TestDecodeEnvelope(t *testing.T) {
	pool := NewPool(Rules{})
	f := func(body, want string) {
		t.Helper()
		b := pool.Get()
		defer b.Release()
		if got := verdict(b, b.DecodeArray([]byte(body), now)); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", body, got, want)
		}
	}
	a, z := one("a"), one("z")
	f(`{"events":[`+a+`,`+z+`]}`, "a; z")
	f(` { "sdk" : {"v":[1]} , "events" : [ `+a+` ] , "sent":null } `, "a")
	f(`{"\u0065vents":[`+a+`]}`, "a")
	f(`{"events":[`+a+`,5]}`, "a; 1 expected an object (byte 70)")
	f(`{"events":[{"x":`+"\"\xff\""+`}],"y":1}`, "0 a string is not valid UTF-8 (byte 17)")
	f(`{"events":[]}`, "")

	// The last one wins, as with every key.
	f(`{"events":[`+a+`,5],"events":[`+z+`]}`, "z")
	f(`{"events":null,"events":[`+z+`]}`, "z")
	f(`{"events":[`+a+`],"events":null}`, "invalid_field: events is required (byte 0)")

	f(`{}`, "invalid_field: events is required (byte 0)")
	f(a, "invalid_field: events is required (byte 0)")
	const lines = "malformed: malformed JSON: unexpected data after the document; one event a line is application/x-ndjson "
	f(a+"\n"+z, lines+"(byte 59)")
	f(a+"\r\n\n"+z+"\n", lines+"(byte 61)")
	f("{}\n"+a, lines+"(byte 3)")
	f(a+"{", lines+"(byte 58)")
	f(a+"\n", "invalid_field: events is required (byte 0)")
	f(a+"]", "malformed: malformed JSON: unexpected data after the document (byte 58)")
	f("{}\x00", "malformed: malformed JSON: unexpected data after the document (byte 2)")
	f(`{"Events":[]}`, "invalid_field: events is required (byte 0)")
	f(`{"events":{}}`, "invalid_field: events must be an array (byte 10)")
	f(`{"events":"x"}`, "invalid_field: events must be an array (byte 10)")
	f(`{"events":[`+a+`]`, "malformed: malformed JSON: unexpected end (byte 70)")
	f(`{"events":[`+a+`}`, "malformed: malformed JSON: expected a comma or the closing bracket (byte 69)")
	f(`{"events":[`+a+`],}`, "malformed: malformed JSON: expected a key in double quotes (byte 71)")
	f(`{"events":[`+a+`]]`, "malformed: malformed JSON: expected a comma or the closing bracket (byte 70)")
	f(`{"events":[`+a+`]}x`, "malformed: malformed JSON: unexpected data after the document (byte 71)")
	f(`{"events":[`+a+`],"x":01}`, "malformed: malformed JSON: expected a comma or the closing bracket (byte 76)")
	f(`{"events":[`+a+`],"x":`, "malformed: malformed JSON: unexpected end (byte 75)")
	f(`{"events":[`+a+`],"x":"`+"\xff"+`"}`, "malformed: a string is not valid UTF-8 (byte 76)")
	f(`{"events":nul}`, "malformed: malformed JSON: expected true, false or null (byte 10)")
	f(`{"events"`, "malformed: malformed JSON: unexpected end (byte 9)")
	f(`{`, "malformed: malformed JSON: unexpected end (byte 1)")
}

func TestDecodeLines(t *testing.T) {
	pool := NewPool(Rules{MaxEvents: 4})
	f := func(body, want string) {
		t.Helper()
		b := pool.Get()
		defer b.Release()
		if got := verdict(b, b.DecodeLines([]byte(body), now)); got != want {
			t.Errorf("%q\ngot  %s\nwant %s", body, got, want)
		}
	}
	a, z := one("a"), one("z")
	f(a, "a")
	f(a+"\n"+z+"\n", "a; z")
	f(a+"\r\n"+z+"\r\n", "a; z")
	f("\n\n"+a+"\n \t\r\n"+z+"\n\n", "a; z")
	f("", "")
	f("\n \r\n", "")

	// A line is on its own, whatever is wrong with it. Blank lines do not count.
	f(a+"\n\nnonsense\n"+z, "a; z; 1 malformed JSON: expected true, false or null (byte 60)")
	f(a+"\n{\"event_name\":\n"+z, "a; z; 1 malformed JSON: unexpected end (byte 73)")
	f(a+"\n"+a+" x\n"+z, "a; z; 1 malformed JSON: unexpected data after the document (byte 118)")
	f(a+a+"\n"+z, "z; 0 malformed JSON: unexpected data after the document (byte 58)")
	f(a+",\n"+z, "z; 0 malformed JSON: unexpected data after the document (byte 58)")
	f("[\n"+a+"\n]", "a; 0 malformed JSON: unexpected end (byte 1); 2 malformed JSON: expected a value (byte 61)")
	f("\xEF\xBB\xBF"+a+"\n"+z, "z; 0 malformed JSON: expected a value (byte 0)")
	f(a+"\n{}\nnull\n"+z, "a; z; 1 event_name is required (byte 59); 2 expected an object (byte 62)")
	f("{\"x\":\"a\nb\"}", "0 malformed JSON: unexpected end (byte 7); 1 malformed JSON: expected a value (byte 8)")

	f(a+"\nx\n"+a+"\n"+z+"\n\n", "a; a; z; 1 malformed JSON: expected a value (byte 59)")
	f(a+"\nx\n"+a+"\n"+a+"\n"+z, "too_many: the body has more events than the limit, 4 (byte 179)")
}

func TestRules(t *testing.T) {
	f := func(rules Rules, members, want string) {
		t.Helper()
		b := NewPool(rules).Get()
		defer b.Release()
		body := `{"event_name":"n","user_id":"u","timestamp":1799999999999` + members + "}"
		if got := verdict(b, b.DecodeOne([]byte(body), now)); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", body, got, want)
		}
		var ev Event
		if err := new(Decoder).DecodeUnder(rules, now, []byte(body), &ev); (err == nil) != (want == "n") || err != nil && !strings.HasSuffix(want, err.Error()) {
			t.Errorf("%s\nby itself %v\nwant      %s", body, err, want)
		}
	}
	f(Rules{}, "", "n")
	f(Rules{}, `,"timestamp":946684800000`, "n")
	f(Rules{}, `,"timestamp":946684799999`, "too_old: timestamp lies before the oldest time accepted, in Unix milliseconds 946684800000 (byte 70)")
	f(Rules{}, `,"timestamp":-5`, "too_old: timestamp lies before the oldest time accepted, in Unix milliseconds 946684800000 (byte 70)")
	f(Rules{}, `,"timestamp":1800086400000`, "n")
	f(Rules{}, `,"timestamp":1800086400001`, "invalid_field: timestamp lies after the newest time accepted, in Unix milliseconds 1800086400000 (byte 70)")
	f(Rules{MaxAge: time.Hour}, `,"timestamp":1799996400000`, "n")
	f(Rules{MaxAge: time.Hour}, `,"timestamp":1799996399999`, "too_old: timestamp lies before the oldest time accepted, in Unix milliseconds 1799996400000 (byte 70)")
	f(Rules{MaxAge: 100 * 365 * 24 * time.Hour}, `,"timestamp":946684799999`, "too_old: timestamp lies before the oldest time accepted, in Unix milliseconds 946684800000 (byte 70)")
	f(Rules{MaxAhead: time.Second}, `,"timestamp":1800000001001`, "invalid_field: timestamp lies after the newest time accepted, in Unix milliseconds 1800000001000 (byte 70)")
	f(Rules{MaxAhead: 290 * 365 * 24 * time.Hour}, `,"timestamp":4294967295999`, "n")
	f(Rules{MaxAhead: 290 * 365 * 24 * time.Hour}, `,"timestamp":4294967296000`, "invalid_field: timestamp lies after the newest time accepted, in Unix milliseconds 4294967295999 (byte 70)")
	f(Rules{MinTime: -7}, `,"timestamp":0`, "n")
	f(Rules{MinTime: -7}, `,"timestamp":-1`, "too_old: timestamp lies before the oldest time accepted, in Unix milliseconds 0 (byte 70)")

	// Lengths are of the unescaped text.
	f(Rules{MaxFieldBytes: 3}, `,"campaign_id":"\u00e9x"`, "n")
	f(Rules{MaxFieldBytes: 3}, `,"campaign_id":"abcd"`, "invalid_field: campaign_id is longer than the limit in bytes, 3 (byte 72)")
	f(Rules{MaxFieldBytes: 3}, `,"event_name":"abcd"`, "invalid_field: event_name is longer than the limit in bytes, 3 (byte 71)")
	f(Rules{MaxFieldBytes: 3}, `,"user_id":"abcd"`, "invalid_field: user_id is longer than the limit in bytes, 3 (byte 68)")
	f(Rules{MaxFieldBytes: 3}, `,"event_id":"abcd"`, "invalid_field: event_id is longer than the limit in bytes, 3 (byte 69)")
	f(Rules{MaxFieldBytes: 3}, `,"tags":["abc","abcd"]`, "invalid_field: tags is longer than the limit in bytes, 3 (byte 65)")
	f(Rules{MaxFieldBytes: 3}, `,"metadata":{"abcdef":"abcdef"},"unknown":"abcdef"`, "n")

	// The size is the event's own text, not the white space around it.
	f(Rules{MaxEventBytes: 64}, `,"x":1`, "n")
	f(Rules{MaxEventBytes: 64}, `,"x":12`, "too_large: the event is larger than the limit in bytes, 64 (byte 0)")
}

func TestClientIDIsKept(t *testing.T) {
	b := NewPool(Rules{}).Get()
	defer b.Release()
	body := `{"event_name":"a","user_id":"u","timestamp":1708732800000,"event_id":"Order \u00e9 17"}`
	if err := b.DecodeOne([]byte(body), now); err != nil {
		t.Fatal(err)
	}
	want := `{"event_name":"a","user_id":"u","timestamp":1708732800000,"event_id":"Order é 17","received_at":1800000000000}`
	if diff := cmp.Diff(want, string(b.Record(0))); diff != "" {
		t.Error(diff)
	}
	if b.Hash(0) != PartitionHash(ID([]byte("Order é 17"))) || b.Size() != len(want) {
		t.Errorf("hash %x, size %d", b.Hash(0), b.Size())
	}
}

// TestBulkIsManySingles: every way to send events decides alike and keeps the
// same records.
func TestBulkIsManySingles(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pool := NewPool(Rules{})
	for round := range 300 {
		var docs []string
		for i := range random.IntN(20) {
			docs = append(docs, randomDoc(random, fmt.Sprintf("id-%d-%d", round, i)))
		}
		var records, rejected []string
		for i, doc := range docs {
			b := pool.Get()
			if err := b.DecodeOne([]byte(doc), now); err != nil {
				e := *err
				e.Offset = 0
				rejected = append(rejected, fmt.Sprint(i, " ", e.Error()))
			} else {
				records = append(records, string(b.Record(0)))
			}
			b.Release()
		}
		f := func(body string, decode func(*Batch, []byte, time.Time) *Error) {
			t.Helper()
			b := pool.Get()
			defer b.Release()
			if err := decode(b, []byte(body), now); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			var gotRecords, gotRejected []string
			for i := range b.Len() {
				gotRecords = append(gotRecords, string(b.Record(i)))
			}
			for _, r := range b.Rejected() {
				r.Err.Offset = 0
				gotRejected = append(gotRejected, fmt.Sprint(r.Index, " ", r.Err.Error()))
			}
			if diff := cmp.Diff(records, gotRecords); diff != "" {
				t.Errorf("%s: %s", body, diff)
			}
			if diff := cmp.Diff(rejected, gotRejected); diff != "" {
				t.Errorf("%s: %s", body, diff)
			}
		}
		f("["+strings.Join(docs, ",")+"]", (*Batch).DecodeArray)
		f(`{"v":2,"events":[`+strings.Join(docs, " ,\n")+"]}", (*Batch).DecodeArray)
		f(strings.Join(docs, "\n"), (*Batch).DecodeLines)
	}
}

// randomDoc is a JSON object that may or may not be an event.
func randomDoc(random *rand.Rand, id string) string {
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	members := []string{
		`"event_name":` + pick(`"a"`, `"b"`, `"\u00e9"`, `"x\ny"`, `""`, `null`, `1`),
		`"user_id":` + pick(`"u"`, `"v"`, `"é"`, `"w"`, `"\u0000"`),
		`"timestamp":` + pick(`1708732800000`, `1708732800001`, `1708732800002`, `1`, `1e3`),
		`"event_id":"` + id + `"`,
		`"channel":` + pick(`"web"`, `"push"`, `null`, `""`, `"fax"`),
		`"tags":` + pick(`[]`, `["a"]`, `["a","\t"]`, `[null]`),
		`"metadata":` + pick(`{}`, `{ "a" : [1,2] }`, `{"b":"\ud800"}`, `[]`),
		`"x":` + pick(`1`, `"\xff"`, `[[]]`, "\"\xff\""),
	}
	if strings.Contains(members[7], `\x`) {
		members[7] = `"y":0`
	}
	random.Shuffle(len(members), func(i, k int) { members[i], members[k] = members[k], members[i] })
	return "{" + strings.Join(members, ",") + "}"
}
