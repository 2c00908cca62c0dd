package server

import (
	"bytes"
	"encoding/binary"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// deflaters encode by the name of a Content-Encoding; "raw" is the bare stream
// that some clients call deflate.
var deflaters = map[string]func(io.Writer) io.WriteCloser{
	"gzip":    func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
	"deflate": func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) },
	"raw": func(w io.Writer) io.WriteCloser {
		fw, _ := flate.NewWriter(w, 6)
		return fw
	},
	"br": func(w io.Writer) io.WriteCloser { return brotli.NewWriterLevel(w, 5) },
	"zstd": func(w io.Writer) io.WriteCloser {
		zw, _ := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
		return zw
	},
}

// deflate returns text in one encoding and the name to send it under.
func deflate(t *testing.T, enc, text string) (body []byte, name string) {
	t.Helper()
	var buf bytes.Buffer
	w := deflaters[enc](&buf)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if enc == "raw" {
		enc = "deflate"
	}
	return buf.Bytes(), enc
}

func TestEncodings(t *testing.T) {
	e := start(t, nil)
	f := func(enc string) {
		t.Helper()
		body, name := deflate(t, enc, good)
		e.do("POST", "/events", header("Content-Encoding", name), body).check(t, 202, "accepted")
		events := "[" + strings.Repeat(good+",", 999) + good + "]"
		body, name = deflate(t, enc, events)
		e.do("POST", "/events/bulk", header("Content-Encoding", strings.ToUpper(name)), body).check(t, 202, `"accepted":1000`)

		// Not whole, not alone, not intact.
		for cut := range len(body) {
			if cut > 40 && cut < len(body)-40 {
				continue
			}
			e.do("POST", "/events/bulk", header("Content-Encoding", name), body[:cut]).check(t, 400, "")
		}
		for _, garbage := range []string{"x", "\x00\x00", "garbage behind the end", strings.Repeat("y", 100_000)} {
			e.do("POST", "/events/bulk", header("Content-Encoding", name), append(bytes.Clone(body), garbage...)).check(t, 400, "not valid in its Content-Encoding")
		}
		e.do("POST", "/events", header("Content-Encoding", name), []byte(good)).check(t, 400, "not valid in its Content-Encoding")
	}
	for enc := range deflaters {
		t.Run(enc, func(t *testing.T) { f(enc) })
	}
}

// TestCorruptStream flips every bit of small streams: the answer is 400 or, where
// the format has no checksum to notice it, a verdict on what came out.
func TestCorruptStream(t *testing.T) {
	e := start(t, nil)
	c := e.dial()
	for enc := range deflaters {
		body, name := deflate(t, enc, good)
		for i := range len(body) * 8 {
			body[i/8] ^= 1 << (i % 8)
			c.send("POST /events HTTP/1.1\r\nHost: a\r\nContent-Encoding: " + name + "\r\nContent-Length: " + itoa(len(body)) + "\r\n\r\n" + string(body))
			body[i/8] ^= 1 << (i % 8)
			if a := c.answer(); a.StatusCode != 400 && a.StatusCode != 202 && a.StatusCode != 413 {
				t.Errorf("%s bit %d: got %d %s", enc, i, a.StatusCode, a.body)
			}
		}
	}
	if n := e.stats.Panics.Load(); n != 0 {
		t.Errorf("got %d panics; want 0", n)
	}
}

func TestUnsupportedEncoding(t *testing.T) {
	e := start(t, nil)
	f := func(value, want string) {
		t.Helper()
		e.do("POST", "/events", header("Content-Encoding", value), []byte(good)).check(t, 415, want)
	}
	f("lzma", "content encoding lzma is not supported; use gzip, zstd, br or deflate")
	f("gzip, gzip", "only one Content-Encoding")
	f("gzip,", "only one Content-Encoding")
	f("gzip\r\nContent-Encoding: br", "only one Content-Encoding")
	f(strings.Repeat("z", 500), strings.Repeat("z", 100)+" is")
	e.do("POST", "/events", header("Content-Encoding", "identity"), []byte(good)).check(t, 202, "accepted")
}

