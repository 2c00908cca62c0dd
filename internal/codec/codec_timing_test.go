package codec

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	gojson "github.com/goccy/go-json"
)

// rival is the event as a struct for general decoders.
type rival struct {
	EventName  string          `json:"event_name"`
	Channel    string          `json:"channel"`
	CampaignID string          `json:"campaign_id"`
	UserID     string          `json:"user_id"`
	Timestamp  int64           `json:"timestamp"`
	Tags       []string        `json:"tags"`
	Metadata   json.RawMessage `json:"metadata"`
	EventID    string          `json:"event_id"`
}

// BenchmarkDecode decodes one event of 227 bytes. The rivals check less:
// neither refuses broken UTF-8.
func BenchmarkDecode(b *testing.B) {
	data := []byte(sample)
	run := func(name string, decode func() (user string)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if decode() != "user_12345" {
					b.Fatal("wrong user")
				}
			}
		})
	}
	var d Decoder
	var ev Event
	run("edge", func() string {
		if err := d.Decode(data, &ev); err != nil {
			b.Fatal(err)
		}
		if string(ev.UserID) != "user_12345" {
			return ""
		}
		return "user_12345"
	})
	run("encoding-json", func() string {
		var r rival
		if err := json.Unmarshal(data, &r); err != nil {
			b.Fatal(err)
		}
		return r.UserID
	})
	run("go-json", func() string {
		var r rival
		if err := gojson.Unmarshal(data, &r); err != nil {
			b.Fatal(err)
		}
		return r.UserID
	})
	run("go-json-reused-noescape", func() string {
		r.Tags, r.Metadata = r.Tags[:0], r.Metadata[:0]
		if err := gojson.UnmarshalNoEscape(data, &r); err != nil {
			b.Fatal(err)
		}
		return r.UserID
	})
	run("encoding-json-valid-only", func() string {
		if !json.Valid(data) {
			b.Fatal("not valid")
		}
		return "user_12345"
	})
}

var r rival

// BenchmarkBatch is what a request costs: decode, check, assign an id, encode
// the record, hash, and give the memory back.
func BenchmarkBatch(b *testing.B) {
	pool := NewPool(Rules{})
	run := func(name, body string, events int, decode func(*Batch, []byte) *Error) {
		b.Run(name, func(b *testing.B) {
			data := []byte(body)
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				batch := pool.Get()
				if err := decode(batch, data); err != nil || batch.Len() != events {
					b.Fatal(err, batch.Len())
				}
				batch.Release()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*events), "ns/event")
		})
	}
	withID := sample[:len(sample)-1] + `,"event_id":"018dd8a6-3a00-7abc-8def-0123456789ab"}`
	one := func(batch *Batch, data []byte) *Error { return batch.DecodeOne(data, now) }
	array := func(batch *Batch, data []byte) *Error { return batch.DecodeArray(data, now) }
	lines := func(batch *Batch, data []byte) *Error { return batch.DecodeLines(data, now) }
	run("one", sample, 1, one)
	run("one-with-id", withID, 1, one)
	run("array-of-100", "["+sample+strings.Repeat(","+sample, 99)+"]", 100, array)
	run("lines-of-100", strings.Repeat(sample+"\n", 100), 100, lines)
}

// BenchmarkRecord is the sink's side.
func BenchmarkRecord(b *testing.B) {
	batch := NewPool(Rules{}).Get()
	defer batch.Release()
	if err := batch.DecodeOne([]byte(sample), now); err != nil {
		b.Fatal(err)
	}
	record := batch.Record(0)
	var d Decoder
	var ev Event
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(record)))
		for b.Loop() {
			if err := d.DecodeRecord(record, &ev); err != nil || ev.ReceivedAt != now.UnixMilli() {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode-other-id", func(b *testing.B) {
		other := AppendRecord(nil, &Event{Name: ev.Name, Channel: ev.Channel, CampaignID: ev.CampaignID, UserID: ev.UserID, Timestamp: ev.Timestamp,
			Tags: ev.Tags, Metadata: ev.Metadata, EventID: []byte("order-17"), ReceivedAt: ev.ReceivedAt})
		b.ReportAllocs()
		b.SetBytes(int64(len(other)))
		var back Event
		for b.Loop() {
			if err := d.DecodeRecord(other, &back); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(record)))
		var dst []byte
		for b.Loop() {
			if dst = AppendRecord(dst[:0], &ev); len(dst) != len(record) {
				b.Fatal("wrong length")
			}
		}
	})
	b.Run("id-and-hash", func(b *testing.B) {
		for b.Loop() {
			if PartitionHash(ID(ev.EventID)) != batch.Hash(0) {
				b.Fatal("wrong hash")
			}
		}
	})
}

// BenchmarkRecorded decodes recorded events with nested metadata, about 800
// bytes each.
func BenchmarkRecorded(b *testing.B) {
	lines := recorded(b, "game_events.ndjson.gz")
	var docs [][]byte
	size := 0
	for len(docs) < 1000 && lines.Scan() {
		docs = append(docs, bytes.Clone(lines.Bytes()))
		size += len(lines.Bytes())
	}
	run := func(name string, decode func([]byte) error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size / len(docs)))
			i := 0
			for b.Loop() {
				if err := decode(docs[i%len(docs)]); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
	var d Decoder
	var ev Event
	run("edge", func(doc []byte) error {
		if err := d.Decode(doc, &ev); err != nil {
			return err
		}
		return nil
	})
	run("encoding-json", func(doc []byte) error { var r rival; return json.Unmarshal(doc, &r) })
	run("go-json", func(doc []byte) error { var r rival; return gojson.Unmarshal(doc, &r) })
}
