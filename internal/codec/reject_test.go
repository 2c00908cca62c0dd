package codec

import (
	"fmt"
	"strings"
	"testing"
)

func TestDecodeRejects(t *testing.T) {
	var d Decoder
	f := func(in string, reason Reason, text string) {
		t.Helper()
		var ev Event
		err := d.Decode([]byte(in), &ev)
		if err == nil {
			t.Errorf("%q: accepted; want %s", in, text)
			return
		}
		if err.Error() != text || err.Reason != reason {
			t.Errorf("%q\ngot  %s: %v\nwant %s: %s", in, err.Reason, err, reason, text)
		}
	}

	// Not an object.
	f("", Malformed, "malformed JSON: the body is empty (byte 0)")
	f(" \n", Malformed, "malformed JSON: the body is empty (byte 2)")
	f("null", Malformed, "expected an object (byte 0)")
	f(" 17", Malformed, "expected an object (byte 1)")
	f(`"event"`, Malformed, "expected an object (byte 0)")
	f("true", Malformed, "expected an object (byte 0)")
	f("[]", Malformed, "expected an object (byte 0)")
	f("["+sample+"]", Malformed, "expected an object (byte 0)")

	// Byte order mark, comments, NaN, trailing data.
	f("\xEF\xBB\xBF{}", Malformed, "malformed JSON: expected a value (byte 0)")
	f("/**/{}", Malformed, "malformed JSON: expected a value (byte 0)")
	f("NaN", Malformed, "malformed JSON: expected a value (byte 0)")
	f(minimal+"}x", Malformed, "malformed JSON: unexpected data after the document (byte 58)")
	f(minimal+"}\x00", Malformed, "malformed JSON: unexpected data after the document (byte 58)")
	f(minimal+"} {}", Malformed, "malformed JSON: unexpected data after the document (byte 59)")
	f(minimal+"}}", Malformed, "malformed JSON: unexpected data after the document (byte 58)")

	// Grammar at the top, in skipped values and in metadata.
	g := func(members, text string) {
		t.Helper()
		at := len(minimal) + 1
		f(with(members), Malformed, fmt.Sprintf("malformed JSON: %s", strings.ReplaceAll(text, "@", fmt.Sprint(at))))
		f(with(`"metadata":{`+members+"}"), Malformed, fmt.Sprintf("malformed JSON: %s", strings.ReplaceAll(text, "@", fmt.Sprint(at+len(`"metadata":{`)))))
	}
	g(`a:1`, "expected a key in double quotes (byte @)")
	g(`'a':1`, "expected a key in double quotes (byte @)")
	g(`1:1`, "expected a key in double quotes (byte @)")
	g(`,`, "expected a key in double quotes (byte @)")
	h := func(value, sentence string, offset int) {
		t.Helper()
		at := len(minimal) + 1 + len(`"x":`) + offset
		f(with(`"x":`+value), Malformed, fmt.Sprintf("malformed JSON: %s (byte %d)", sentence, at))
		at += len(`"metadata":{`)
		f(with(`"metadata":{"x":`+value+"}"), Malformed, fmt.Sprintf("malformed JSON: %s (byte %d)", sentence, at))
		at += len(`[1,`)
		f(with(`"metadata":{"x":[1,`+value+"]}"), Malformed, fmt.Sprintf("malformed JSON: %s (byte %d)", sentence, at))
	}
	h("tru ", "expected true, false or null", 0)
	h("fals]", "expected true, false or null", 0)
	h("nulL", "expected true, false or null", 0)
	h("True", "expected a value", 0)
	h("NaN", "expected a value", 0)
	h("Infinity", "expected a value", 0)
	h("-Infinity", "not a JSON number", 1)
	h("+1", "expected a value", 0)
	h(".5", "expected a value", 0)
	h("01", "expected a comma or the closing bracket", 1)
	h("-01", "expected a comma or the closing bracket", 2)
	h("- ", "not a JSON number", 1)
	h("1. ", "not a JSON number", 2)
	h("1.e1", "not a JSON number", 2)
	h("1e ", "not a JSON number", 2)
	h("1e+ ", "not a JSON number", 3)
	h("1.5.5", "expected a comma or the closing bracket", 3)
	h("0x10", "expected a comma or the closing bracket", 1)
	h("1 2", "expected a comma or the closing bracket", 2)
	h("[1 2]", "expected a comma or the closing bracket", 3)
	h("[1,]", "expected a value", 3)
	h("[,1]", "expected a value", 1)
	h("[1}", "expected a comma or the closing bracket", 2)
	h(`{"a":1]`, "expected a comma or the closing bracket", 6)
	h(`{"a":1,}`, "expected a key in double quotes", 7)
	h(`{"a"}`, "expected a colon after the key", 4)
	h(`{"a" 1}`, "expected a colon after the key", 5)
	h(`{"a":}`, "expected a value", 5)
	h(`{a:1}`, "expected a key in double quotes", 1)
	h(`/*c*/1`, "expected a value", 0)
	h("\x00", "expected a value", 0)
	h("\"a\x00b\"", "raw control character in a string", 2)
	h("\"a\nb\"", "raw control character in a string", 2)
	h("\"a\tb\"", "raw control character in a string", 2)
	h("\"12345678\x1f\"", "raw control character in a string", 9)
	h(`"\x41"`, "not a JSON escape sequence", 1)
	h(`"\u12G4"`, "not a JSON escape sequence", 1)
	h(`"\u 123"`, "not a JSON escape sequence", 1)
	h(`"\'"`, "not a JSON escape sequence", 1)
	h("\"\\\n\"", "not a JSON escape sequence", 1)
	h("1\v", "expected a comma or the closing bracket", 1)
	h("1\u00a0", "expected a comma or the closing bracket", 1)

	// The same in known fields.
	at := func(members string, sentence string, offset int) {
		t.Helper()
		f(with(members), Malformed, fmt.Sprintf("malformed JSON: %s (byte %d)", sentence, len(minimal)+1+offset))
	}
	at("\"campaign_id\":\"a\nb\"", "raw control character in a string", 16)
	at(`"campaign_id":"\q"`, "not a JSON escape sequence", 15)
	at(`"campaign_id":nul `, "expected true, false or null", 14)
	at(`"campaign_id":tru `, "expected true, false or null", 14)
	at(`"campaign_id" "x"`, "expected a colon after the key", 14)
	at("\"campaign\x01_id\":1", "raw control character in a string", 9)
	at(`"tags":["a" "b"]`, "expected a comma or the closing bracket", 12)
	at(`"tags":["a",]`, "expected a value", 12)
	at(`"tags":["a"}`, "expected a comma or the closing bracket", 11)
	at("\"tags\":[\"a\x02\"]", "raw control character in a string", 10)
	at(`"timestamp":01`, "not a JSON number", 13)
	at(`"timestamp":-`, "not a JSON number", 13)
	at(`"timestamp":-x`, "not a JSON number", 13)
	at(`"timestamp":1e`, "not a JSON number", 14)
	at(`"timestamp":1.`, "not a JSON number", 14)
	at(`"timestamp":00000000000`, "not a JSON number", 13)
	at(`"timestamp":12345678x`, "expected a comma or the closing bracket", 20)
	at(`"metadata":{"a":1`+"}}", "unexpected data after the document", 19)

	// Syntax wins over an earlier broken rule: the body has no meaning any more.
	f(`{"event_name":5,]`, Malformed, "malformed JSON: expected a key in double quotes (byte 16)")

	// Fields missing, empty, of the wrong type.
	f(`{}`, InvalidField, "event_name is required (byte 0)")
	f(` {}`, InvalidField, "event_name is required (byte 1)")
	f(`{"event_name":"a"}`, InvalidField, "user_id is required (byte 0)")
	f(`{"event_name":"a","user_id":"u"}`, InvalidField, "timestamp is required (byte 0)")
	f(`{"event_name":null,"user_id":"u","timestamp":1}`, InvalidField, "event_name is required (byte 0)")
	f(`{"event_name":"","user_id":"u","timestamp":1}`, InvalidField, "event_name is required (byte 0)")
	f(`{"event_name":"a","user_id":"","timestamp":1}`, InvalidField, "user_id is required (byte 0)")
	f(`{"event_name":"a","user_id":"u","timestamp":null}`, InvalidField, "timestamp is required (byte 0)")
	f(`{"Event_Name":"a","user_id":"u","timestamp":1}`, InvalidField, "event_name is required (byte 0)")
	f(with(`"user_id":null`), InvalidField, "user_id is required (byte 0)")
	f(with(`"timestamp":null`), InvalidField, "timestamp is required (byte 0)")

	r := func(members, text string, offset int) {
		t.Helper()
		f(with(members), InvalidField, fmt.Sprintf("%s (byte %d)", text, len(minimal)+1+offset))
	}
	for _, v := range []string{`5`, `true`, `{}`, `["a"]`, `-1.5`} {
		r(`"event_name":`+v, "event_name must be a string", 13)
		r(`"user_id":`+v, "user_id must be a string", 10)
		r(`"channel":`+v, "channel must be a string", 10)
		r(`"campaign_id":`+v, "campaign_id must be a string", 14)
		r(`"event_id":`+v, "event_id must be a string", 11)
	}
	const integer = "timestamp must be integer milliseconds since 1970 in 64 bits, without fraction or exponent"
	for _, v := range []string{`"1708732800000"`, `true`, `{}`, `[1]`, `1e3`, `1.0`, `1E3`, `0.5`, `-0.0`, `1708732800000.5`,
		`9223372036854775808`, `-9223372036854775809`, `18446744073709551616`, `99999999999999999999999999`} {
		r(`"timestamp":`+v, integer, 12)
	}
	for _, v := range []string{`"a"`, `{}`, `1`, `false`} {
		r(`"tags":`+v, "tags must be an array of strings", 7)
	}
	r(`"tags":[null]`, "tags must be an array of strings", 8)
	r(`"tags":["a",1]`, "tags must be an array of strings", 12)
	r(`"tags":["a",["b"],"c"]`, "tags must be an array of strings", 12)
	for _, v := range []string{`"a"`, `[]`, `[{}]`, `1`, `false`} {
		r(`"metadata":`+v, "metadata must be an object", 11)
	}
	r(`"channel":"fax"`, "channel must be one of web, mobile, api, email, push, or empty", 10)
	r(`"channel":"Web"`, "channel must be one of web, mobile, api, email, push, or empty", 10)
	r(`"channel":"web "`, "channel must be one of web, mobile, api, email, push, or empty", 10)

	// A wrong type rejects even where a later duplicate would be right.
	r(`"channel":7,"channel":"web"`, "channel must be a string", 10)
	r(`"timestamp":1.0,"timestamp":1`, integer, 12)
	r(`"tags":[1],"tags":["a"]`, "tags must be an array of strings", 8)
	r(`"metadata":[],"metadata":{}`, "metadata must be an object", 11)

	// NUL.
	r(`"event_name":"a\u0000"`, "event_name must not contain the character U+0000", 13)
	r(`"user_id":"\u0000"`, "user_id must not contain the character U+0000", 10)
	r(`"channel":"\u0000"`, "channel must not contain the character U+0000", 10)
	r(`"campaign_id":"a\u0000b"`, "campaign_id must not contain the character U+0000", 14)
	r(`"event_id":"\u0000a"`, "event_id must not contain the character U+0000", 11)

	// Times a column cannot hold.
	r(`"timestamp":-1`, "timestamp lies outside 1970 to 2106", 12)
	r(`"timestamp":4294967296000`, "timestamp lies outside 1970 to 2106", 12)
	r(`"timestamp":9223372036854775807`, "timestamp lies outside 1970 to 2106", 12)
	r(`"timestamp":-9223372036854775807`, "timestamp lies outside 1970 to 2106", 12)

	// Broken UTF-8, wherever it stands.
	u := func(members, subject string, offset int) {
		t.Helper()
		f(with(members), Malformed, fmt.Sprintf("%s is not valid UTF-8 (byte %d)", subject, len(minimal)+1+offset))
	}
	u("\"user_id\":\"a\xff\"", "user_id", 12)
	u("\"campaign_id\":\"\xc3\"", "campaign_id", 15)
	u("\"campaign_id\":\"123456789\xc3\x28\"", "campaign_id", 24)
	u("\"campaign_id\":\"\xed\xa0\x80\"", "campaign_id", 15)     // a surrogate
	u("\"campaign_id\":\"\xc0\x80\"", "campaign_id", 15)         // overlong
	u("\"campaign_id\":\"\xf4\x90\x80\x80\"", "campaign_id", 15) // above U+10FFFF
	u("\"campaign_id\":\"\xe2\x82\\n\xac\"", "campaign_id", 15)  // an escape inside a sequence
	u("\"tags\":[\"a\",\"\x80\"]", "tags", 13)
	u("\"metadata\":{\"a\":\"\xff\"}", "a string", 17)
	u("\"metadata\":{\"\xff\":1}", "a string", 13)
	u("\"x\":[\"\xff\"]", "a string", 6)
	u("\"\xff\":1", "a string", 1)

	// Depth.
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	f(with(`"x":`+deep(64)), TooDeep, fmt.Sprintf("the event is nested deeper than the limit, 64 (byte %d)", len(minimal)+1+4+63))
	f(with(`"metadata":{"x":`+deep(63)+`}`), TooDeep, fmt.Sprintf("the event is nested deeper than the limit, 64 (byte %d)", len(minimal)+1+16+62))
	f(with(`"x":`+deep(4000)), TooDeep, fmt.Sprintf("the event is nested deeper than the limit, 64 (byte %d)", len(minimal)+1+4+63))
	f(with(`"x":`+deep(1_000_000)), TooDeep, fmt.Sprintf("the event is nested deeper than the limit, 64 (byte %d)", len(minimal)+1+4+63))
	f(strings.Repeat("[", 100_000), Malformed, "malformed JSON: unexpected end (byte 100000)")
	f(strings.Repeat(`{"a":`, 100_000), Malformed, "malformed JSON: unexpected end (byte 500000)")
}

