package sink

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/codec"
	"edge/internal/kafka"
)

const benchRows = 100_000

// benchRecords are n records as a producer makes them, of one partition: 20
// event names, 5 channels, 50,000 users, an hour around now.
func benchRecords(n int) []*kgo.Record {
	r := rand.New(rand.NewPCG(1, 2))
	now := time.Now().UnixMilli()
	records := make([]*kgo.Record, n)
	for i := range records {
		ev := codec.Event{
			Name: fmt.Appendf(nil, "event_%d", r.IntN(20)), Channel: []byte([]string{"web", "mobile", "api", "email", "push"}[r.IntN(5)]),
			CampaignID: []byte("summer_sale_2024"), UserID: fmt.Appendf(nil, "user_%d", r.IntN(50_000)), EventID: []byte(uuid.Must(uuid.NewV7()).String()),
			Timestamp: now - r.Int64N(3_600_000), ReceivedAt: now, Tags: [][]byte{[]byte("electronics"), []byte("featured")},
			Metadata: fmt.Appendf(nil, `{"product_id":"SKU-%d","page_url":"/products/laptop"}`, r.IntN(1000)),
		}
		records[i] = &kgo.Record{Value: codec.AppendRecord(nil, &ev), Headers: kafka.AssignedID, Timestamp: time.UnixMilli(now), Offset: int64(i)}
	}
	return records
}

// cpu is the processor time of this process so far.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic("BUG: " + err.Error())
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkTake is a record on its way into the columns: with an id that edge made,
// which no window is asked for, and with one of a client's that has never been seen, by
// a window of the default size that fills, and by one that forgets an id for each.
func BenchmarkTake(b *testing.B) {
	const size, ageMs = 4_000_000, 86_400_000
	f := func(name string, assigned, full bool) {
		b.Run(name, func(b *testing.B) {
			records := benchRecords(benchRows)
			fl := newFlight(newBlock())
			for _, r := range records { // the columns grow
				fl.take(r, nil)
				if !assigned {
					r.Headers = nil
				}
			}
			random := rand.New(rand.NewPCG(3, 4))
			w, offset := newWindow(size, ageMs), int64(0)
			if full {
				for ; offset < size; offset++ {
					w.seen(randomID(random), offset, fl.event.ReceivedAt)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				for _, r := range records {
					if r.Offset = offset; !assigned {
						id := randomID(random)
						copy(r.Value[bytes.Index(r.Value, []byte(`"event_id":"`))+12:], uuid.UUID(id).String())
					}
					offset++
				}
				if !full && offset > size {
					w = newWindow(size, ageMs)
				}
				fl.block.reset()
				b.StartTimer()
				for _, r := range records {
					fl.take(r, w)
				}
				if fl.block.rows() != benchRows {
					b.Fatalf("%d rows", fl.block.rows())
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchRows, "ns/row")
		})
	}
	f("assigned", true, false)
	f("filling", false, false)
	f("full", false, true)
}

func randomID(random *rand.Rand) (id [16]byte) {
	binary.BigEndian.PutUint64(id[:8], random.Uint64())
	binary.BigEndian.PutUint64(id[8:], random.Uint64())
	return id
}

// BenchmarkSink moves a million records from the log into events and the
// rollups; its limit is the same rows, ready in blocks, inserted by ch-go. The
// processor time of "sink" has that of the broker in it, which shares the
// process.
func BenchmarkSink(b *testing.B) {
	const blocks = 10
	records := benchRecords(benchRows)
	b.Run("limit", func(b *testing.B) {
		l := newLab(b, 1)
		f := newFlight(newBlock())
		for _, r := range records {
			f.take(r, nil)
		}
		f.block.seal(1, f.batches)
		conn, err := l.pool.Dial(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		cfg := l.config()
		cfg.ClickHouse = l.pool
		t := &session{Sink: New(cfg)}
		if t.source.settings, err = t.checkSettings(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.ResetTimer()
		began := cpu()
		for range b.N * blocks {
			in := f.block.input()
			if err := conn.Do(b.Context(), ch.Query{Body: in.Into("events"), Input: in, Settings: t.insertSettings(f)}); err != nil {
				b.Fatal(err)
			}
		}
		reportSink(b, began, blocks)
		if got := l.value("SELECT count() FROM events"); got != fmt.Sprint(b.N*blocks*benchRows) {
			b.Fatalf("%s rows", got)
		}
	})
	b.Run("sink", func(b *testing.B) {
		l := newLab(b, 1)
		b.ResetTimer()
		var spent time.Duration
		for range b.N {
			b.StopTimer()
			for range blocks {
				l.append(benchRecords(benchRows))
			}
			b.StartTimer()
			began := cpu()
			p := l.start(func(c *Config) {
				c.FlushInterval, c.FlushRows, c.FlushBytes = 100*time.Millisecond, benchRows, 64<<20
			})
			l.settled()
			spent += cpu() - began
			b.StopTimer()
			p.stop()
			b.StartTimer()
		}
		reportSink(b, cpu()-spent, blocks)
		if got := l.value("SELECT count() FROM events"); got != fmt.Sprint(b.N*blocks*benchRows) {
			b.Fatalf("%s rows", got)
		}
	})
}

func reportSink(b *testing.B, began time.Duration, blocks int) {
	rows := float64(b.N * blocks * benchRows)
	b.ReportMetric(rows/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64((cpu()-began).Nanoseconds())/rows, "cpu-ns/row")
}
