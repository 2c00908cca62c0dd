package clickhouse

import (
	"encoding/binary"
	"math/bits"
)

// maxColumns is ten times the widest table anybody should own.
const maxColumns = 10_000

// A column names one column of a block.
type column struct{ name, typ string }

// A walker finds the end of Native blocks. It remembers parsed types, because a
// session sends the same few over and over.
type walker struct {
	types   map[string]*columnType
	columns []column // of the block walked last; the next walk overwrites it
	head    []byte   // its row and column counts, encoded
}

// serialization says what stands between a column's type and its data. Clients
// and servers at revision 54454 and above exchange a flag byte there; the
// library reads and writes revision 0, which has none.
type serialization uint8

const (
	flagNone serialization = iota
	flagDrop               // the flag is in the input and not wanted in the output
	flagAdd                // the flag is wanted in the output and not in the input
)

// A blockShape is what a walk over one block found.
type blockShape struct{ columns, rows uint64 }

// plainColumn is the flag of a column in the default serialization. A server
// of this revision is entitled to sparse columns; we offer none and take none.
var plainColumn = []byte{0}

func (w *walker) typeOf(name string) (*columnType, error) {
	if t, ok := w.types[name]; ok {
		return t, nil
	}
	t, err := parseType(name)
	if err != nil {
		return nil, err
	}
	if w.types == nil || len(w.types) >= 512 {
		w.types = make(map[string]*columnType)
	}
	w.types[name] = t
	return t, nil
}

// walkInfo consumes the block info that precedes a block on the wire.
func walkInfo(c *cursor) error {
	for {
		field, err := c.uvarint()
		if err != nil {
			return err
		}
		switch field {
		case 0:
			return nil
		case 1:
			err = c.skip(1) // is_overflows
		case 2:
			err = c.skip(4) // bucket number
		default:
			return malformed("block info field %d is unknown", field)
		}
		if err != nil {
			return err
		}
	}
}

// block walks one block and passes it on through c.keep, re-encoded from the
// one side's revision to the other's as flag says.
func (w *walker) block(c *cursor, flag serialization) (blockShape, error) {
	var s blockShape
	var err error
	w.columns = w.columns[:0]
	if s.columns, err = c.uvarint(); err != nil {
		return s, err
	}
	if s.rows, err = c.uvarint(); err != nil {
		return s, err
	}
	if s.columns > maxColumns {
		return s, malformed("a block of %d columns is wider than the %d allowed", s.columns, maxColumns)
	}
	if s.columns == 0 && s.rows > 0 {
		return s, malformed("a block of %d rows has no columns", s.rows)
	}
	if s.columns == 0 {
		return s, nil // the end-of-data mark is no block to pass on
	}
	w.head = binary.AppendUvarint(binary.AppendUvarint(w.head[:0], s.columns), s.rows)
	if err := c.keep(w.head); err != nil {
		return s, err
	}
	c.keepOn()
	for range s.columns {
		if err := w.column(c, s.rows, flag); err != nil {
			return s, err
		}
	}
	return s, c.keepOff()
}

func (w *walker) column(c *cursor, rows uint64, flag serialization) error {
	name, err := c.string(maxTypeLength)
	if err != nil {
		return err
	}
	typ, err := c.string(maxTypeLength)
	if err != nil {
		return err
	}
	w.columns = append(w.columns, column{name, typ})
	if err := w.flag(c, flag); err != nil {
		return err
	}
	t, err := w.typeOf(typ)
	if err != nil {
		return err
	}
	if rows == 0 {
		return nil
	}
	if err := walkPrefix(c, t); err != nil {
		return err
	}
	return walkData(c, t, rows)
}

func (w *walker) flag(c *cursor, flag serialization) error {
	switch flag {
	case flagDrop:
		if err := c.keepOff(); err != nil {
			return err
		}
		b, err := c.byte()
		if err != nil {
			return err
		}
		if b != 0 {
			return malformed("a column arrived in custom serialization, which was not offered")
		}
		c.keepOn()
	case flagAdd:
		if err := c.keepOff(); err != nil {
			return err
		}
		if err := c.keep(plainColumn); err != nil {
			return err
		}
		c.keepOn()
	}
	return nil
}

// walkPrefix walks what stands before the data: one 8-byte version for each
// LowCardinality leaf, all of them ahead of the first value.
func walkPrefix(c *cursor, t *columnType) error {
	if t.kind == kindLowCard {
		v, err := c.uint64()
		if err != nil {
			return err
		}
		if v != 1 {
			return malformed("LowCardinality version %d is unknown", v)
		}
		return nil
	}
	for _, e := range t.elems {
		if err := walkPrefix(c, e); err != nil {
			return err
		}
	}
	return nil
}

