package sink

import (
	"bytes"
	"testing"

	"github.com/ClickHouse/ch-go/proto"

	"edge/internal/codec"
)

// What is measured with Columns are the columns of a flight, byte for byte.
func TestColumnsAreThoseOfAFlight(t *testing.T) {
	records := benchRecords(100)
	for i, r := range records {
		r.Partition = int32(i % 3)
	}
	f, c := newFlight(newBlock()), NewColumns()
	for range 2 { // the second time in memory that is used
		f.block.reset()
		clear(f.batches)
		c.Reset()
		for _, r := range records {
			f.take(r, nil)
			var d codec.Decoder
			var ev codec.Event
			if err := d.DecodeRecord(r.Value, &ev); err != nil {
				t.Fatal(err)
			}
			c.Append(&ev, r.Partition, r.Offset)
		}
		f.block.seal(7, f.batches)
		want, got := f.block.input(), c.Input(7)
		if len(got) != len(want) {
			t.Fatalf("got %d columns; want %d", len(got), len(want))
		}
		for i := range want {
			if got[i].Name != want[i].Name || got[i].Data.Rows() != len(records) || !bytes.Equal(encoded(got[i]), encoded(want[i])) {
				t.Errorf("column %s, %d rows, differs from %s of a flight", got[i].Name, got[i].Data.Rows(), want[i].Name)
			}
		}
	}
}

func encoded(c proto.InputColumn) []byte {
	var b proto.Buffer
	if s, ok := c.Data.(proto.StateEncoder); ok {
		s.EncodeState(&b)
	}
	c.Data.EncodeColumn(&b)
	return b.Buf
}
