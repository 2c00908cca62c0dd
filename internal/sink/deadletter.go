package sink

import (
	"context"
	"fmt"
	"strconv"

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
)

// deadLetter is r on its way to the dead-letter topic. It keeps r's bytes.
func deadLetter(r *kgo.Record, cause *codec.Error) *kgo.Record {
	header := func(k, v string) kgo.RecordHeader { return kgo.RecordHeader{Key: k, Value: []byte(v)} }
	return &kgo.Record{
		Key:   r.Key,
		Value: r.Value,
		Headers: []kgo.RecordHeader{
			header(HeaderReason, cause.Reason.String()),
			header(HeaderError, cause.Error()),
			header(HeaderTopic, r.Topic),
			header(HeaderPartition, strconv.Itoa(int(r.Partition))),
			header(HeaderOffset, strconv.FormatInt(r.Offset, 10)),
		},
	}
}

// bury writes f's dead letters and returns when the broker has them all. It
// comes before the insert: an offset that is passed is stored or buried. A
// crash in between buries a letter twice, which its headers tell.
func (t *session) bury(ctx context.Context, f *flight) error {
	for try := 0; len(f.dead) > 0; try++ {
		for _, r := range f.dead {
			r.Topic = t.cfg.DeadLetterTopic
		}
		err := t.client.ProduceSync(ctx, f.dead...).FirstErr()
		if err == nil {
			for _, r := range f.dead {
				t.stats.deadLetter(string(r.Headers[0].Value))
			}
			t.cfg.Logger.Warn("dead letters", "count", len(f.dead), "batches", f.ranges(), "first_error", string(f.dead[0].Headers[1].Value))
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
