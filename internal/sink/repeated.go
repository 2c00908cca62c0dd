package sink

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sort"

	"github.com/ClickHouse/ch-go/proto"
)

// repeated is a column of integers that many rows in a row share: of what says something of
// a batch, all of its rows. It keeps one for each run, and is sent from a page of copies.
type repeated struct {
	of   proto.ColumnType // UInt32 or UInt64
	runs []run
}

// run is a value and the row behind its last.
type run struct {
	value uint64
	end   int
}

// append adds n rows of v.
func (c *repeated) append(v uint64, n int) {
	end := c.Rows() + n
	if last := len(c.runs) - 1; last >= 0 && c.runs[last].value == v {
		c.runs[last].end = end
		return
	}
	c.runs = append(c.runs, run{v, end})
}

// row is the value of row i.
func (c *repeated) row(i int) uint64 {
	return c.runs[sort.Search(len(c.runs), func(k int) bool { return c.runs[k].end > i })].value
}

// rows are the rows [from,to).
func (c *repeated) rows(from, to int) repeated {
	out := repeated{of: c.of}
	for _, r := range c.runs {
		if n := min(r.end, to) - (from + out.Rows()); n > 0 {
			out.append(r.value, n)
		}
	}
	return out
}

// Type implements proto.ColInput.
func (c *repeated) Type() proto.ColumnType { return c.of }

// Rows implements proto.ColInput.
func (c *repeated) Rows() int {
	if len(c.runs) == 0 {
		return 0
	}
	return c.runs[len(c.runs)-1].end
}

// EncodeColumn implements proto.ColInput.
func (c *repeated) EncodeColumn(b *proto.Buffer) {
	c.each(func(v uint64, n int) { b.Buf = appendTimes(b.Buf, c.wire(v), n) })
}

// pageBytes is how much of a long run is sent at once.
const pageBytes = 16 << 10

// WriteColumn implements proto.ColInput.
func (c *repeated) WriteColumn(w *proto.Writer) {
	c.each(func(v uint64, n int) {
		value := c.wire(v)
		left := n * len(value)
		if left <= pageBytes {
			w.ChainBuffer(func(b *proto.Buffer) { b.Buf = appendTimes(b.Buf, value, n) })
			return
		}
		page := bytes.Repeat(value, pageBytes/len(value))
		for ; left > 0; left -= len(page) {
			w.ChainWrite(page[:min(left, len(page))])
		}
	})
}

func appendTimes(b, value []byte, n int) []byte {
	b = slices.Grow(b, n*len(value))
	for range n {
		b = append(b, value...)
	}
	return b
}

// wire is v as it is sent.
func (c *repeated) wire(v uint64) []byte {
	value := binary.LittleEndian.AppendUint64(nil, v)
	if c.of == proto.ColumnTypeUInt32 {
		return value[:4]
	}
	return value
}

// each calls f with each value and for how many rows it is there.
func (c *repeated) each(f func(v uint64, n int)) {
	from := 0
	for _, r := range c.runs {
		f(r.value, r.end-from)
		from = r.end
	}
}
