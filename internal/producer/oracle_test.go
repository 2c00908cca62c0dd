package producer

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/s2"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/codec"
	"edge/internal/kafka"
)

// Whoever reads the topic cannot tell our records from those of kgo.
func TestRecordsAreThoseOfKgo(t *testing.T) {
	const other = "reference"
	simulateOn(t, []kfake.Opt{kfake.SeedTopics(partitions, other)}, nil, func(s *sim) {
		cl := reference(t, s.kafka(), kgo.DefaultProduceTopic(other))
		defer cl.Close()
		for i, n := range []int{1, 1, 3, 40, 250} {
			names := ids(fmt.Sprint("event-", i, strings.Repeat("x", i*9)), n)
			for k := range names {
				if k%3 == 1 {
					names[k] = "" // the server makes one
				}
			}
			b := s.batch(names...)
			for k := range b.Len() {
				r := &kgo.Record{Value: b.Record(k), Timestamp: time.Now(), Partition: kafka.HashPartition(b.Hash(k))}
				if b.Assigned(k) {
					r.Headers = kafka.AssignedID
				}
				cl.Produce(s.t.Context(), r, nil)
			}
			if err := cl.Flush(s.t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := s.p.Publish(b); err != nil {
				t.Fatal(err)
			}
			s.pass(time.Second)
		}
		got, want := s.read(topic), s.read(other)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("kgo's records (-) and ours (+) differ:\n%s", diff)
		}
		if len(got) != 295 {
			t.Errorf("%d records were compared; want 295", len(got))
		}
	})
}

// seen is all that a consumer sees of a record but its topic.
type seen struct {
	Value     string
	Key       []byte
	Headers   []kgo.RecordHeader
	Partition int32
	Timestamp int64
}

// read returns the records of a topic, each under its partition and value. Two
// shards fill a partition, so offsets are not compared.
func (s *sim) read(topic string) map[string]seen {
	s.t.Helper()
	out := map[string]seen{}
	for _, r := range s.logOf(topic) {
		out[fmt.Sprint(r.Partition, string(r.Value))] = seen{string(r.Value), r.Key, r.Headers, r.Partition, r.Timestamp.UnixMilli()}
	}
	return out
}

// Batches are, to the byte, those of kgo: of one record and many, on both sides
// of the widths of their numbers, packed and not.
func TestBatchesAreThoseOfKgo(t *testing.T) {
	f := func(records, size, stepMs int, compress kgo.CompressionCodec) {
		t.Helper()
		all := randomRecords(records, size, stepMs)
		want := encodedByKgo(t, all, compress)
		b := newBatch()
		defer b.free()
		for _, r := range all {
			b.append(r.Value, r.Timestamp.UnixMilli(), len(r.Headers) > 0)
		}
		b.pack(nil)
		be := binary.BigEndian
		b.mark(identity{int64(be.Uint64(want[producerAt:])), int16(be.Uint16(want[bumpAt:]))}, int32(be.Uint32(want[sequenceAt:])))
		if !bytes.Equal(b.buf, want) {
			t.Errorf("%d records of %d bytes: got\n%.4000x; want\n%.4000x", records, size, b.buf, want)
		}
		checkPrefixes(t, b.buf)
	}
	none, snappy := kgo.NoCompression(), kgo.SnappyCompression()
	f(1, 0, 0, none)
	f(1, 1, 0, none)
	f(1, 300, 0, none)
	f(3, 63, 1, none)
	f(3, 64, -1, none)
	f(12, 50, 63, none)
	f(12, 50, -64, none)
	f(70, 100, 1, snappy)
	f(70, 100, 10_000, snappy)
	f(1, 8192, 0, snappy)
	f(6, 2000, -10_000, snappy)
	f(200, 20, 0, snappy)
}

