package codec

import (
	"strings"
	"testing"
)

// rich has everything that could tempt the decoder to allocate.
const rich = `{"event_name":"v\u00e9","channel":"web","campaign_id":"a\n\ud83d\ude00","user_id":"é","timestamp":1708732800000,` +
	`"tags":["a","\t","c"],"metadata":{"a":[1,{"b":"\u0041"}]},"x":[[{}]],"event\u005fid":"order 17","received_at":5}`

func TestDecodingDoesNotAllocate(t *testing.T) {
	if poison {
		t.Skip("race builds drop pooled batches at random")
	}
	pool := NewPool(Rules{})
	var d Decoder
	var ev Event
	f := func(title string, do func()) {
		t.Helper()
		do() // grow what is kept
		if n := testing.AllocsPerRun(200, do); n != 0 {
			t.Errorf("%s: %v allocations", title, n)
		}
	}
	batch := func(title, body string, decode func(*Batch, []byte) *Error) {
		t.Helper()
		data := []byte(body)
		f(title, func() {
			b := pool.Get()
			if err := decode(b, data); err != nil {
				t.Fatal(err)
			}
			b.Release()
		})
	}
	one := func(b *Batch, data []byte) *Error { return b.DecodeOne(data, now) }
	array := func(b *Batch, data []byte) *Error { return b.DecodeArray(data, now) }
	lines := func(b *Batch, data []byte) *Error { return b.DecodeLines(data, now) }
	docs := []string{sample, rich, minimal + "}", `{"event_name":5}`, "null", "{\"x\":\"\xff\"}"}
	batch("one", sample, one)
	batch("one, rich", rich, one)
	batch("array", "["+strings.Join(docs, ",")+"]", array)
	batch("envelope", `{"v":1,"events":[`+strings.Join(docs, ",")+"]}", array)
	batch("lines", strings.Join(append(docs, "nonsense"), "\n"), lines)

	record := []byte(sample[:len(sample)-1] + `,"event_id":"\u0041","received_at":1}`)
	f("record", func() {
		if err := d.DecodeRecord(record, &ev); err != nil {
			t.Fatal(err)
		}
	})
	dst := make([]byte, 0, 1024)
	f("append record", func() { dst = AppendRecord(dst[:0], &ev) })
	for _, doc := range append(docs[3:], "", "{", `{"a":tru}`) {
		data := []byte(doc)
		f("error "+doc, func() {
			err := d.Decode(data, &ev)
			if err == nil {
				t.Fatal("accepted")
			}
			dst = err.AppendText(dst[:0])
		})
	}
	id := []byte("order-17")
	f("hash of a text", func() { PartitionHash(ID(id)) })
}
