package clickhouse

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
)

// wireBlock encodes columns as a client at the given revision does, without the
// block info.
func wireBlock(t testing.TB, in []proto.InputColumn, version int) []byte {
	t.Helper()
	var b proto.Buffer
	block := proto.Block{Columns: len(in), Rows: in[0].Data.Rows()}
	if err := block.EncodeRawBlock(&b, version, in); err != nil {
		t.Fatal(err)
	}
	return b.Buf
}

// allTypes is a block with every layout the walker knows.
func allTypes(t testing.TB, version int) []byte {
	c := newChTypes()
	for i := range 40 {
		c.append(i)
	}
	return wireBlock(t, c.columns(), version)
}

func walk(c *cursor, flag serialization) ([]byte, blockShape, error) {
	var out []byte
	c.keep = func(p []byte) error { out = append(out, p...); return nil }
	var w walker
	s, err := w.block(c, flag)
	return out, s, err
}

// overReader is a cursor with a window so small that it refills all the time.
func overReader(r io.Reader) *cursor { return &cursor{src: r, buf: make([]byte, 64)} }

func TestWalkReframesBetweenRevisions(t *testing.T) {
	const old, current = 54453, revision
	plain, flagged := allTypes(t, old), allTypes(t, current)
	f := func(name string, in []byte, flag serialization, want []byte) {
		t.Helper()
		for _, c := range []*cursor{
			over(in), overReader(bytes.NewReader(in)), overReader(iotest.OneByteReader(bytes.NewReader(in))),
		} {
			got, shape, err := walk(c, flag)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if shape.rows != 40 || shape.columns != 19 {
				t.Errorf("%s: got %+v; want 40 rows of 19 columns", name, shape)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: got %d bytes, not the %d wanted", name, len(got), len(want))
			}
			if _, err := c.peek(); err != io.EOF {
				t.Errorf("%s: bytes are left after the block: %v", name, err)
			}
		}
	}
	f("current client to library", flagged, flagDrop, plain)
	f("old client to library", plain, flagNone, plain)
	f("library to current client", plain, flagAdd, flagged)
}

func TestEveryStrictPrefixOfABlockFails(t *testing.T) {
	in := allTypes(t, revision)
	for n := range in {
		if _, _, err := walk(over(in[:n]), flagDrop); err == nil {
			t.Fatalf("the first %d of %d bytes passed for a block", n, len(in))
		}
		if _, _, err := walk(overReader(bytes.NewReader(in[:n])), flagDrop); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("the first %d of %d bytes: got %v; want an unexpected EOF", n, len(in), err)
		}
	}
}

func TestWalkRefusesWhatTheEngineWouldTrust(t *testing.T) {
	block := func(typ string, rows int, data ...byte) []byte {
		var b proto.Buffer
		b.PutInt(1)
		b.PutInt(rows)
		b.PutString("c")
		b.PutString(typ)
		b.PutByte(0)
		b.PutRaw(data)
		return b.Buf
	}
	u64 := func(values ...uint64) (out []byte) {
		var b proto.Buffer
		for _, v := range values {
			b.PutUInt64(v)
		}
		return b.Buf
	}
	lowCard := func(keys uint64, index byte) []byte {
		p := u64(1, lowCardAdditionalKeys, keys)
		p = append(p, 1, 'a')
		p = append(p, u64(1)...)
		return append(p, index)
	}
	f := func(want string, in []byte) {
		t.Helper()
		_, _, err := walk(over(in), flagDrop)
		var malformed *protocolError
		var refused *exception
		if !errors.As(err, &malformed) && !errors.As(err, &refused) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v; want %q", err, want)
		}
	}
	if _, _, err := walk(over(block("LowCardinality(String)", 1, lowCard(1, 0)...)), flagDrop); err != nil {
		t.Fatalf("an honest dictionary: %v", err)
	}
	f("array offset 1 follows 2", block("Array(UInt8)", 2, u64(2, 1)...))
	f("index 1 is outside a dictionary of 1", block("LowCardinality(String)", 1, lowCard(1, 1)...))
	f("version 2 is unknown", block("LowCardinality(String)", 1, u64(2)...))
	f("is not supported", block("LowCardinality(String)", 1, u64(1, lowCardGlobalDictionary, 0)...))
	f("2 indexes for 1 rows", block("LowCardinality(String)", 1, append(append(u64(1, lowCardAdditionalKeys, 1), 0), u64(2)...)...))
	f("custom serialization", []byte{1, 1, 1, 'c', 5, 'U', 'I', 'n', 't', '8', 1})
	f("wider than", []byte{0xff, 0xff, 0x7f, 1})
	f("no columns", []byte{0, 7})
	f("longer than 64 bits", bytes.Repeat([]byte{0xff}, 11))
	f("cannot travel", block("AggregateFunction(sum, UInt64)", 1))
	f("cannot travel", block("Dynamic", 0))
	f("Malformed column type", block("FixedString(0)", 1))
	f("Malformed column type", block("Array(UInt8", 1))
	f("nested deeper", block(strings.Repeat("Array(", 40)+"UInt8"+strings.Repeat(")", 40), 1))
	f("a string of", block(strings.Repeat("x", maxTypeLength+1), 1))
}

