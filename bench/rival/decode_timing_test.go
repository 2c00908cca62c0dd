package rival

import (
	"encoding/json"
	"testing"

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
// goccy, sonic and fastjson accept broken UTF-8, and fastjson leaves numbers
// unread until they are asked for; edge and encoding/json refuse or replace it.
func BenchmarkDecode(b *testing.B) {
	data := []byte(sample)
	run := func(name string, decode func() (user string, err error)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if user, err := decode(); err != nil || user != "user_12345" {
					b.Fatal(user, err)
				}
			}
		})
	}
	var d codec.Decoder
	var ev codec.Event
	b.Run("edge", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if err := d.Decode(data, &ev); err != nil || string(ev.UserID) != "user_12345" {
				b.Fatal(err)
			}
		}
	})
	run("encoding-json", func() (string, error) { var e event; err := json.Unmarshal(data, &e); return e.UserID, err })
	run("goccy", func() (string, error) { var e event; err := gojson.Unmarshal(data, &e); return e.UserID, err })
	var reused event
	run("goccy-reused-noescape", func() (string, error) {
		reused.Tags, reused.Metadata = reused.Tags[:0], reused.Metadata[:0]
		err := gojson.UnmarshalNoEscape(data, &reused)
		return reused.UserID, err
	})
	run("sonic", func() (string, error) { var e event; err := sonic.Unmarshal(data, &e); return e.UserID, err })
	var p fastjson.Parser
	run("fastjson-reused", func() (string, error) {
		v, err := p.ParseBytes(data)
		if err != nil || v.GetInt64("timestamp") == 0 || len(v.GetStringBytes("event_name")) == 0 || len(v.GetArray("tags")) != 2 {
			return "", err
		}
		return string(v.GetStringBytes("user_id")), nil
	})
}
