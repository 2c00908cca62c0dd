package codec

import (
	"fmt"
	"strings"
	"testing"
)

// sample is the event of the README, 227 bytes.
const sample = `{"event_name":"product_view","channel":"web","campaign_id":"summer_sale_2024","user_id":"user_12345",` +
	`"timestamp":1708732800000,"tags":["electronics","featured"],` +
	`"metadata":{"product_id":"SKU-001","page_url":"/products/laptop"}}`

// minimal has what is required and room for one more member behind it.
const minimal = `{"event_name":"a","user_id":"u","timestamp":1708732800000`

// with adds members to a valid event.
func with(members string) string { return minimal + "," + members + "}" }

// show prints an event the way the tests state it: every field that is there.
func show(ev *Event) string {
	var b strings.Builder
	text := func(name string, v []byte) {
		if len(v) > 0 {
			fmt.Fprintf(&b, " %s=%q", name, v)
		}
	}
	text("name", ev.Name)
	text("channel", ev.Channel)
	text("campaign", ev.CampaignID)
	text("user", ev.UserID)
	fmt.Fprintf(&b, " t=%d", ev.Timestamp)
	if len(ev.Tags) > 0 {
		fmt.Fprintf(&b, " tags=%q", ev.Tags)
	}
	text("metadata", ev.Metadata)
	text("id", ev.EventID)
	if ev.ReceivedAt != 0 {
		fmt.Fprintf(&b, " received=%d", ev.ReceivedAt)
	}
	return strings.TrimSpace(b.String())
}

func TestDecodeAccepts(t *testing.T) {
	var d Decoder
	f := func(in, want string) {
		t.Helper()
		var ev Event
		if err := d.Decode([]byte(in), &ev); err != nil {
			t.Errorf("%s: got %v; want %s", in, err, want)
			return
		}
		if got := show(&ev); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", in, got, want)
		}
	}
	base := `name="a" user="u" t=1708732800000`
	f(sample, `name="product_view" channel="web" campaign="summer_sale_2024" user="user_12345" t=1708732800000 `+
		`tags=["electronics" "featured"] metadata="{\"product_id\":\"SKU-001\",\"page_url\":\"/products/laptop\"}"`)
	f(minimal+"}", base)
	f(" \t\r\n"+minimal+" } \n", base)
	f("{ \"event_name\" : \"a\" ,\n\"user_id\"\t:\t\"u\" , \"timestamp\" : 1 }", `name="a" user="u" t=1`)

	// null equals absent, and so do empty optional strings.
	f(with(`"channel":null,"campaign_id":null,"tags":null,"metadata":null,"event_id":null`), base)
	f(with(`"channel":"","campaign_id":"","tags":[],"event_id":""`), base)
	f(with(`"tags":[ ]`), base)

	// Channels.
	for _, c := range []string{"web", "mobile", "api", "email", "push"} {
		f(with(`"channel":"`+c+`"`), `name="a" channel="`+c+`" user="u" t=1708732800000`)
	}

	// Duplicate keys: the last wins, null included.
	f(with(`"user_id":"v"`), `name="a" user="v" t=1708732800000`)
	f(with(`"timestamp":7`), `name="a" user="u" t=7`)
	f(with(`"tags":["x","y"],"tags":["z"]`), base+` tags=["z"]`)
	f(with(`"tags":["x"],"tags":[]`), base)
	f(with(`"tags":["x"],"tags":null`), base)
	f(with(`"metadata":{"a":1},"metadata":{}`), base+` metadata="{}"`)
	f(with(`"metadata":{"a":1},"metadata":null`), base)
	f(with(`"channel":"fax","channel":"web"`), `name="a" channel="web" user="u" t=1708732800000`)
	f(with(`"channel":"fax","channel":null`), base)
	f(with(`"user_id":"","user_id":"w"`), `name="a" user="w" t=1708732800000`)
	f(with(`"user_id":"\u0000","user_id":"w"`), `name="a" user="w" t=1708732800000`)
	f(with(`"timestamp":-1,"timestamp":9`), `name="a" user="u" t=9`)

	// Keys match after unescaping, exactly.
	f(`{"event\u005fname":"a","\u0075ser_id":"u","timestamp":5}`, `name="a" user="u" t=5`)
	f(with(`"Event_Name":"b","USER_ID":7,"event_name ":[],"":{}`), base)

	// Unknown keys of every type, received_at among them.
	f(with(`"x":1,"y":-0.5e+10,"z":[1,"2",{"3":[]}],"w":{"a":{"b":null}},"v":true,"s":"\n"`), base)
	f(with(`"received_at":"whatever"`), base)
	f(with(`"x":0,"y":-0,"z":0.0,"w":1E5,"v":1e-5,"big":123456789012345678901234567890`), base)

	// Escapes.
	f(with(`"campaign_id":"\"\\\/\b\f\n\r\t"`), `name="a" campaign="\"\\/\b\f\n\r\t" user="u" t=1708732800000`)
	f(with(`"campaign_id":"\u00e9\u20AC\ud83d\ude00"`), `name="a" campaign="é€😀" user="u" t=1708732800000`)
	f(with(`"campaign_id":"é€😀"`), `name="a" campaign="é€😀" user="u" t=1708732800000`)
	f(with(`"campaign_id":"\ud800"`), `name="a" campaign="�" user="u" t=1708732800000`)
	f(with(`"campaign_id":"\udc00x"`), `name="a" campaign="�x" user="u" t=1708732800000`)
	f(with(`"campaign_id":"\ud800\ud83d\ude00"`), `name="a" campaign="�😀" user="u" t=1708732800000`)
	f(with(`"campaign_id":"\ud800\u0041"`), `name="a" campaign="�A" user="u" t=1708732800000`)
	f(with(`"campaign_id":"\ud800\n"`), `name="a" campaign="�\n" user="u" t=1708732800000`)
	f(with(`"campaign_id":"\udc00\udc01"`), `name="a" campaign="��" user="u" t=1708732800000`)
	f(with(`"campaign_id":"\udbff\udfff"`), `name="a" campaign="\U0010ffff" user="u" t=1708732800000`)
	f(with(`"campaign_id":"`+"\x7f"+`"`), `name="a" campaign="\x7f" user="u" t=1708732800000`)
	f(with(`"tags":["a\tb","\u0000",""]`), base+` tags=["a\tb" "\x00" ""]`)

	// Metadata stays byte for byte.
	f(with(`"metadata":{ "a" : 1e400 ,`+"\n"+`"b":"\u0000\ud800","a":123456789012345678901234567890 }`),
		base+` metadata="{ \"a\" : 1e400 ,\n\"b\":\"\\u0000\\ud800\",\"a\":123456789012345678901234567890 }"`)

	// Integers at their ends.
	f(`{"event_name":"a","user_id":"u","timestamp":0}`, `name="a" user="u" t=0`)
	f(`{"event_name":"a","user_id":"u","timestamp":-0}`, `name="a" user="u" t=0`)
	f(`{"event_name":"a","user_id":"u","timestamp":12345678}`, `name="a" user="u" t=12345678`)
	f(`{"event_name":"a","user_id":"u","timestamp":4294967295999}`, `name="a" user="u" t=4294967295999`)

	// Depth: the event is level 1, so metadata may hold 62 levels below its own.
	deep := strings.Repeat(`[`, 62) + strings.Repeat(`]`, 62)
	f(with(`"metadata":{"a":`+deep+`}`), base+` metadata="{\"a\":`+deep+`}"`)

	// Strings whose end falls on every position of an eight-byte step.
	for n := range 40 {
		s := strings.Repeat("x", n)
		want := base
		if n > 0 {
			want = `name="a" campaign="` + s + `" user="u" t=1708732800000`
		}
		f(with(`"campaign_id":"`+s+`"`), want)
		f(`{"campaign_id":"`+s+`\u0041é","event_name":"a","user_id":"u","timestamp":1}`, `name="a" campaign="`+s+`Aé" user="u" t=1`)
	}
}

