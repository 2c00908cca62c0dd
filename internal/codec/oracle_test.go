package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	gojson "github.com/goccy/go-json"
)

// The oracle is the contract written a second time, on top of general parsers
// and without a thought for speed: encoding/json for the grammar and the
// order of members, goccy/go-json as a second opinion on values. Where ours is
// stricter than both, the rule stands here as code, so "we reject" always
// means "the oracle rejects, or one of these rules does".

// oracle returns the event as show prints it, or why it is rejected.
func oracle(data []byte) (string, error) {
	if !utf8.Valid(data) {
		return "", errors.New("stricter: UTF-8") // both parsers replace what is broken
	}
	if err := oracleDepth(data); err != nil {
		return "", err
	}
	members, err := oracleMembers(data)
	if err != nil {
		return "", err
	}
	var ev Event
	var seenTime bool
	for _, m := range members {
		// Every occurrence is checked for its type; the last one stays.
		switch m.key {
		case "event_name":
			ev.Name, err = oracleString(m.raw)
		case "channel":
			ev.Channel, err = oracleString(m.raw)
		case "campaign_id":
			ev.CampaignID, err = oracleString(m.raw)
		case "user_id":
			ev.UserID, err = oracleString(m.raw)
		case "event_id":
			ev.EventID, err = oracleString(m.raw)
		case "timestamp":
			var t *int64
			err = both(m.raw, &t)
			if seenTime, ev.Timestamp = t != nil, 0; seenTime {
				ev.Timestamp = *t
			}
		case "tags":
			ev.Tags, err = oracleTags(m.raw)
		case "metadata":
			var object map[string]json.RawMessage
			if err = both(m.raw, &object); err == nil {
				if ev.Metadata = nil; object != nil {
					ev.Metadata = m.raw
				}
			}
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", m.key, err)
		}
	}
	return show(&ev), oracleRules(&ev, seenTime)
}

// oracleRules are the checks of content.
func oracleRules(ev *Event, seenTime bool) error {
	switch {
	case len(ev.Name) == 0 || len(ev.UserID) == 0 || !seenTime:
		return errors.New("rule: required")
	case !strings.Contains(" web mobile api email push  ", " "+string(ev.Channel)+" ") || bytes.ContainsAny(ev.Channel, " "):
		return errors.New("rule: channel")
	case ev.Timestamp < 0 || ev.Timestamp/1000 >= 1<<32:
		return errors.New("rule: time")
	}
	for _, text := range [][]byte{ev.Name, ev.Channel, ev.CampaignID, ev.UserID, ev.EventID} {
		if bytes.IndexByte(text, 0) >= 0 {
			return errors.New("stricter: NUL")
		}
	}
	return nil
}

// both decodes with encoding/json and go-json, which must agree.
func both[T any](raw []byte, p *T) error {
	err := json.Unmarshal(raw, p)
	var second T
	if err2 := gojson.Unmarshal(raw, &second); (err == nil) != (err2 == nil) {
		// Both err on the side of their own; the stricter one decides.
		return errors.Join(err, err2)
	}
	if err == nil && fmt.Sprintf("%q", fmt.Sprint(*p)) != fmt.Sprintf("%q", fmt.Sprint(second)) {
		if _, pointer := any(*p).(*int64); !pointer {
			return fmt.Errorf("BUG: the oracles differ: %v and %v", *p, second)
		}
	}
	return err
}

func oracleString(raw []byte) ([]byte, error) {
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil {
		return nil, err
	}
	var second string
	if err := gojson.Unmarshal(raw, &second); err != nil || second != *s {
		return nil, fmt.Errorf("BUG: the oracles differ: %q and %q, %v", *s, second, err)
	}
	return []byte(*s), nil
}

func oracleTags(raw []byte) ([][]byte, error) {
	var list []*string
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, err
	}
	var out [][]byte
	for _, s := range list {
		if s == nil {
			return nil, errors.New("stricter: null tag")
		}
		out = append(out, []byte(*s))
	}
	return out, nil
}

type member struct {
	key string
	raw json.RawMessage
}

// oracleMembers returns every member of the object in order, duplicates included.
func oracleMembers(data []byte) ([]member, error) {
	if !json.Valid(data) {
		return nil, errors.New("not JSON")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, errors.New("stricter: not an object")
	}
	var out []member
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, err
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, err
		}
		out = append(out, member{tok.(string), raw})
	}
	return out, nil
}

func oracleDepth(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	for depth := 0; ; {
		tok, err := dec.Token()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case tok == json.Delim('{') || tok == json.Delim('['):
			depth++
		case tok == json.Delim('}') || tok == json.Delim(']'):
			depth--
		}
		if depth > MaxDepth {
			return errors.New("stricter: depth")
		}
	}
}

// compare holds a document against the oracle and sends what is accepted
// around the record once.
func compare(t *testing.T, data []byte) {
	t.Helper()
	var d Decoder
	var ev Event
	err := d.Decode(data, &ev)
	want, oracleErr := oracle(data)
	if oracleErr != nil && strings.Contains(oracleErr.Error(), "BUG") {
		t.Fatalf("%q: %v", data, oracleErr)
	}
	if (err == nil) != (oracleErr == nil) {
		t.Fatalf("%q\ngot    %v\noracle %v", data, err, oracleErr)
	}
	if err != nil {
		if err.Offset < 0 || err.Offset > len(data) || err.Reason == 0 {
			t.Fatalf("%q: %+v", data, err)
		}
		return
	}
	if got := show(&ev); got != want {
		t.Fatalf("%q\ngot    %s\noracle %s", data, got, want)
	}
	sent := clone(&ev)
	if len(sent.EventID) == 0 {
		sent.EventID = []byte("id")
	}
	sent.ReceivedAt = 1
	record := AppendRecord(nil, &sent)
	if !json.Valid(record) || !utf8.Valid(record) {
		t.Fatalf("%q: the record is no JSON: %q", data, record)
	}
	if err := d.DecodeRecord(record, &ev); err != nil {
		t.Fatalf("%q: %v", record, err)
	}
	if got, want := show(&ev), show(&sent); got != want {
		t.Fatalf("%q\nthere %s\nback  %s", data, want, got)
	}
}

