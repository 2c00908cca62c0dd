package sink

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/codec"
)

// Headers of a dead letter, a kilobyte in all. Its key and value are the record's own,
// untouched unless they had to be cut; the whole of them is where it came from.
const (
	HeaderReason    = "edge-reason"    // the class, one of codec.Reason's names
	HeaderError     = "edge-error"     // the sentence
	HeaderTopic     = "edge-topic"     // where it came from
	HeaderPartition = "edge-partition" // …
	HeaderOffset    = "edge-offset"    // …; with the two above it identifies the letter
	HeaderTruncated = "edge-truncated" // the length of a value that had to be cut

	HeaderKeyTruncated = "edge-key-truncated" // the length of a key that had to be cut
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

// maxLetterBytes is the largest letter the sink tries to write, and keptLetterBytes what is
// left at first of the key and of the value of one that is too large: a record may come
// from a topic with a larger limit, and a poison message never stops the line.
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
		t.state.failed(fmt.Errorf("write %d dead letters: %w", len(f.dead), err))
		t.cfg.Logger.Error("dead letters not written, the sink waits", "count", len(f.dead), "err", err)
		if err := pause(ctx, try); err != nil {
			return errDisowned
		}
	}
	return nil
}

// produce is one try to write letters. A broker's limit is for a batch: what it finds too
// large goes again in halves, and a letter that is by itself is cut until it fits.
func (t *session) produce(ctx context.Context, letters []*kgo.Record) error {
	large, err := t.produceOnce(ctx, letters)
	switch half := len(large) / 2; {
	case err != nil || len(large) == 0:
		return err
	case half > 0:
		if err := t.produce(ctx, large[:half]); err != nil {
			return err
		}
		return t.produce(ctx, large[half:])
	case !shorten(large[0]):
		return kerr.MessageTooLarge
	}
	return t.produce(ctx, large)
}

// produceOnce returns the letters that the broker refused as too large, and the first other
// error. It is bounded so that a topic which is away is heard of.
func (t *session) produceOnce(ctx context.Context, letters []*kgo.Record) (large []*kgo.Record, err error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.InsertTimeout)
	defer cancel()
	for _, r := range letters {
		r.Context = nil // the client keeps that of the first try, which has ended
	}
	for _, result := range t.client.ProduceSync(ctx, letters...) {
		if errors.Is(result.Err, kerr.MessageTooLarge) {
			large = append(large, result.Record)
		} else {
			err = cmp.Or(err, result.Err)
		}
	}
	return large, err
}

// shorten cuts key and value of a letter to keptLetterBytes, or to half of the longer one
// if neither is longer than that, and reports whether there was anything to cut.
func shorten(r *kgo.Record) bool {
	longer := max(len(r.Key), len(r.Value))
	keep := keptLetterBytes
	if longer <= keep {
		keep = longer / 2
	}
	cut := func(b []byte, header string) []byte {
		if len(b) <= keep {
			return b
		}
		if !slices.ContainsFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == header }) {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: header, Value: []byte(strconv.Itoa(len(b)))})
		}
		return b[:keep]
	}
	r.Key, r.Value = cut(r.Key, HeaderKeyTruncated), cut(r.Value, HeaderTruncated)
	return longer > 0
}
