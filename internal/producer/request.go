package producer

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/kafka"
)

// produceTimeoutMs is how long the broker may wait for its replicas before it
// says so. Ten seconds more and the client gives the connection up.
const produceTimeoutMs = 10_000

// produce carries the first batch of each of some partitions to their leader.
// It goes over the connections of kgo, which knows how to dial, to authenticate
// and which version the broker speaks.
type produce struct {
	kmsg.ProduceRequest
	s       *shard
	leader  int32
	topics  int         // see view
	size    int         // bytes of its batches
	written atomic.Bool // the bytes were, perhaps, on the wire
	resp    *kmsg.ProduceResponse
	err     error
}

func newProduce(s *shard) *produce {
	r := &produce{s: s}
	r.Acks, r.TimeoutMillis = -1, produceTimeoutMs
	t := kmsg.NewProduceRequestTopic()
	t.Topic = s.p.cfg.Topic
	r.Topics = append(r.Topics, t)
	return r
}

func (r *produce) reset(leader int32, v *view) {
	r.leader, r.topics, r.size, r.resp, r.err = leader, v.topics, 0, nil, nil
	r.written.Store(false)
	t := &r.Topics[0]
	t.TopicID = v.id
	clear(t.Partitions)
	t.Partitions = t.Partitions[:0]
}

func (r *produce) add(partition int32, batch []byte) {
	t := &r.Topics[0]
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, batch
	t.Partitions = append(t.Partitions, p)
	r.size += len(batch)
}

func (r *produce) partitions() []kmsg.ProduceRequestTopicPartition { return r.Topics[0].Partitions }

// AppendTo implements kmsg.Request. kgo calls it right before it writes: a
// request whose AppendTo was never called never left.
func (r *produce) AppendTo(dst []byte) []byte {
	r.written.Store(true)
	return r.ProduceRequest.AppendTo(dst)
}

// do is one round trip. It is never cancelled: kgo would return while it still
// reads the batches. Only the end of the client ends it early.
func (r *produce) do(client *kgo.Client) {
	resp, err := client.Broker(int(r.leader)).Request(context.Background(), r)
	r.resp, _ = resp.(*kmsg.ProduceResponse)
	r.err = err
	r.s.answered(r)
}

// newIdentity fetches a producer id nobody has, however long that takes.
func newIdentity(ctx context.Context, client *kgo.Client, o kafka.Options) (identity, error) {
	for tries := 1; ; tries++ {
		req := kmsg.NewPtrInitProducerIDRequest()
		resp, err := req.RequestWith(ctx, client)
		if err == nil {
			if err = kerr.ErrorForCode(resp.ErrorCode); err == nil {
				return identity{resp.ProducerID, resp.ProducerEpoch}, nil
			}
			// The client counts those of the connection, and says what they are.
			o.Errors.Count("InitProducerID", err)
			o.Logger.Warn("the broker gives no producer id, without which nothing is sent", "err", err)
		}
		if ctx.Err() != nil || errors.Is(err, kgo.ErrClientClosed) {
			return nobody, err
		}
		select {
		case <-ctx.Done():
			return nobody, ctx.Err()
		case <-time.After(kafka.Backoff(tries)):
		}
	}
}
