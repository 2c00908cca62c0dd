package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/codec"
)

// Headers of a dead letter. Its value is the record's own value, untouched.
const (
	HeaderReason    = "edge-reason"    // the class, one of codec.Reason's names
	HeaderError     = "edge-error"     // the sentence
	HeaderTopic     = "edge-topic"     // where it came from
	HeaderPartition = "edge-partition" // …
	HeaderOffset    = "edge-offset"    // …; with the two above it identifies the letter
	HeaderTruncated = "edge-truncated" // the length of a value that had to be cut; the whole of it is where it came from
)

// deadLetter is r on its way to the dead-letter topic, where r itself is recycled.
func deadLetter(r *kgo.Record, cause *codec.Error) *kgo.Record {
	header := func(k, v string) kgo.RecordHeader { return kgo.RecordHeader{Key: k, Value: []byte(v)} }
	return &kgo.Record{
		Key:   bytes.Clone(r.Key),
		Value: bytes.Clone(r.Value),
		Headers: []kgo.RecordHeader{
			header(HeaderReason, cause.Reason.String()),
			header(HeaderError, cause.Error()),
			header(HeaderTopic, r.Topic),
			header(HeaderPartition, strconv.Itoa(int(r.Partition))),
			header(HeaderOffset, strconv.FormatInt(r.Offset, 10)),
		},
	}
}

// maxLetterBytes is the largest letter the sink tries to write, and
// keptLetterBytes what is left of the value of one that the broker finds too
// large: a record may come from a topic with a larger limit, and a poison
// message never stops the line.
const (
	maxLetterBytes  = 16 << 20
	keptLetterBytes = 64 << 10
)

// bury writes f's dead letters and returns when the broker has them all. It
// comes before the insert: an offset that is passed is stored or buried. A
// crash in between buries a letter twice, which its headers tell.
func (t *session) bury(ctx context.Context, f *flight) error {
	for _, r := range f.dead {
		r.Topic = t.cfg.DeadLetterTopic
	}
	for try := 0; len(f.dead) > 0; try++ {
		err := t.produce(ctx, f.dead)
		if err == nil {
			for _, r := range f.dead {
				t.stats.deadLetter(string(r.Headers[0].Value))
			}
			t.cfg.Logger.Warn("dead letters", "count", len(f.dead), "batches", f.ranges(), "err", string(f.dead[0].Headers[1].Value))
			f.dead = nil
			return nil
		}
		if errors.Is(err, kerr.MessageTooLarge) && shorten(f.dead) {
			continue
		}
		t.state.failed(fmt.Errorf("write %d dead letters: %w", len(f.dead), err))
		t.cfg.Logger.Error("dead letters not written, the sink waits", "count", len(f.dead), "err", err)
		if err := pause(ctx, try); err != nil {
			return errDisowned
		}
	}
	return nil
}

// produce is one try, bounded so that a topic which is away is heard of.
func (t *session) produce(ctx context.Context, letters []*kgo.Record) error {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.InsertTimeout)
	defer cancel()
	for _, r := range letters {
		r.Context = nil // the client keeps that of the first try, which has ended
	}
	return t.client.ProduceSync(ctx, letters...).FirstErr()
}

// shorten cuts the values that may be too large and reports whether there were
// any. The headers still say where the whole record is.
func shorten(letters []*kgo.Record) (any bool) {
	for _, r := range letters {
		if len(r.Value) > keptLetterBytes {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: HeaderTruncated, Value: []byte(strconv.Itoa(len(r.Value)))})
			r.Value = r.Value[:keptLetterBytes]
			any = true
		}
	}
	return any
}