// A batch that is packed in chunks is one snappy block of all its records, also when
// they cannot be packed, wherever a chunk ends.
func TestChunksMakeOneBlock(t *testing.T) {
	f := func(records, size int, noise bool) {
		t.Helper()
		all := randomRecords(records, size, 1)
		chunked, whole := newBatch(), newBatch()
		defer chunked.free()
		defer whole.free()
		var scratch []byte
		chunks := 0
		for _, r := range all {
			if noise {
				_, _ = crand.Read(r.Value)
			}
			ms, assigned := r.Timestamp.UnixMilli(), len(r.Headers) > 0
			if a, b := chunked.append(r.Value, ms, assigned), whole.append(r.Value, ms, assigned); a != b {
				t.Fatalf("a record takes %d bytes and %d", a, b)
			}
			if chunked.full() {
				scratch = chunked.squeeze(scratch)
				chunks++
			}
		}
		chunked.pack(scratch)
		chunked.mark(identity{1, 2}, 3)
		if chunks == 0 {
			t.Fatalf("%d records of %d bytes are no chunk", records, size)
		}
		if codec := binary.BigEndian.Uint16(chunked.buf[codecAt:]); codec != snappy {
			t.Errorf("codec %d", codec)
		}
		got, err := s2.Decode(nil, chunked.buf[recordsAt:])
		if want := whole.buf[recordsAt:]; err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d records of %d bytes in %d chunks: %d bytes, %v; want %d", records, size, chunks, len(got), err, len(want))
		}
		if err := checkBatch(chunked.buf); err != nil {
			t.Error(err)
		}
	}
	for _, noise := range []bool{false, true} {
		f(1, chunkBytes, noise)
		f(1, maxBatchBytes-recordsAt-100, noise)
		f(2, chunkBytes-20, noise)
		f(chunkBytes/300+1, 300, noise)
		f(3000, 300, noise)
		f(40000, 1, noise)
		f(7, 100_000, noise)
	}
}

// A batch filled to its bound with what cannot be packed is one that brokers take.
func TestFullBatchOfNoise(t *testing.T) {
	for size := 61_000; size < 62_000; size += 50 {
		b := newBatch()
		var scratch []byte
		add := func(n int) {
			noise := make([]byte, n)
			_, _ = crand.Read(noise)
			b.append(noise, 1000, true)
			if b.full() {
				scratch = b.squeeze(scratch)
			}
		}
		for recordsAt+b.size+recordSize(size) <= maxBatchBytes {
			add(size)
		}
		if left := maxBatchBytes - recordsAt - b.size - recordSize(0); left > 0 {
			add(left)
		}
		b.pack(scratch)
		b.mark(identity{1, 2}, 3)
		if err := checkBatch(b.buf); err != nil {
			t.Errorf("records of %d bytes: %v", size, err)
		}
		b.free()
	}
}

// The bytes of one batch, should both encoders change at once.
func TestBatchIsGolden(t *testing.T) {
	b := newBatch()
	defer b.free()
	b.append([]byte(`{"a":1}`), 946684800000, false)
	b.append([]byte(`{"b":2}`), 946684800005, true)
	b.pack(nil)
	b.mark(identity{0x0102030405060708, 9}, 0x0A0B0C0D)
	const want = "0000000000000000" + "0000005e" + "ffffffff" + "02" + "41c95376" + "0000" + "00000001" +
		"000000dc6acfac00" + "000000dc6acfac05" + "0102030405060708" + "0009" + "0a0b0c0d" + "00000002" +
		"1a" + "00" + "00" + "00" + "01" + "0e" + "7b2261223a317d" + "00" +
		"3c" + "00" + "0a" + "02" + "01" + "0e" + "7b2262223a327d" + "02" + "0e656467652d6964" + "1061737369676e6564"
	if got := fmt.Sprintf("%x", b.buf); got != want {
		t.Errorf("got\n%s; want\n%s", got, want)
	}
}

func randomRecords(n, size, stepMs int) []*kgo.Record {
	random := rand.New(rand.NewPCG(uint64(n), uint64(size)))
	out := make([]*kgo.Record, n)
	for i := range out {
		value := make([]byte, size)
		for k := range value {
			value[k] = "abcd"[random.IntN(4)]
		}
		out[i] = &kgo.Record{Value: value, Timestamp: time.UnixMilli(946684800000 + int64(i*stepMs))}
		if random.IntN(2) == 0 {
			out[i].Headers = kafka.AssignedID
		}
	}
	return out
}

// encodedByKgo returns the batch that kgo sends for the records.
func encodedByKgo(t *testing.T, records []*kgo.Record, compress kgo.CompressionCodec) []byte {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, topic))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	var sent []byte
	cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		sent = bytes.Clone(r.(*kmsg.ProduceRequest).Topics[0].Partitions[0].Records)
		return nil, nil, false
	})
	cl, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.DefaultProduceTopic(topic),
		kgo.ProducerBatchCompression(compress), kgo.ManualFlushing())
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	// The first record teaches kgo the topic: later ones go into one batch.
	for _, batch := range [][]*kgo.Record{{kgo.StringRecord("first")}, records} {
		for _, r := range batch {
			cl.Produce(context.Background(), r, nil)
		}
		if err := cl.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return sent
}

