package rival

import (
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/bytedance/sonic"
	gojson "github.com/goccy/go-json"
	"github.com/valyala/fastjson"

	"edge/internal/codec"
)

// sample is an event of the size that SDKs send, 227 bytes.
const sample = `{"event_name":"product_view","channel":"web","campaign_id":"summer_sale_2024","user_id":"user_12345",` +
	`"timestamp":1708732800000,"tags":["electronics","featured"],"metadata":{"product_id":"SKU-001","page_url":"/products/laptop"}}`

type event struct {
	EventName  string          `json:"event_name"`
	Channel    string          `json:"channel"`
	CampaignID string          `json:"campaign_id"`
	UserID     string          `json:"user_id"`
	Timestamp  int64           `json:"timestamp"`
	Tags       []string        `json:"tags"`
	Metadata   json.RawMessage `json:"metadata"`
}

// BenchmarkDecode decodes one event into something a handler can work with.
// limit-utf8-valid reads the bytes once, eight at a time, and knows nothing of JSON: it is
// the least that the standard library needs to validate every byte. goccy, sonic and
// fastjson accept broken UTF-8, and fastjson leaves numbers unread until they are asked
// for; edge and encoding/json refuse or replace it.
func BenchmarkDecode(b *testing.B) {
	data := []byte(sample)
	run := func(name string, decode func() bool) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if !decode() {
					b.Fatal("not decoded")
				}
			}
		})
	}
	run("limit-utf8-valid", func() bool { return utf8.Valid(data) })
	var d codec.Decoder
	var ev codec.Event
	run("edge", func() bool { return d.Decode(data, &ev) == nil && string(ev.UserID) == "user_12345" })
	run("encoding-json", func() bool { var e event; return json.Unmarshal(data, &e) == nil && e.UserID == "user_12345" })
	run("goccy", func() bool { var e event; return gojson.Unmarshal(data, &e) == nil && e.UserID == "user_12345" })
	var reused event
	run("goccy-reused-noescape", func() bool {
		reused.Tags, reused.Metadata = reused.Tags[:0], reused.Metadata[:0]
		return gojson.UnmarshalNoEscape(data, &reused) == nil && reused.UserID == "user_12345"
	})
	run("sonic", func() bool { var e event; return sonic.Unmarshal(data, &e) == nil && e.UserID == "user_12345" })
	var p fastjson.Parser
	run("fastjson-reused", func() bool {
		v, err := p.ParseBytes(data)
		return err == nil && v.GetInt64("timestamp") != 0 && len(v.GetStringBytes("event_name")) != 0 && len(v.GetArray("tags")) == 2 &&
			string(v.GetStringBytes("user_id")) == "user_12345"
	})
}