func TestParseType(t *testing.T) {
	f := func(name string, want kind, size uint64) {
		t.Helper()
		got, err := parseType(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		if got.kind != want || got.size != size {
			t.Errorf("%s: got kind %d, size %d; want %d, %d", name, got.kind, got.size, want, size)
		}
	}
	f("DateTime64(3, 'Europe/Berlin')", kindFixed, 8)
	f("DateTime('a)b')", kindFixed, 4)
	f("Enum8('it\\'s' = 1, 'b)' = -2)", kindFixed, 1)
	f("Enum16('a' = 1)", kindFixed, 2)
	f("Decimal(9, 2)", kindFixed, 4)
	f("Decimal(10, 2)", kindFixed, 8)
	f("Decimal(38)", kindFixed, 16)
	f("Decimal(76, 20)", kindFixed, 32)
	f("Decimal64(3)", kindFixed, 8)
	f("FixedString(7)", kindFixed, 7)
	f("IntervalSecond", kindFixed, 8)
	f("Nothing", kindFixed, 1)
	f("SimpleAggregateFunction(sum, Int64)", kindFixed, 8)
	f("SimpleAggregateFunction(groupArrayArray, Array(String))", kindArray, 0)
	f("Tuple(a UInt8, `b c` Array(String))", kindTuple, 0)
	f("Nested(a UInt8, b String)", kindArray, 0)
	f("Map(LowCardinality(String), Array(UInt8))", kindMap, 0)
	f("LowCardinality(Nullable(String))", kindLowCard, 0)
	f("MultiPolygon", kindArray, 0)
}

func TestCompressedFrames(t *testing.T) {
	plain := bytes.Repeat([]byte("some text "), 10_000)
	for _, method := range []compress.Method{compress.None, compress.LZ4, compress.LZ4HC, compress.ZSTD} {
		var packed []byte
		w := compress.NewWriter(compress.LevelZero, method)
		for _, part := range [][]byte{plain[:7], plain[7:50_000], plain[50_000:]} {
			if err := w.Compress(part); err != nil {
				t.Fatal(err)
			}
			packed = append(packed, w.Data...)
		}
		read := func(p []byte) ([]byte, error) {
			return io.ReadAll(io.LimitReader(newFrameReader(overReader(bytes.NewReader(p))), int64(len(plain))))
		}
		if got, err := read(packed); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("method %d: got %d bytes, %v; want %d", method, len(got), err, len(plain))
		}
		for n := 0; n < len(packed); n += 1 + len(packed)/500 {
			if _, err := read(packed[:n]); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("method %d: the first %d of %d bytes: got %v; want an unexpected EOF", method, n, len(packed), err)
			}
			bad := bytes.Clone(packed)
			bad[n] ^= 0x40
			if got, err := read(bad); err == nil && !bytes.Equal(got, plain) {
				t.Fatalf("method %d: byte %d changed unnoticed", method, n)
			}
		}
	}
}

func TestFrameSizesAreNotTrusted(t *testing.T) {
	f := func(method byte, packed, plain uint32) {
		t.Helper()
		var b proto.Buffer
		b.PutRaw(make([]byte, 16))
		b.PutByte(method)
		b.PutUInt32(packed)
		b.PutUInt32(plain)
		in := overReader(io.MultiReader(bytes.NewReader(b.Buf), bytes.NewReader(make([]byte, 100))))
		r := newFrameReader(in)
		if _, err := r.Read(make([]byte, 10)); err == nil {
			t.Errorf("frame of %d bytes for %d: no error", packed, plain)
		}
		if cap(r.raw) > 4096 {
			t.Errorf("frame of %d bytes for %d: allocated %d bytes for 100 that came", packed, plain, cap(r.raw))
		}
	}
	f(0x82, 0xffffffff, 1)
	f(0x82, 8, 1)
	f(0x82, 100, 0xffffffff)
	f(0x82, 60, 60*256)       // more than LZ4 can pack
	f(0x82, 100<<20, 100<<20) // honest sizes, no bytes
	f(0x77, 30, 30)
}

func FuzzBlock(f *testing.F) {
	f.Add(allTypes(f, revision), true)
	f.Add(allTypes(f, 54453), false)
	f.Add([]byte{0, 0}, true)
	f.Add([]byte{1, 1, 1, 'c', 5, 'U', 'I', 'n', 't', '8', 0, 7}, true)
	f.Fuzz(func(t *testing.T, in []byte, flagged bool) {
		flag := flagNone
		if flagged {
			flag = flagDrop
		}
		whole := over(in)
		out, shape, err := walk(whole, flag)
		// The window must make no difference, but for tokens larger than it.
		r := overReader(iotest.HalfReader(bytes.NewReader(in)))
		r.buf = make([]byte, 4096)
		out2, shape2, err2 := walk(r, flag)
		if (err == nil) != (err2 == nil) {
			t.Fatalf("in memory: %v; through a window: %v", err, err2)
		}
		if err != nil {
			return
		}
		if shape != shape2 || !bytes.Equal(out, out2) {
			t.Fatalf("in memory: %+v, %d bytes; through a window: %+v, %d bytes", shape, len(out), shape2, len(out2))
		}
		if shape.columns == 0 {
			return
		}
		// What goes to the library is itself a block, and comes back the same.
		again, shape3, err := walk(over(out), flagNone)
		if err != nil || shape3 != shape || !bytes.Equal(again, out) {
			t.Fatalf("the output is no block: %+v, %v", shape3, err)
		}
	})
}
