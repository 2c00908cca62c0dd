package embedded

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// request returns a frame with the given announced length, whatever follows.
func request(length uint32, key int16, body ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, length)
	b = binary.BigEndian.AppendUint16(b, uint16(key))
	b = binary.BigEndian.AppendUint16(b, 0)          // version
	b = binary.BigEndian.AppendUint32(b, 1)          // correlation id
	b = binary.BigEndian.AppendUint16(b, ^uint16(0)) // no client id
	return append(b, body...)
}

func TestHostilePacketsCloseOneConnection(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	b.Open()
	cl := newClient(t, b)
	f := func(name string, packet []byte) {
		t.Helper()
		outside, err := net.Dial("tcp", b.Seeds()[0])
		if err != nil {
			t.Fatal(err)
		}
		inside, err := b.Dial(testContext(t), "", "")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []net.Conn{inside, outside} {
			c.SetDeadline(time.Now().Add(10 * time.Second))
			c.Write(packet)
			n, err := c.Read(make([]byte, 1))
			if n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: read %d, %v; want a closed connection", name, n, err)
			}
			c.Close()
		}
		produce(t, cl, 0, 1, 1) // the broker lives
	}
	f("unknown key", request(10, 9999))
	f("negative key", request(10, -1))
	f("key between the known ones", request(10, 58))
	f("delete records", request(10, int16(kmsg.DeleteRecords)))
	f("delete topics", request(10, int16(kmsg.DeleteTopics)))
	f("4 GiB", request(^uint32(0), int16(kmsg.Produce)))
	f("101 MiB", request(101<<20, int16(kmsg.Produce)))
	f("empty frame", request(0, int16(kmsg.Produce)))
	f("no room for a header", request(9, int16(kmsg.Produce)))
	f("an HTTP request", []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	f("a TLS hello", []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
	if got := b.door.refusedKey.Load() + b.door.refusedLength.Load(); got != 22 {
		t.Errorf("counted %d refusals; want 22", got)
	}
}

// bytesConn is a connection that delivers what r delivers.
type bytesConn struct {
	net.Conn
	r io.Reader
}

func (c bytesConn) Read(p []byte) (int, error) { return c.r.Read(p) }
func (c bytesConn) RemoteAddr() net.Addr       { return insideAddr{} }
func (c bytesConn) Close() error               { return nil }

func newGate(r io.Reader) (*gate, *string) {
	c, reason := bytesConn{r: r}, new(string)
	return &gate{Conn: c, r: bufio.NewReaderSize(c, 16), maxFrame: 1000,
		refuse: func(_ net.Addr, why string, _ int16, _ uint32) { *reason = why }}, reason
}

func TestGatePassesFramesUnchanged(t *testing.T) {
	var in []byte
	for i := range 40 {
		body := bytes.Repeat([]byte{byte(i)}, i*7)
		in = append(in, request(uint32(10+len(body)), int16(kmsg.Fetch), body...)...)
	}
	f := func(name string, r io.Reader) {
		t.Helper()
		g, _ := newGate(r)
		got, err := io.ReadAll(g)
		if err != nil || !bytes.Equal(got, in) {
			t.Errorf("%s: got %d bytes, %v; want the %d sent", name, len(got), err, len(in))
		}
	}
	f("whole", bytes.NewReader(in))
	f("byte by byte", iotest.OneByteReader(bytes.NewReader(in)))
	f("halves", iotest.HalfReader(bytes.NewReader(in)))
}

func TestGateStopsAtTheBadFrame(t *testing.T) {
	good := request(13, int16(kmsg.Fetch), 1, 2, 3)
	g, reason := newGate(bytes.NewReader(append(append([]byte{}, good...), request(10, 500)...)))
	got, err := io.ReadAll(g)
	if !errors.Is(err, errRefused) || !bytes.Equal(got, good) || *reason != "key" {
		t.Errorf("got %d bytes, %v, reason %q; want the good frame, a refusal, key", len(got), err, *reason)
	}
}

func TestGateAllocatesNothing(t *testing.T) {
	frame := request(13, int16(kmsg.Fetch), 1, 2, 3)
	r := bytes.NewReader(nil)
	g, _ := newGate(r)
	buf := make([]byte, len(frame))
	if n := testing.AllocsPerRun(100, func() {
		r.Reset(frame)
		if _, err := io.ReadFull(g, buf); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per frame; want 0", n)
	}
}

func TestTopicsTurnedAway(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir()})
	day := "86400000"
	f := func(name string, partitions int32, configs map[string]*string, want error) {
		t.Helper()
		res, err := b.admin.CreateTopics(testContext(t), partitions, 1, configs, name)
		if err != nil {
			t.Fatal(err)
		}
		if err := res[name].Err; !errors.Is(err, want) {
			t.Errorf("%s with %d partitions: got %v; want %v", name, partitions, err, want)
		}
	}
	f("two-billion", 1<<31-1, nil, kerr.PolicyViolation)
	f("one-too-many", MaxPartitions+1, nil, kerr.PolicyViolation)
	f("with-retention", 1, map[string]*string{"retention.ms": &day}, kerr.PolicyViolation)
	f("fine", 3, nil, nil)
	if n := len(b.Partitions("fine")); n != 3 {
		t.Errorf("%d partitions; want 3", n)
	}
}

func TestBrokerAnnouncesWhatTheGateLetsIn(t *testing.T) {
	b := start(t, BrokerConfig{Dir: t.TempDir()})
	resp, err := kmsg.NewPtrApiVersionsRequest().RequestWith(testContext(t), newClient(t, b))
	if err != nil {
		t.Fatal(err)
	}
	var announced []kmsg.Key
	for _, k := range resp.ApiKeys {
		announced = append(announced, kmsg.Key(k.ApiKey))
	}
	want := slices.Sorted(slices.Values(keys))
	slices.Sort(announced)
	if diff := cmp.Diff(want, announced); diff != "" {
		t.Errorf("announced keys (-want +got):\n%s", diff)
	}
}

// FuzzGate feeds any bytes in any pieces: what comes out is a prefix of what
// went in, cut at a frame border, and every frame in it was allowed.
func FuzzGate(f *testing.F) {
	f.Add(request(13, int16(kmsg.Fetch), 1, 2, 3), uint8(1))
	f.Add(append(request(10, int16(kmsg.Produce)), request(10, 500)...), uint8(7))
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		g, _ := newGate(bytes.NewReader(in))
		var out []byte
		buf := make([]byte, int(piece)+1)
		var err error
		for err == nil {
			var n int
			n, err = g.Read(buf)
			out = append(out, buf[:n]...)
		}
		if !bytes.HasPrefix(in, out) {
			t.Fatalf("%x came out of %x", out, in)
		}
		for left := out; len(left) >= 8; {
			n, key := binary.BigEndian.Uint32(left), binary.BigEndian.Uint16(left[4:])
			if n < minRequest || n > 1000 || !slices.Contains(keys, kmsg.Key(key)) {
				t.Fatalf("a frame of %d bytes with key %d came through", n, key)
			}
			left = left[min(len(left), 4+int(n)):]
		}
	})
}
