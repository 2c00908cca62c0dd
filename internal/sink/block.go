package sink

import (
	"encoding/binary"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"

	"edge/internal/codec"
)

// block is rows of the events table as columns, one field per column, in the
// order of the table. Rows of several partitions may share a block: one insert
// then carries them all, and the number of inserts does not grow with the
// number of partitions. It is filled by append and completed by seal; reset
// keeps the memory for the next one.
type block struct {
	ts         *proto.ColDateTime64
	eventName  dictionary
	channel    text
	campaignID text
	userID     text
	tags       tagsColumn
	metadata   text
	eventID    proto.ColUUID
	receivedAt *proto.ColDateTime64
	src        repeated
	part       repeated
	offset     proto.ColUInt64
	first      repeated
	last       repeated
	rowCount   repeated
	dup        repeated
	dead       repeated

	bytes int // of the records taken
}

func newBlock() *block {
	four, eight := repeated{of: proto.ColumnTypeUInt32}, repeated{of: proto.ColumnTypeUInt64}
	return &block{
		ts:         new(proto.ColDateTime64).WithPrecision(proto.PrecisionMilli),
		receivedAt: new(proto.ColDateTime64).WithPrecision(proto.PrecisionMilli),
		eventName:  newDictionary(),
		src:        four, part: four, first: eight, last: eight, rowCount: four, dup: four, dead: four,
	}
}

// rows is the number of rows appended.
func (b *block) rows() int { return len(b.offset) }

// size is about how many bytes the rows take.
func (b *block) size() (n int) {
	for _, c := range []*text{&b.channel, &b.campaignID, &b.userID, &b.tags.values, &b.metadata} {
		n += len(c.wire)
	}
	return n + len(b.eventName.values.Buf) + 100*b.rows()
}

// append copies ev, of a record, into the columns.
func (b *block) append(ev *codec.Event, partition int32, offset int64) {
	b.ts.AppendRaw(proto.DateTime64(ev.Timestamp))
	b.eventName.append(ev.Name)
	b.channel.append(ev.Channel)
	b.campaignID.append(ev.CampaignID)
	b.userID.append(ev.UserID)
	b.tags.append(ev.Tags)
	b.metadata.append(ev.Metadata)
	b.eventID = append(b.eventID, uuid.UUID(ev.ID))
	b.receivedAt.AppendRaw(proto.DateTime64(ev.ReceivedAt))
	b.part.append(uint64(partition), 1)
	b.offset = append(b.offset, uint64(offset))
}

// seal fills the columns that are known only when a batch is complete.
func (b *block) seal(src uint32, batches map[int32]*batch) {
	b.part.each(func(p uint64, n int) {
		t := batches[int32(p)]
		b.src.append(uint64(src), n)
		b.first.append(uint64(t.first), n)
		b.last.append(uint64(t.last), n)
		b.rowCount.append(uint64(t.rows), n)
		b.dup.append(uint64(t.duplicates), n)
		b.dead.append(uint64(t.dead), n)
	})
}

// input returns the columns under their names.
func (b *block) input() proto.Input {
	return proto.Input{
		{Name: "ts", Data: b.ts},
		{Name: "event_name", Data: &b.eventName},
		{Name: "channel", Data: &b.channel},
		{Name: "campaign_id", Data: &b.campaignID},
		{Name: "user_id", Data: &b.userID},
		{Name: "tags", Data: &b.tags},
		{Name: "metadata", Data: &b.metadata},
		{Name: "event_id", Data: &b.eventID},
		{Name: "received_at", Data: b.receivedAt},
		{Name: "_src", Data: &b.src},
		{Name: "_part", Data: &b.part},
		{Name: "_offset", Data: &b.offset},
		{Name: "_first", Data: &b.first},
		{Name: "_last", Data: &b.last},
		{Name: "_rows", Data: &b.rowCount},
		{Name: "_dup", Data: &b.dup},
		{Name: "_dead", Data: &b.dead},
	}
}

// id is what a window remembers of row i.
func (b *block) id(i int) (id [16]byte, offset, receivedMs int64) {
	return b.eventID[i], int64(b.offset[i]), int64(b.receivedAt.Data[i])
}

// copyRow appends row i of from, as append does.
func (b *block) copyRow(from *block, i int) {
	b.ts.AppendRaw(from.ts.Data[i])
	b.eventName.append(from.eventName.row(i))
	b.channel.copyRow(&from.channel, i)
	b.campaignID.copyRow(&from.campaignID, i)
	b.userID.copyRow(&from.userID, i)
	b.tags.copyRow(&from.tags, i)
	b.metadata.copyRow(&from.metadata, i)
	b.eventID = append(b.eventID, from.eventID[i])
	b.receivedAt.AppendRaw(from.receivedAt.Data[i])
	b.part.append(from.part.row(i), 1)
	b.offset = append(b.offset, from.offset[i])
}

// reset empties the block and keeps its memory.
func (b *block) reset() {
	b.ts.Reset()
	b.eventName.reset()
	b.channel.reset()
	b.campaignID.reset()
	b.userID.reset()
	b.tags.reset()
	b.metadata.reset()
	b.eventID = b.eventID[:0]
	b.receivedAt.Reset()
	b.offset = b.offset[:0]
	for _, c := range []*repeated{&b.src, &b.part, &b.first, &b.last, &b.rowCount, &b.dup, &b.dead} {
		c.runs = c.runs[:0]
	}
	b.bytes = 0
}

