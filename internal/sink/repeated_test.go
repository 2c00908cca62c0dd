package sink

import (
	"bytes"
	"testing"

	"github.com/ClickHouse/ch-go/proto"
)

// TestRepeated sends columns of runs, whole and in part: they are what ch-go's own are.
func TestRepeated(t *testing.T) {
	for _, lengths := range [][]int{{}, {1}, {1, 1, 2}, {5000}, {1, 70_000, 3, 4096, 4097, 20_000, 1}} {
		four, eight := repeated{of: proto.ColumnTypeUInt32}, repeated{of: proto.ColumnTypeUInt64}
		var want4 proto.ColUInt32
		var want8 proto.ColUInt64
		for i, n := range lengths {
			small, large := uint32(i*77_777), uint64(i)<<40+5
			four.append(uint64(small), n)
			eight.append(large, n)
			for range n {
				want4, want8 = append(want4, small), append(want8, large)
			}
		}
		for _, at := range [][2]int{{0, len(want4)}, {0, len(want4) / 2}, {len(want4) / 3, len(want4)}, {len(want4) / 3, len(want4)/3 + min(1, len(want4))}} {
			from, to := at[0], at[1]
			some4, some8 := four.rows(from, to), eight.rows(from, to)
			same(t, &some4, want4[from:to])
			same(t, &some8, want8[from:to])
			for i := range to - from {
				if some8.row(i) != want8[from+i] {
					t.Fatalf("runs of %v from %d: row %d is %d; want %d", lengths, from, i, some8.row(i), want8[from+i])
				}
			}
		}
	}
}

// same wants two columns to be equal on the wire, both ways.
func same(t *testing.T, got, want proto.ColInput) {
	t.Helper()
	if got.Rows() != want.Rows() || got.Type() != want.Type() {
		t.Errorf("%d rows of %s; want %d of %s", got.Rows(), got.Type(), want.Rows(), want.Type())
	}
	wire := func(c proto.ColInput) (encoded, written []byte) {
		var b, scratch proto.Buffer
		c.EncodeColumn(&b)
		var out bytes.Buffer
		w := proto.NewWriter(&out, &scratch)
		w.ChainBuffer(func(b *proto.Buffer) { b.PutString("before") })
		c.WriteColumn(w)
		w.ChainBuffer(func(b *proto.Buffer) { b.PutString("behind") })
		if _, err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		return b.Buf, out.Bytes()
	}
	gotEncoded, gotWritten := wire(got)
	wantEncoded, wantWritten := wire(want)
	if !bytes.Equal(gotEncoded, wantEncoded) || !bytes.Equal(gotWritten, wantWritten) {
		t.Errorf("%d rows of %s differ on the wire", got.Rows(), got.Type())
	}
}
