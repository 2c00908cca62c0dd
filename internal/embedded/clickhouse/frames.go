package clickhouse

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/ClickHouse/ch-go/compress"
)

// A compressed frame is a 16-byte checksum, a method byte, the size of method,
// sizes and payload together, and the size it unpacks to.
const (
	frameHeader   = 16 + 1 + 4 + 4
	frameOverhead = 1 + 4 + 4

	// maxFrame is what ch-go's decoder accepts; ch-go packs a whole block into
	// one frame, so a lower limit would refuse honest inserts.
	maxFrame = 128 << 20

	// outFrame is how much is packed together on the way out, as a server does.
	outFrame = 1 << 20

	// lz4Ratio is the most one byte of LZ4 can unpack to.
	lz4Ratio = 255
	lz4Code  = 0x82
)

// A frameReader unpacks compressed frames read from in. Nothing is allocated on
// the word of a header: the payload grows as it arrives, and unpacks only when
// its checksum is right.
type frameReader struct {
	in    *cursor
	raw   []byte
	taken int // of raw, by the decoder
	left  uint64
	dec   *compress.Reader
}

func newFrameReader(in *cursor) *frameReader {
	f := &frameReader{in: in}
	f.dec = compress.NewReader((*framePayload)(f))
	return f
}

// framePayload is the decoder's view: exactly the frame gathered last.
type framePayload frameReader

func (p *framePayload) Read(b []byte) (int, error) {
	if p.taken == len(p.raw) {
		return 0, io.EOF
	}
	n := copy(b, p.raw[p.taken:])
	p.taken += n
	return n, nil
}

func (f *frameReader) Read(b []byte) (int, error) {
	for f.left == 0 {
		if err := f.gather(); err != nil {
			return 0, cut(err)
		}
	}
	n, err := f.dec.Read(b[:min(uint64(len(b)), f.left)])
	if err != nil {
		var corrupt *compress.CorruptedDataErr
		if errors.As(err, &corrupt) {
			return 0, malformed("the checksum of a compressed frame is wrong")
		}
		return 0, malformed("compressed frame: %v", err)
	}
	f.left -= uint64(n)
	return n, nil
}

func (f *frameReader) gather() error {
	if err := f.in.need(frameHeader); err != nil {
		return err
	}
	h := f.in.buf[f.in.r : f.in.r+frameHeader]
	packed := uint64(binary.LittleEndian.Uint32(h[17:]))
	plain := uint64(binary.LittleEndian.Uint32(h[21:]))
	if packed < frameOverhead || packed > maxFrame || plain > maxFrame {
		return malformed("a compressed frame of %d bytes for %d is out of bounds", packed, plain)
	}
	if h[16] == lz4Code && plain > (packed-frameOverhead)*lz4Ratio {
		return malformed("%d bytes of LZ4 cannot hold %d", packed, plain)
	}
	n := 16 + int(packed)
	f.raw, f.taken = f.raw[:0], 0
	for len(f.raw) < n {
		if err := f.in.need(1); err != nil {
			return err
		}
		take := min(n-len(f.raw), f.in.w-f.in.r)
		f.raw = append(f.raw, f.in.buf[f.in.r:f.in.r+take]...)
		f.in.r += take
	}
	f.left = plain
	return nil
}