// TestDeepBracketsMatch follows mixed brackets over several words of the stack.
func TestDeepBracketsMatch(t *testing.T) {
	var d Decoder
	f := func(depth int, flip bool) {
		t.Helper()
		var open, closing strings.Builder
		closers := make([]byte, 0, depth)
		for i := range depth {
			if i*i%7 < 3 {
				open.WriteString(`{"k":`)
				closers = append(closers, '}')
			} else {
				open.WriteByte('[')
				closers = append(closers, ']')
			}
		}
		if flip {
			closers[depth/2] ^= '}' ^ ']'
		}
		for i := depth - 1; i >= 0; i-- {
			closing.WriteByte(closers[i])
		}
		var ev Event
		err := d.Decode([]byte(with(`"x":`+open.String()+"1"+closing.String())), &ev)
		want := TooDeep
		if flip {
			want = Malformed
		}
		if err == nil || err.Reason != want {
			t.Errorf("depth %d, flipped %t: got %v; want %s", depth, flip, err, want)
		}
	}
	for _, depth := range []int{64, 65, 66, 127, 128, 129, 130, 191, 192, 193, 1000, 4095, 4096, 4097, 4160, 4161, 4225, 100_000} {
		f(depth, false)
		f(depth, true)
	}
}

// TestEveryPrefixFails cuts valid documents at every byte.
func TestEveryPrefixFails(t *testing.T) {
	var d Decoder
	f := func(doc string) {
		t.Helper()
		ev := decoded(t, &d, doc)
		for n := range len(doc) {
			err := d.Decode([]byte(doc)[:n:n], &ev)
			if err == nil || err.Reason != Malformed || err.Offset != n {
				t.Errorf("%q: got %v; want malformed at byte %d", doc[:n], err, n)
			}
		}
	}
	f(sample)
	f(with(`"tags":[ "\u00e9\ud83d\ude00", "é" ] , "metadata":{ "a":[true,false,null,-1.5e+3,{"\n":{}},[]] },"x":null`))
	f(`{"event_name":"a","user_id":"u","timestamp":1708732800000}`)
}