// bomb is 300 MiB of spaces, some 300 KB of gzip, or 8 MiB in the encodings
// that cannot be built from repeated pieces and take longer to make.
func bomb(t *testing.T, enc string) []byte {
	t.Helper()
	if enc == "gzip" || enc == "zstd" {
		piece, _ := deflate(t, enc, strings.Repeat(" ", 1<<20))
		return bytes.Repeat(piece, 300)
	}
	body, _ := deflate(t, enc, strings.Repeat(" ", 8<<20))
	return body
}

// TestDecompressionBomb holds that a body is cut off at the limit while it
// inflates: many bombs at once cost what the budget says, not what they hold.
func TestDecompressionBomb(t *testing.T) {
	const limit = 1 << 20
	e := start(t, func(c *Config) { c.MaxInflatedBytes, c.MaxInflightBytes = limit, 64<<20 })
	for enc := range deflaters {
		body := bomb(t, enc)
		name := enc
		if enc == "raw" {
			name = "deflate"
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				e.do("POST", "/events/bulk", header("Content-Encoding", name), body).
					check(t, 413, "the body after inflation is larger than the limit of 1048576 bytes")
			})
		}
		wg.Wait()
		runtime.ReadMemStats(&after)
		// Four gzip bombs hold 1.2 GiB. All allocation, garbage included: blocks
		// that double up to 2 MiB for each, and two decoders with their history.
		grown := after.TotalAlloc - before.TotalAlloc
		t.Logf("%s: %d bytes of bomb, %d MiB allocated for four", enc, len(body), grown>>20)
		if most := uint64(64 * limit); grown > most {
			t.Errorf("%s: %d bytes allocated; want at most %d", enc, grown, most)
		}
	}
	if got := e.rejections()["inflated_too_large"]; got != uint64(4*len(deflaters)) {
		t.Errorf("got %d refused; want %d", got, 4*len(deflaters))
	}
}

// TestZstdWindow holds that a frame cannot make the decoder reserve more history
// than the limit, whatever its header asks for.
func TestZstdWindow(t *testing.T) {
	e := start(t, nil)
	f := func(windowLog, status int, want string) {
		t.Helper()
		// Magic, no flags, window descriptor, one last raw block.
		frame := binary.LittleEndian.AppendUint32(nil, 0xFD2FB528)
		frame = append(frame, 0, byte(windowLog-10)<<3)
		head := uint32(len(good))<<3 | 1
		frame = append(frame, byte(head), byte(head>>8), byte(head>>16))
		frame = append(frame, good...)
		e.do("POST", "/events", header("Content-Encoding", "zstd"), frame).check(t, status, want)
	}
	f(17, 202, "accepted")
	f(23, 202, "accepted")
	f(24, 413, "zstd window")
	f(31, 413, "zstd window")
	f(41, 413, "zstd window")
}

// TestInflateToTheByte holds the limit exactly.
func TestInflateToTheByte(t *testing.T) {
	f := func(enc encoding, name string, size int) {
		t.Helper()
		text := strings.Repeat("a", size)
		body, _ := deflate(t, name, text)
		m := newMemory(1<<20, size)
		blk, err := newInflaters().inflate(m, enc, body, size)
		if err != nil || string(blk.b) != text {
			t.Fatalf("%s of %d bytes at that limit: %v", name, size, err)
		}
		m.put(blk)
		if _, err = newInflaters().inflate(m, enc, body, size-1); err == nil || !strings.Contains(err.Error(), itoa(size-1)) {
			t.Errorf("%s of %d bytes, one over the limit: got %v", name, size, err)
		}
		if used := m.used.Load(); used != 0 {
			t.Errorf("%s: %d bytes still charged", name, used)
		}
	}
	for _, size := range []int{2, 100, prefetch - 1, prefetch, prefetch + 1, firstRead, firstRead + 1, 100_000} {
		f(gzipped, "gzip", size)
		f(deflated, "deflate", size)
		f(deflated, "raw", size)
		f(brotlied, "br", size)
		f(zstded, "zstd", size)
	}
}

func TestInflateOverBudget(t *testing.T) {
	body, _ := deflate(t, "gzip", strings.Repeat("a", 200_000))
	m := newMemory(100_000, 1<<20)
	if _, err := newInflaters().inflate(m, gzipped, body, 1<<20); err != errMemory {
		t.Errorf("got %v; want errMemory", err)
	}
	if used := m.used.Load(); used != 0 {
		t.Errorf("%d bytes still charged", used)
	}
}
