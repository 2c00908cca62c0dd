package sink

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// recycled is the memory of fetched records, which kgo asks for by the batch and
// gets back when all of a batch have been recycled. Nothing may point into a
// record after that: a row's bytes are copied into the columns, and a dead letter
// keeps copies.
type recycled struct{ records, bytes sync.Pool }

// GetRecords implements kgo.PoolRecords.
func (p *recycled) GetRecords(n int) []kgo.Record {
	if s, ok := p.records.Get().(*[]kgo.Record); ok && cap(*s) >= n {
		return *s
	}
	return make([]kgo.Record, n)
}

// PutRecords implements kgo.PoolRecords.
func (p *recycled) PutRecords(s []kgo.Record) { p.records.Put(&s) }

// maxRecycledBytes bounds what is kept of a batch that somebody else made large:
// edge's own inflate to a megabyte.
const maxRecycledBytes = 2 << 20

// GetDecompressBytes implements kgo.PoolDecompressBytes. What it returns may be
// too small; kgo then makes its own and puts that here. It is not much too large,
// because kgo clears all of it.
func (p *recycled) GetDecompressBytes(packed []byte, _ kgo.CompressionCodecType) []byte {
	s, ok := p.bytes.Get().(*[]byte)
	switch {
	case !ok:
		return nil
	case cap(*s) > 64<<10+32*len(packed):
		p.bytes.Put(s)
		return nil
	}
	return *s
}

// PutDecompressBytes implements kgo.PoolDecompressBytes.
func (p *recycled) PutDecompressBytes(s []byte) {
	if cap(s) <= maxRecycledBytes {
		p.bytes.Put(&s)
	}
}
