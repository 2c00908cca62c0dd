package sink

import (
	"github.com/ClickHouse/ch-go/proto"

	"edge/internal/codec"
)

// Columns are rows of the events table in the columns of a flight, without a sink around
// them: what bench/rival sets beside other ways to insert. The sink itself has no use for
// them, since nothing here remembers what is stored.
type Columns struct {
	block   *block
	batches map[int32]*batch
}

// NewColumns returns columns without rows.
func NewColumns() *Columns {
	return &Columns{block: newBlock(), batches: make(map[int32]*batch)}
}

// Append copies ev, of the record at offset of partition, into the columns.
func (c *Columns) Append(ev *codec.Event, partition int32, offset int64) {
	t := c.batches[partition]
	if t == nil {
		t = &batch{first: offset}
		c.batches[partition] = t
	}
	t.last = offset
	t.rows++
	c.block.append(ev, partition, offset)
}

// Input completes the rows, which are of the log src, and returns them for one INSERT.
// They are valid until Reset, which must come before the next Append.
func (c *Columns) Input(src uint32) proto.Input {
	c.block.seal(src, c.batches)
	return c.block.input()
}

// Reset removes the rows and keeps their memory.
func (c *Columns) Reset() {
	c.block.reset()
	clear(c.batches)
}
