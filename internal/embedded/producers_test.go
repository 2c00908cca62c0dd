package embedded

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"os"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestBatchSentAgainAfterAKill: a broker that is killed between writing a batch and
// answering knows it again, whether or not it once was shut down properly.
func TestBatchSentAgainAfterAKill(t *testing.T) {
	f := func(name string, between func(b *Broker) *Broker) {
		t.Run(name, func(t *testing.T) {
			b := start(t, BrokerConfig{Dir: t.TempDir()})
			cl := newClient(t, b)
			produce(t, cl, 0, 3, 3)
			b = between(b)
			last := lastBatch(t, b)
			dir := crash(t, b)
			b = start(t, BrokerConfig{Dir: dir})
			end := b.Partitions(topic)[0].HighWatermark

			cl = newClient(t, b)
			if code, offset := produceRaw(t, cl, last); code != 0 || offset != end-1 {
				t.Errorf("the last batch again: %v at offset %d; want it known at %d", kerr.ErrorForCode(code), offset, end-1)
			}
			if got := b.Partitions(topic)[0].HighWatermark; got != end {
				t.Errorf("high watermark %d; want %d", got, end)
			}
			next := sequenced(last, 1)
			if code, offset := produceRaw(t, cl, next); code != 0 || offset != end {
				t.Errorf("the next batch: %v at offset %d; want %d", kerr.ErrorForCode(code), offset, end)
			}
			if code, _ := produceRaw(t, cl, sequenced(last, 3)); kerr.ErrorForCode(code) != kerr.OutOfOrderSequenceNumber {
				t.Errorf("a batch too far: %v", kerr.ErrorForCode(code))
			}
		})
	}
	f("the first kill", func(b *Broker) *Broker { return b })
	f("a shutdown before", func(b *Broker) *Broker {
		dir := b.cfg.Dir
		stop(t, b)
		b = start(t, BrokerConfig{Dir: dir})
		produce(t, newClient(t, b), 3, 2, 2)
		return b
	})
}

// lastBatch returns the last record batch in the log, as it was sent: the broker
// filled in the offset and the leader's epoch.
func lastBatch(t *testing.T, b *Broker) []byte {
	t.Helper()
	all, err := os.ReadFile(segments(t, b.dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	for {
		n := batchLengthFrom + int(binary.BigEndian.Uint32(all[8:]))
		if n == len(all) {
			binary.BigEndian.PutUint64(all, 0)
			binary.BigEndian.PutUint32(all[12:], math.MaxUint32)
			return all
		}
		all = all[n:]
	}
}

// sequenced returns batch, of one record, as the one that comes n after it.
func sequenced(batch []byte, n int32) []byte {
	next := append([]byte{}, batch...)
	binary.BigEndian.PutUint32(next[53:], binary.BigEndian.Uint32(next[53:])+uint32(n))
	binary.BigEndian.PutUint32(next[17:], crc32.Checksum(next[batchCRCFrom:], castagnoli))
	return next
}

func produceRaw(t *testing.T, cl *kgo.Client, batch []byte) (code int16, offset int64) {
	t.Helper()
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 1000
	req.Topics = []kmsg.ProduceRequestTopic{{Topic: topic, TopicID: topicID(t, cl), Partitions: []kmsg.ProduceRequestTopicPartition{{Records: batch}}}}
	resp, err := req.RequestWith(testContext(t), cl)
	if err != nil {
		t.Fatal(err)
	}
	p := resp.Topics[0].Partitions[0]
	return p.ErrorCode, p.BaseOffset
}

func topicID(t *testing.T, cl *kgo.Client) [16]byte {
	t.Helper()
	req := kmsg.NewPtrMetadataRequest()
	name := topic
	req.Topics = []kmsg.MetadataRequestTopic{{Topic: &name}}
	resp, err := req.RequestWith(testContext(t), cl)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Topics[0].TopicID
}