func TestDecodeRecord(t *testing.T) {
	var d Decoder
	var ev Event
	value := with(`"event_id":"x","received_at":1708732800001`)
	if err := d.DecodeRecord([]byte(value), &ev); err != nil {
		t.Fatal(err)
	}
	if got, want := show(&ev), `name="a" user="u" t=1708732800000 id="x" received=1708732800001`; got != want {
		t.Errorf("got %s; want %s", got, want)
	}

	f := func(in, text string) {
		t.Helper()
		err := d.DecodeRecord([]byte(in), &ev)
		if err == nil || err.Error() != text {
			t.Errorf("%s\ngot  %v\nwant %s", in, err, text)
		}
	}
	f(minimal+"}", "event_id is required (byte 0)")
	f(with(`"event_id":"","received_at":1`), "event_id is required (byte 0)")
	f(with(`"event_id":"x"`), "received_at is required (byte 0)")
	f(with(`"event_id":"x","received_at":null`), "received_at is required (byte 0)")
	f(with(`"event_id":"x","received_at":"1"`),
		"received_at must be integer milliseconds since 1970 in 64 bits, without fraction or exponent (byte 87)")
	f(with(`"event_id":"x","received_at":-1`), "received_at lies outside 1970 to 2106 (byte 87)")
	f(with(`"event_id":"x","received_at":4294967296000`), "received_at lies outside 1970 to 2106 (byte 87)")
	f(value+" x", "malformed JSON: unexpected data after the document (byte 102)")
}

// TestDecoderForgets reuses one decoder: nothing of an event may show in the next.
func TestDecoderForgets(t *testing.T) {
	var d Decoder
	var ev Event
	full := `{"event_name":"\u0041","user_id":"u\u0000","channel":"web","campaign_id":"c","timestamp":5,"tags":["x"],"metadata":{},"event_id":"i"}`
	if err := d.Decode([]byte(full), &ev); err == nil || err.Field != "user_id" {
		t.Fatalf("got %v; want user_id rejected", err)
	}
	if err := d.Decode([]byte(minimal+"}"), &ev); err != nil {
		t.Fatal(err)
	}
	if got, want := show(&ev), `name="a" user="u" t=1708732800000`; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
	if err := d.Decode([]byte(`{"event_name":"a","user_id":"u"}`), &ev); err == nil || err.Field != "timestamp" {
		t.Errorf("got %v; want timestamp missing", err)
	}

	// Nor may the scratch of one pile up on the other.
	for range 10_000 {
		if err := d.Decode([]byte(full), &ev); err == nil {
			t.Fatal("accepted")
		}
	}
	if cap(d.scratch) > 64 {
		t.Errorf("the scratch grew to %d bytes", cap(d.scratch))
	}
}