// fragments are the pieces random documents are made of: every token of the
// grammar, whole and broken, and every key.
var fragments = []string{
	`{`, `}`, `[`, `]`, `,`, `:`, ` `, "\n", "\t", "\r", "\v", "\x00", `"`, `\`, `/`,
	`null`, `nul`, `true`, `false`, `tru`, `NaN`, `0`, `-`, `-0`, `01`, `1e3`, `1.0`, `1.`, `1e`, `.5`, `+1`, `-1.5E-10`,
	`1708732800000`, `4294967295999`, `4294967296000`, `9223372036854775807`, `9223372036854775808`, `99999999999999999999`,
	`"event_name"`, `"user_id"`, `"timestamp"`, `"channel"`, `"campaign_id"`, `"tags"`, `"metadata"`, `"event_id"`, `"received_at"`,
	`"Event_Name"`, `"event\u005fname"`, `"tag\u0073"`, `"\u0000"`, `"\ud800"`, `"\ud83d\ude00"`, `"\udc00"`, `"\udc00\udc01"`, `"\x"`, `"\u12g4"`, `"\n\t\"\\\/\b\f\r"`,
	`"web"`, `"fax"`, `""`, `"a"`, `"é€😀"`, "\"\xff\"", "\"\xed\xa0\x80\"", "\"\x1f\"", `"12345678"`, `"123456789abcdef0"`,
	`["a","b"]`, `["a",null]`, `[]`, `{}`, `{"a":[1,{"b":"\ud800"}]}`, "\xEF\xBB\xBF", `,"timestamp":5`, `,"tags":["\u0041"]`, `,"metadata":{ }`,
}

var seeds = []string{
	sample, minimal + "}", with(`"tags":["a","\u00e9"],"metadata":{ "x" : [1.5e3,null] },"event_id":"i","channel":"push"`),
	with(`"channel":null,"tags":null,"metadata":null,"x":{"y":[true,false]}`), "null", "[]", "{}", "\xEF\xBB\xBF{}",
	with(`"campaign_id":"\ud83d\ude00\ud800"`), with(`"user_id":7`), with("\"x\":\"\xff\""), minimal + "}x",
}

// TestAgainstOracle edits valid events at random: the fuzzer's work in small,
// the same every time.
func TestAgainstOracle(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	rounds := 100_000
	if poison { // race builds are ten times slower
		rounds = 10_000
	}
	for _, doc := range seeds {
		compare(t, []byte(doc))
	}
	for range rounds {
		doc := seeds[random.IntN(len(seeds))]
		for range 1 + random.IntN(3) {
			at := random.IntN(len(doc) + 1)
			end := min(at+random.IntN(4)*random.IntN(6), len(doc))
			doc = doc[:at] + fragments[random.IntN(len(fragments))] + doc[end:]
		}
		compare(t, []byte(doc))
	}
	// Members put together from whole values reach the rules more often.
	for range rounds {
		var b strings.Builder
		b.WriteString(minimal)
		for range random.IntN(5) {
			key := fragments[38+random.IntN(14)] // the keys
			fmt.Fprintf(&b, ",%s:%s", key, fragments[14+random.IntN(len(fragments)-14)])
		}
		b.WriteString("}")
		compare(t, []byte(b.String()))
	}
}

func FuzzDecodeAgainstGoJSON(f *testing.F) {
	for _, doc := range seeds {
		f.Add([]byte(doc))
	}
	for _, piece := range fragments {
		f.Add([]byte(minimal + `,"x":` + piece + `,"metadata":{"a":` + piece + `}}`))
	}
	f.Fuzz(func(t *testing.T, data []byte) { compare(t, data) })
}

// FuzzBulk: whatever the body, the batch stays whole: records decode, an error
// empties it, offsets lie inside the body.
func FuzzBulk(f *testing.F) {
	for _, doc := range seeds {
		f.Add([]byte("[" + doc + "," + doc + "]"))
		f.Add([]byte(`{"x":1,"events":[` + doc + `]}`))
		f.Add([]byte(doc + "\n\r\n" + doc))
	}
	pool := NewPool(Rules{MaxEvents: 8, MaxEventBytes: 400, MaxFieldBytes: 40})
	f.Fuzz(func(t *testing.T, body []byte) {
		b := pool.Get()
		defer b.Release()
		// encoding/json calls more than 10,000 levels invalid.
		shallow := bytes.Count(body, []byte("["))+bytes.Count(body, []byte("{")) <= 10_000
		if err := b.DecodeArray(body, now); err == nil && !json.Valid(body) && utf8.Valid(body) && shallow {
			t.Fatalf("%q: accepted a body that is no JSON", body)
		} else if got := verdict(b, err); strings.HasPrefix(got, "BUG") || strings.HasPrefix(got, "record ") {
			t.Fatalf("%q: %s", body, got)
		}
		if got := verdict(b, b.DecodeLines(body, now)); strings.HasPrefix(got, "BUG") || strings.HasPrefix(got, "record ") {
			t.Fatalf("%q: %s", body, got)
		}
		for _, r := range b.Rejected() {
			if r.Err.Offset < 0 || r.Err.Offset > len(body) {
				t.Fatalf("%q: %+v", body, r)
			}
		}
	})
}
