package server

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// encoding is a content coding of a request body.
type encoding uint8

const (
	identity encoding = iota
	gzipped
	deflated
	brotlied
	zstded
)

// maxWindow is the history a zstd frame may ask for: RFC 9659 has encoders for
// HTTP stay within 8 MB. brotli's own maximum is 16 MiB.
const maxWindow = 8 << 20

// inflaters undo content encodings. A decoder's history costs up to 16 MiB
// however small the body is, so a thousand hostile 20-byte bodies would cost
// gigabytes outside the budget. Decoding only burns CPU (the body is already
// here), so more decoders than cores gain nothing: a slot per core bounds the
// memory and costs no throughput.
type inflaters struct {
	slots chan struct{}
	pool  sync.Pool // of *inflater; the collector may take them, and big histories with them
}

// inflater holds one decoder of each kind, made when first needed.
type inflater struct {
	src  bytes.Reader
	gzip *gzip.Reader
	zlib io.ReadCloser
	raw  io.ReadCloser
	br   *brotli.Reader
	zstd *zstd.Decoder
}

func newInflaters() *inflaters {
	return &inflaters{slots: make(chan struct{}, runtime.GOMAXPROCS(0))}
}

// inflate returns the content of body, at most limit bytes of it, in a block
// of m. body must be one whole stream (or, for gzip and zstd, several in a row)
// with nothing behind it.
func (f *inflaters) inflate(m *memory, enc encoding, body []byte, limit int) (*block, error) {
	f.slots <- struct{}{}
	defer func() { <-f.slots }()
	d, ok := f.pool.Get().(*inflater)
	if !ok {
		d = new(inflater)
	}
	d.src.Reset(body)
	blk, err := d.inflate(m, enc, body, limit)
	d.release(f)
	return blk, err
}

func (d *inflater) inflate(m *memory, enc encoding, body []byte, limit int) (*block, error) {
	r, err := d.reader(enc, body)
	if err != nil {
		return nil, errEncoding
	}
	blk := m.get(min(4*len(body), firstRead))
	whole := false
	// Given back unless all is well, also when a decoder panics.
	defer func() {
		if !whole {
			m.put(blk)
		}
	}()
	for blk != nil {
		n, err := r.Read(blk.b[len(blk.b):cap(blk.b)])
		blk.b = blk.b[:len(blk.b)+n]
		switch {
		case len(blk.b) > limit:
			return nil, &sizeError{limit: limit, inflated: true}
		case err == io.EOF && d.src.Len() == 0:
			whole = true
			return blk, nil
		case errors.Is(err, zstd.ErrWindowSizeExceeded):
			return nil, errWindow
		case err != nil: // or bytes behind the end
			return nil, errEncoding
		}
		if len(blk.b) == cap(blk.b) {
			bigger := m.grow(blk, min(2*cap(blk.b), limit+1))
			if bigger == nil {
				break
			}
			blk = bigger
		}
	}
	return nil, errMemory
}

func (d *inflater) release(f *inflaters) {
	d.src.Reset(nil)
	f.pool.Put(d)
}

// reader returns a decoder of enc over d.src.
func (d *inflater) reader(enc encoding, body []byte) (r io.Reader, err error) {
	switch enc {
	case gzipped:
		if d.gzip == nil {
			d.gzip = new(gzip.Reader)
		}
		return d.gzip, d.gzip.Reset(&d.src)
	case deflated:
		return d.deflate(body)
	case brotlied:
		if d.br == nil {
			d.br = new(brotli.Reader)
		}
		return d.br, d.br.Reset(&d.src)
	case zstded:
		if d.zstd == nil {
			// One stream, no goroutines; no decoding ahead of what is asked for.
			d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecodeBuffersBelow(0))
			if err != nil {
				panic("BUG: zstd options: " + err.Error())
			}
		}
		return d.zstd, d.zstd.Reset(&d.src)
	}
	panic("BUG: inflate of an unknown encoding")
}

// deflate reads what RFC 9110 calls deflate, a zlib stream, and what old
// clients send under that name, a bare one. A zlib header is a multiple of 31
// with method 8; a bare stream that begins so would be a stored block with
// padding no encoder writes.
func (d *inflater) deflate(body []byte) (io.Reader, error) {
	if len(body) >= 2 && body[0]&0x0f == 8 && (uint(body[0])<<8|uint(body[1]))%31 == 0 {
		if d.zlib == nil {
			z, err := zlib.NewReader(&d.src)
			if err != nil {
				return nil, err
			}
			d.zlib = z
			return z, nil
		}
		return d.zlib, d.zlib.(zlib.Resetter).Reset(&d.src, nil)
	}
	if d.raw == nil {
		d.raw = flate.NewReader(&d.src)
		return d.raw, nil
	}
	return d.raw, d.raw.(flate.Resetter).Reset(&d.src, nil)
}