// checkPrefixes checks that raw is a whole batch and no start of it is.
func checkPrefixes(t *testing.T, raw []byte) {
	t.Helper()
	if err := checkBatch(raw); err != nil {
		t.Errorf("the whole batch: %v", err)
	}
	for n := range len(raw) {
		if checkBatch(raw[:n]) == nil {
			t.Errorf("%d of %d bytes are a batch", n, len(raw))
		}
	}
	for i := crcAt; i < len(raw); i++ {
		broken := bytes.Clone(raw)
		broken[i]++
		if checkBatch(broken) == nil {
			t.Errorf("byte %d changed is a batch", i)
		}
	}
}

// checkBatch is what a broker looks at before it appends, and a consumer after that.
func checkBatch(raw []byte) error {
	var b kmsg.RecordBatch
	if err := b.ReadFrom(raw); err != nil {
		return err
	}
	switch {
	case int(b.Length) != len(raw)-epochAt:
		return fmt.Errorf("length %d of %d bytes", b.Length, len(raw))
	case b.Magic != 2 || b.FirstOffset != 0:
		return fmt.Errorf("magic %d, offset %d", b.Magic, b.FirstOffset)
	case b.LastOffsetDelta != b.NumRecords-1:
		return fmt.Errorf("%d records, the last is %d", b.NumRecords, b.LastOffsetDelta)
	case uint32(b.CRC) != crc32.Checksum(raw[codecAt:], castagnoli):
		return fmt.Errorf("checksum %x", b.CRC)
	case len(raw) > 1<<20+12:
		return fmt.Errorf("%d bytes, more than brokers take", len(raw))
	}
	records := b.Records
	if b.Attributes == snappy {
		var err error
		if records, err = s2.Decode(nil, records); err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
	}
	for range b.NumRecords {
		length, n := binary.Varint(records)
		if n <= 0 || length < 0 || int(length) > len(records)-n {
			return fmt.Errorf("a record of %d bytes in %d", length, len(records))
		}
		records = records[n+int(length):]
	}
	if len(records) > 0 {
		return fmt.Errorf("%d bytes behind the last record", len(records))
	}
	return nil
}

func TestVarintLen(t *testing.T) {
	for shift := range 64 {
		for _, v := range []int64{0, 1<<shift - 1, 1 << shift, -(1 << shift), -(1 << shift) - 1} {
			if got, want := varintLen(v), len(binary.AppendVarint(nil, v)); got != want {
				t.Errorf("%d: got %d bytes; want %d", v, got, want)
			}
		}
	}
}

// A record that no batch could hold is refused like the broker would, and keeps
// nobody else's.
func TestRecordLargerThanABatch(t *testing.T) {
	pool := codec.NewPool(codec.Rules{MaxEventBytes: 4 << 20})
	event := func(id string, n int) string {
		return fmt.Sprintf(`{"event_name":"click","user_id":"u","timestamp":946684800000,"event_id":%q,"metadata":{"m":%q}}`, id, strings.Repeat("m", n))
	}
	simulate(t, func(c *Config) { c.MaxInflightBytes = 8 << 20 }, func(s *sim) {
		f := func(want bool, sizes ...int) {
			t.Helper()
			b := pool.Get()
			var body []string
			for i, n := range sizes {
				body = append(body, event(fmt.Sprint("id-", n, "-", i), n))
			}
			if err := b.DecodeArray([]byte("["+strings.Join(body, ",")+"]"), time.Now()); err != nil || b.Len() != len(sizes) {
				t.Fatalf("%v, %d records", err, b.Len())
			}
			before := len(s.log())
			err := s.p.Publish(b)
			if refused := err != nil && strings.Contains(err.Error(), "MESSAGE_TOO_LARGE"); refused == want {
				t.Errorf("records of %v bytes: %v", sizes, err)
			}
			kept := 0
			for _, n := range sizes {
				if n < 1<<20 {
					kept++
				}
			}
			if n := len(s.log()) - before; n != kept {
				t.Errorf("records of %v bytes: %d are in the log; want %d", sizes, n, kept)
			}
		}
		f(true, 1<<20-1000)
		f(false, 1<<20)
		f(false, 100, 1<<20, 100)
		f(false, 1<<20, 2<<20)
		f(true, 900_000, 900_000, 900_000, 10)
	})
}
