package sink

import (
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"edge/internal/codec"
)

// Columns are rows of the events table in the columns of a flight, without a sink around
// them: what bench/rival sets beside other ways to insert. The sink itself has no use for
// them, since nothing here remembers what is stored.
type Columns struct{ flight *flight }

// NewColumns returns columns without rows.
func NewColumns() *Columns { return &Columns{newFlight(newBlock())} }

// Append copies ev, of the record at offset of partition, into the columns.
func (c *Columns) Append(ev *codec.Event, partition int32, offset int64) {
	f := c.flight
	f.row(f.upTo(partition, offset, time.Time{}), ev, partition, offset)
}

// Input completes the rows, which are of the log src, and returns them for one INSERT.
// They are valid until Reset, which must come before the next Append.
func (c *Columns) Input(src uint32) proto.Input {
	c.flight.block.seal(src, c.flight.batches)
	return c.flight.block.input()
}

// Reset removes the rows and keeps their memory.
func (c *Columns) Reset() {
	c.flight.block.reset()
	clear(c.flight.batches)
}