func walkData(c *cursor, t *columnType, rows uint64) error {
	if rows == 0 {
		return nil
	}
	switch t.kind {
	case kindFixed:
		hi, n := bits.Mul64(rows, t.size)
		if hi != 0 {
			return malformed("a column of %d rows is too long", rows)
		}
		return c.skip(n)
	case kindString:
		return walkStrings(c, rows)
	case kindNullable:
		if err := c.skip(rows); err != nil {
			return err
		}
		return walkData(c, t.elems[0], rows)
	case kindTuple:
		return walkAll(c, t.elems, rows)
	case kindArray, kindMap:
		n, err := walkOffsets(c, rows)
		if err != nil {
			return err
		}
		return walkAll(c, t.elems, n)
	default:
		return walkLowCard(c, t.elems[0], rows)
	}
}

func walkAll(c *cursor, types []*columnType, rows uint64) error {
	for _, t := range types {
		if err := walkData(c, t, rows); err != nil {
			return err
		}
	}
	return nil
}

func walkStrings(c *cursor, rows uint64) error {
	for ; rows > 0; rows-- {
		if c.r < c.w {
			// One length byte and the value inside the window: nearly always.
			if n := int(c.buf[c.r]); n < 0x80 && n < c.w-c.r {
				c.r += 1 + n
				continue
			}
		}
		n, err := c.uvarint()
		if err != nil {
			return err
		}
		if err := c.skip(n); err != nil {
			return err
		}
	}
	return nil
}

// walkOffsets walks an array's end offsets and returns the last. They must not
// fall: the engine trusts them when it cuts the elements.
func walkOffsets(c *cursor, rows uint64) (uint64, error) {
	var last uint64
	for rows > 0 {
		if err := c.need(8); err != nil {
			return 0, err
		}
		n := min(rows, uint64(c.w-c.r)/8)
		for range n {
			v := binary.LittleEndian.Uint64(c.buf[c.r:])
			if v < last {
				return 0, malformed("array offset %d follows %d", v, last)
			}
			last = v
			c.r += 8
		}
		rows -= n
	}
	return last, nil
}

// Bits of a LowCardinality column's index header (the low byte is the width of
// an index, as its power of two).
const (
	lowCardGlobalDictionary = 1 << 8
	lowCardAdditionalKeys   = 1 << 9
)

func walkLowCard(c *cursor, keys *columnType, rows uint64) error {
	header, err := c.uint64()
	if err != nil {
		return err
	}
	width := uint64(1) << min(header&0xff, 63)
	if width > 8 || header&lowCardGlobalDictionary != 0 || header&lowCardAdditionalKeys == 0 {
		return malformed("LowCardinality header %#x is not supported", header)
	}
	n, err := c.uint64()
	if err != nil {
		return err
	}
	if err := walkData(c, keys, n); err != nil {
		return err
	}
	indexes, err := c.uint64()
	if err != nil {
		return err
	}
	if indexes != rows {
		return malformed("a LowCardinality column has %d indexes for %d rows", indexes, rows)
	}
	return walkIndexes(c, rows, int(width), n)
}

// walkIndexes checks that every index points into the dictionary of n keys:
// the engine would read beside it.
func walkIndexes(c *cursor, rows uint64, width int, n uint64) error {
	for rows > 0 {
		if err := c.need(width); err != nil {
			return err
		}
		take := int(min(rows, uint64((c.w-c.r)/width)))
		if high := highestIndex(c.buf[c.r:c.r+take*width], width); high >= n {
			return malformed("LowCardinality index %d is outside a dictionary of %d", high, n)
		}
		c.r += take * width
		rows -= uint64(take)
	}
	return nil
}

func highestIndex(p []byte, width int) uint64 {
	var high uint64
	switch width {
	case 1:
		for _, b := range p {
			high = max(high, uint64(b))
		}
	case 2:
		for ; len(p) >= 2; p = p[2:] {
			high = max(high, uint64(binary.LittleEndian.Uint16(p)))
		}
	case 4:
		for ; len(p) >= 4; p = p[4:] {
			high = max(high, uint64(binary.LittleEndian.Uint32(p)))
		}
	default:
		for ; len(p) >= 8; p = p[8:] {
			high = max(high, binary.LittleEndian.Uint64(p))
		}
	}
	return high
}
