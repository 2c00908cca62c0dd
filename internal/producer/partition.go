package producer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// A batch that waits takes records for this long. It bounds by how much its
	// last record is dropped early when the first has waited too long.
	gatherFor = time.Second
	// Numbers are 31 bits and brokers differ in how they wrap. A partition that
	// has come half way takes a new identity and starts at 0.
	lastSequence = 1 << 30
	// A broker that disowns one new identity after the other has another trouble
	// than having forgotten us.
	maxRenewals = 3
	// Brokers forget a producer a day after the time in its last batch, unless told
	// otherwise (producer.id.expiration.ms), and take whatever comes next for new. Half
	// of that leaves the clocks room to differ.
	remembered = 12 * time.Hour
	// A batch that waited for longer and is not in the log gets the time when it is sent.
	fresh = time.Hour
)

// partition is what one shard has for one partition of the topic: batches in
// order, of which only the first is ever on its way. So the order is kept and
// the numbers stay without gap whatever fails, and while one batch travels the
// next gathers what comes.
type partition struct {
	index  int32
	queue  []*batch
	flight *produce // carries queue[0]; nil: it waits

	who      identity // nobody: must be fetched before anything is sent
	sequence int32    // of the next new batch
	acked    int64    // offset behind the last acknowledged record

	tries   int
	tried   int32 // the leader of the last try
	retryAt time.Time
}

// last returns the batch that takes another record of n bytes, waiting since
// then. A batch takes records for as long as gather.
func (pt *partition) last(n int, since time.Time, gather time.Duration) *batch {
	if k := len(pt.queue) - 1; k >= 0 {
		b := pt.queue[k]
		// One that was packed is closed, also when it has lost its stamp.
		open := b.stamp == nobody && !b.packed && recordsAt+b.size+n <= maxBatchBytes && since.Sub(b.since) < gather
		if open {
			return b
		}
	}
	b := newBatch()
	b.since = since
	pt.queue = append(pt.queue, b)
	return b
}

// take takes batch i out.
func (pt *partition) take(i int) *batch {
	b := pt.queue[i]
	pt.queue = slices.Delete(pt.queue, i, i+1)
	return b
}

// ready returns the bytes of the first batch as the broker is to get them. A
// batch that may be in the log is sent again as it was.
func (pt *partition) ready(now time.Time, scratch *[]byte) []byte {
	b := pt.queue[0]
	if !b.packed {
		*scratch = b.pack(*scratch)
	}
	if late := !b.unsure && b.renew(now); late || b.stamp == nobody {
		b.mark(pt.who, pt.sequence)
	}
	return b.buf
}

// What an answer, or none, means for the batch it is about.
type fate int

const (
	done  fate = iota // it is in the log
	again             // send the same bytes once more
	anew              // it is not in the log; send it under a new identity
	lost              // fail it
)

// judge reads the broker's answer to b.
func (pt *partition) judge(b *batch, r *kmsg.ProduceResponseTopicPartition) (fate, error) {
	err := kerr.ErrorForCode(r.ErrorCode)
	switch {
	case err == nil:
		pt.acked = r.BaseOffset + int64(b.records)
		return done, nil
	case errors.Is(err, kerr.DuplicateSequenceNumber):
		// Appended by an attempt so long ago that the broker has forgotten where.
		return done, nil
	case errors.Is(err, kerr.RequestTimedOut), errors.Is(err, kerr.NotEnoughReplicasAfterAppend),
		// Also of a leader that has appended the batch and loses its office, or its
		// disk, before the others have it.
		errors.Is(err, kerr.NotLeaderForPartition), errors.Is(err, kerr.KafkaStorageError):
		b.unsure = true
		return again, err
	case disowned(err):
		// The broker does not know this identity as we do: its log was cut, or
		// retention took all that we wrote. This attempt is not in the log. An
		// earlier one may be, and the broker that has forgotten us could not
		// tell: sent anew, the records could be there twice.
		if b.unsure || b.renewed == maxRenewals {
			return lost, err
		}
		return anew, err
	case kerr.IsRetriable(err) && !errors.Is(err, kerr.CorruptMessage):
		return again, err
	}
	return lost, err
}

func disowned(err error) bool {
	for _, e := range []*kerr.Error{kerr.OutOfOrderSequenceNumber, kerr.UnknownProducerID, kerr.InvalidProducerEpoch, kerr.InvalidProducerIDMapping} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// forget drops the identity: what was sent under it may still arrive, so none
// of its numbers may ever stand for other records.
func (pt *partition) forget() { pt.who, pt.sequence = nobody, 0 }

// inFlight is how many batches are under way: the first, or none.
func (pt *partition) inFlight() int {
	if pt.flight != nil {
		return 1
	}
	return 0
}

// kept is how many batches stay although nobody waits for them any more: the
// first, when it may be in the log.
func (pt *partition) kept() int {
	if len(pt.queue) > 0 && pt.queue[0].unsure {
		return 1
	}
	return pt.inFlight()
}

// forgotten tells whether the first batch may be in the log of a broker that would not
// know it again.
func (pt *partition) forgotten(now time.Time) bool {
	b := pt.queue[0]
	return b.unsure && pt.flight == nil && now.UnixMilli()-b.maxMs >= remembered.Milliseconds()
}

var (
	errTooLate = fmt.Errorf("%w: %w", ErrTimeout, kgo.ErrRecordTimeout)
	errStopped = fmt.Errorf("%w: %w", ErrTimeout, kgo.ErrClientClosed)
)

// said is err as the requests of a batch get to hear it: the broker's word is
// final only if it is about every attempt.
func said(err error, unsure bool) error {
	if !unsure || errors.Is(err, ErrTimeout) {
		return err
	}
	return fmt.Errorf("%w: an attempt without an answer, then %v", ErrTimeout, err) //nolint:errorlint // the code must not be found: it is not the outcome
}
