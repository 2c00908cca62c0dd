package rival

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"edge/internal/codec"
)

// partitions of the topic, and the version of a Produce request that names it.
const partitions, produceVersion = 4, 9

// sendReady is the limit of a producer: one write of a request that is ready, records
// packed and checksum made, and one read of its answer. Each core has a connection, and a
// request carries as many records as wait there at once: no producer can send fewer
// requests, since nobody publishes more before an answer.
func sendReady(b *testing.B, events int, addr string) {
	request := readyRequest(b, waiting*events)
	var left atomic.Int64
	left.Store(int64((b.N + waiting - 1) / waiting))
	n := int(left.Load()) * waiting * events
	conns := make([]net.Conn, runtime.GOMAXPROCS(0))
	for i := range conns {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		conns[i] = conn
	}
	timedProduce(b, func() int {
		var all errgroup.Group
		for _, conn := range conns {
			all.Go(func() error {
				var answer []byte
				for left.Add(-1) >= 0 {
					var err error
					if answer, err = roundTrip(conn, request, answer); err != nil {
						return err
					}
					if err = acknowledged(answer); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := all.Wait(); err != nil {
			b.Fatal(err)
		}
		return n
	})
}

// roundTrip returns the answer to request, in the memory of buf if that is enough.
func roundTrip(conn net.Conn, request, buf []byte) ([]byte, error) {
	if _, err := conn.Write(request); err != nil {
		return nil, err
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(size[:]))
	if n > cap(buf) {
		buf = make([]byte, n)
	}
	_, err := io.ReadFull(conn, buf[:n])
	return buf[:n], err
}

// acknowledged reads an answer behind its correlation id and its empty tags.
func acknowledged(answer []byte) error {
	var resp kmsg.ProduceResponse
	resp.SetVersion(produceVersion)
	if err := resp.ReadFrom(answer[5:]); err != nil {
		return err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != partitions {
		return errors.New("the answer is not about every partition")
	}
	for _, p := range resp.Topics[0].Partitions {
		if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
			return fmt.Errorf("partition %d: %w", p.Partition, err)
		}
	}
	return nil
}

// readyRequest is a Produce request, acks=all, of n records in a batch for each partition.
func readyRequest(b *testing.B, n int) []byte {
	batch := batchOf(b, codec.NewPool(codec.Rules{}), rand.New(rand.NewPCG(1, 2)), n)
	defer batch.Release()
	req := kmsg.NewProduceRequest()
	req.SetVersion(produceVersion)
	req.Acks, req.TimeoutMillis = -1, 10_000
	t := kmsg.NewProduceRequestTopic()
	t.Topic = topic
	for id := range partitions {
		p := kmsg.NewProduceRequestTopicPartition()
		p.Partition, p.Records = int32(id), readyBatch(b, batch, n*id/partitions, n*(id+1)/partitions)
		t.Partitions = append(t.Partitions, p)
	}
	req.Topics = append(req.Topics, t)
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("limit")).AppendRequest(nil, &req, 1)
}

// readyBatch is records [from,to) of batch as a record batch, packed by snappy as those
// of edge and of kgo are.
func readyBatch(b *testing.B, batch *codec.Batch, from, to int) []byte {
	var records []byte
	for i := from; i < to; i++ {
		r := kmsg.Record{OffsetDelta: int32(i - from), Value: batch.Record(i)}
		r.Length = int32(len(r.AppendTo(nil)) - 1) // but for itself, one byte while it is 0
		records = r.AppendTo(records)
	}
	snappy, err := kgo.DefaultCompressor(kgo.SnappyCompression())
	if err != nil {
		b.Fatal(err)
	}
	packed, kind := snappy.Compress(new(bytes.Buffer), records)
	now := time.Now().UnixMilli()
	out := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, Attributes: int16(kind), LastOffsetDelta: int32(to - from - 1),
		FirstTimestamp: now, MaxTimestamp: now, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: int32(to - from), Records: packed,
	}
	const counted, summed = 12, 21 // where what is counted begins, and what has a checksum
	out.Length = int32(len(out.AppendTo(nil)) - counted)
	out.CRC = int32(crc32.Checksum(out.AppendTo(nil)[summed:], crc32.MakeTable(crc32.Castagnoli)))
	return out.AppendTo(nil)
}