// dictionary is a LowCardinality(String) column that is built as it is filled:
// a value is looked up by its bytes and copied only when it is new to the
// block, where ch-go's own column keeps a string per row and builds the
// dictionary when it encodes.
type dictionary struct {
	proto.ColLowCardinalityRaw
	values *proto.ColStr
	keys   map[string]uint32
}

// maxKeptKeys bounds what a reset dictionary keeps; a stream of ever new names
// must not leave its high-water mark behind.
const maxKeptKeys = 4096

func newDictionary() dictionary {
	values := new(proto.ColStr)
	return dictionary{
		ColLowCardinalityRaw: proto.ColLowCardinalityRaw{Index: values, Key: proto.KeyUInt32},
		values:               values,
		keys:                 make(map[string]uint32),
	}
}

func (d *dictionary) append(v []byte) {
	key, ok := d.keys[string(v)]
	if !ok {
		key = uint32(d.values.Rows())
		d.values.AppendBytes(v)
		d.keys[string(v)] = key
	}
	d.Keys32 = append(d.Keys32, key)
}

func (d *dictionary) row(i int) []byte { return d.values.RowBytes(int(d.Keys32[i])) }

func (d *dictionary) reset() {
	d.Reset()
	if len(d.keys) > maxKeptKeys {
		d.keys = make(map[string]uint32)
	} else {
		clear(d.keys)
	}
}

// text is a String column as it goes over the wire, every value behind its length:
// without compression, sending it copies nothing. ch-go's own column keeps 16 bytes a
// value beside the bytes, and copies both when it is sent.
type text struct {
	wire []byte
	ends []uint32 // of the values in wire, which is well below 4 GiB: see maxRereadBytes
}

func (c *text) append(v []byte) {
	c.wire = binary.AppendUvarint(c.wire, uint64(len(v)))
	c.wire = append(c.wire, v...)
	c.ends = append(c.ends, uint32(len(c.wire)))
}

// copyRow appends row i of from.
func (c *text) copyRow(from *text, i int) {
	c.wire = append(c.wire, from.wire[from.start(i):from.start(i+1)]...)
	c.ends = append(c.ends, uint32(len(c.wire)))
}

// start is where value i begins in wire, or where the next one will.
func (c *text) start(i int) int {
	if i == 0 {
		return 0
	}
	return int(c.ends[i-1])
}

// rows are the values [from,to), to be sent only: they are in the same memory.
func (c *text) rows(from, to int) text {
	return text{wire: c.wire[c.start(from):c.start(to)], ends: c.ends[from:to]}
}

// reset keeps what a full block may need; that of a recovery may have been several.
func (c *text) reset() {
	c.wire, c.ends = c.wire[:0], c.ends[:0]
	if cap(c.wire) > MaxFlushBytes {
		c.wire = nil
	}
}

// Type implements proto.ColInput.
func (*text) Type() proto.ColumnType { return proto.ColumnTypeString }

// Rows implements proto.ColInput.
func (c *text) Rows() int { return len(c.ends) }

// EncodeColumn implements proto.ColInput.
func (c *text) EncodeColumn(b *proto.Buffer) { b.PutRaw(c.wire) }

// WriteColumn implements proto.ColInput.
func (c *text) WriteColumn(w *proto.Writer) { w.ChainWrite(c.wire) }

// tagsColumn is Array(String): how many values there are by the end of each row, and
// the values of all rows.
type tagsColumn struct {
	ends   proto.ColUInt64
	values text
}

func (c *tagsColumn) append(tags [][]byte) {
	for _, t := range tags {
		c.values.append(t)
	}
	c.ends = append(c.ends, uint64(c.values.Rows()))
}

// copyRow appends row i of from.
func (c *tagsColumn) copyRow(from *tagsColumn, i int) {
	for k := from.start(i); k < from.ends[i]; k++ {
		c.values.copyRow(&from.values, int(k))
	}
	c.ends = append(c.ends, uint64(c.values.Rows()))
}

// start is where the values of row i begin, or where those of the next one will.
func (c *tagsColumn) start(i int) uint64 {
	if i == 0 {
		return 0
	}
	return c.ends[i-1]
}

// rows are the rows [from,to), to be sent only.
func (c *tagsColumn) rows(from, to int) tagsColumn {
	start := c.start(from)
	ends := c.ends[from:to]
	if start > 0 {
		ends = make(proto.ColUInt64, to-from)
		for i := range ends {
			ends[i] = c.ends[from+i] - start
		}
	}
	return tagsColumn{ends, c.values.rows(int(start), int(c.start(to)))}
}

func (c *tagsColumn) reset() {
	c.ends = c.ends[:0]
	c.values.reset()
}

// Type implements proto.ColInput.
func (c *tagsColumn) Type() proto.ColumnType { return proto.ColumnTypeArray.Sub(c.values.Type()) }

// Rows implements proto.ColInput.
func (c *tagsColumn) Rows() int { return len(c.ends) }

// EncodeColumn implements proto.ColInput.
func (c *tagsColumn) EncodeColumn(b *proto.Buffer) {
	c.ends.EncodeColumn(b)
	c.values.EncodeColumn(b)
}

// WriteColumn implements proto.ColInput.
func (c *tagsColumn) WriteColumn(w *proto.Writer) {
	c.ends.WriteColumn(w)
	c.values.WriteColumn(w)
}
