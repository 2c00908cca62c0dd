package sink

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// plan is a range that a sink declared before its insert.
type plan struct {
	src         uint32
	first, last int64
}

// plans are those of the flights under way that have records of a partition, in order:
// the metadata of an offset commit at the first offset of the first.
type plans []plan

// The second form is that of several plans; sinks before it know the first only, and
// wait for one that knows both.
const (
	onePlan      = "v1" // v1;src;last
	severalPlans = "v2" // v2;src;last;first;last…
)

func (p plans) String() string {
	form := onePlan
	if len(p) > 1 {
		form = severalPlans
	}
	s := fmt.Sprintf("%s;%d;%d", form, p[0].src, p[0].last)
	for _, next := range p[1:] {
		s += fmt.Sprintf(";%d;%d", next.first, next.last)
	}
	return s
}

// parsePlans reads the metadata of a commit at first: nothing declares nothing.
func parsePlans(first int64, metadata string) (plans, error) {
	if metadata == "" {
		return nil, nil
	}
	f := strings.Split(metadata, ";")
	if f[0] != onePlan && f[0] != severalPlans {
		return nil, fmt.Errorf("offset metadata %q is not a plan this version knows", metadata)
	}
	wrong := fmt.Errorf("offset metadata %q at offset %d is not a plan", metadata, first)
	if (f[0] == onePlan) != (len(f) == 3) || len(f) < 3 || len(f)%2 == 0 {
		return nil, wrong
	}
	src, err := strconv.ParseUint(f[1], 10, 32)
	if err != nil {
		return nil, wrong
	}
	var out plans
	for next, ends := first, f[2:]; ; ends = ends[2:] {
		last, err := strconv.ParseInt(ends[0], 10, 64)
		if err != nil || last < next {
			return nil, wrong
		}
		out = append(out, plan{uint32(src), next, last})
		if len(ends) == 1 {
			return out, nil
		}
		if next, err = strconv.ParseInt(ends[1], 10, 64); err != nil || next <= last {
			return nil, wrong
		}
	}
}

// Declared returns the offset behind the batches that a commit of a sink declares; at when
// it declares none.
func Declared(at int64, metadata string) int64 {
	declared, err := parsePlans(at, metadata)
	if err != nil || len(declared) == 0 {
		return at
	}
	return declared[len(declared)-1].last + 1
}

// offsetsFetched learns where newly assigned partitions stand, before their
// first record arrives.
func (t *session) offsetsFetched(_ context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.rouse()
	add := func(topic string, id int32, offset int64, metadata *string, code int16) error {
		if topic != t.cfg.Topic || t.partitions == nil {
			return nil
		}
		// Without an offset the client would drop the partition and never ask again.
		if err := kerr.ErrorForCode(code); err != nil {
			return fmt.Errorf("fetch the offset of partition %d: %w", id, err)
		}
		p := &partition{id: id, next: max(offset, 0), known: offset >= 0}
		if offset >= 0 && metadata != nil {
			open, err := parsePlans(offset, *metadata)
			if err != nil {
				return err
			}
			switch {
			case len(open) == 0:
			case open[0].src == t.source.now:
				p.open, p.next = open, open[len(open)-1].last+1
			default:
				if _, ok := t.source.had(open[0].src, id); ok {
					// What is stored of it goes beyond the group's offset: overtake compares.
					t.cfg.Logger.Warn("open plan is of the log before it lost its tail",
						"partition", id, "first", offset, "last", open[len(open)-1].last)
					break
				}
				t.cfg.Logger.Error("open plan belongs to another log, ignored",
					"partition", id, "first", offset, "last", open[len(open)-1].last, "src", open[0].src, "want_src", t.source.now)
				if slices.Contains(t.source.before, fmt.Sprint(open[0].src)) {
					p.next, p.known, offset = 0, false, -1 // and so does the offset
				}
			}
		}
		p.start, p.read = !p.known, p.from()
		t.partitions[id] = p
		t.state.assigned(id, offset)
		return nil
	}
	for _, tp := range resp.Topics {
		for _, p := range tp.Partitions {
			if err := add(tp.Topic, p.Partition, p.Offset, p.Metadata, p.ErrorCode); err != nil {
				return err
			}
		}
	}
	for _, g := range resp.Groups {
		for _, tp := range g.Topics {
			for _, p := range tp.Partitions {
				if err := add(t.topicName(tp), p.Partition, p.Offset, p.Metadata, p.ErrorCode); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// adjustOffsets has partitions read from the start of the log of which the group says
// nothing about this log.
func (t *session) adjustOffsets(_ context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range offsets[t.cfg.Topic] {
		if p := t.partitions[id]; p != nil && p.start {
			offsets[t.cfg.Topic][id] = kgo.NewOffset().AtStart()
		}
	}
	return offsets, nil
}

// topicName is the name in a response that may carry only an id: this client
// consumes one topic.
func (t *session) topicName(tp kmsg.OffsetFetchResponseGroupTopic) string {
	if tp.Topic == "" {
		return t.cfg.Topic
	}
	return tp.Topic
}

// assigned notes that this sink is a member, of which the group may want nothing.
func (t *session) assigned(_ context.Context, _ *kgo.Client, given map[string][]int32) {
	t.state.joined(given[t.cfg.Topic])
}

// revoked gives partitions up in good order: everything taken is stored and
// committed while the generation still holds. When ClickHouse takes too long,
// the plan is left to the next owner and this session starts over.
func (t *session) revoked(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
	ids := gone[t.cfg.Topic]
	if len(ids) == 0 {
		return // and joins anew, which is not to wait for who has mu
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.partitions == nil {
		return
	}
	t.stats.rebalances.Inc()
	// Or records of them would be taken while others land, and stored after their next
	// owner has.
	t.polled = slices.DeleteFunc(t.polled, func(p polled) bool { return slices.Contains(ids, p.of.id) })
	for _, id := range ids {
		delete(t.partitions, id)
	}
	ctx, cancel := context.WithTimeout(t.ctx, t.cfg.RevokeTimeout)
	defer cancel()
	if err := t.drain(ctx); err != nil {
		t.cfg.Logger.Warn("partitions revoked before their insert finished", "partitions", ids, "err", err)
		t.lost(errDisowned)
	}
	for _, id := range ids {
		t.state.forget(id)
	}
}

// partitionsLost ends the session: the generation is gone and no commit of ours
// will be accepted.
func (t *session) partitionsLost(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
	t.stats.rebalances.Inc()
	t.cfg.Logger.Warn("partitions lost", "partitions", gone[t.cfg.Topic])
	t.lost(errDisowned)
}

// commit moves the group's offsets, with the plan as metadata where there is
// one. A nil error means that the coordinator accepted every partition under
// our generation.
func (t *session) commit(ctx context.Context, offsets map[int32]commitOffset) error {
	want := make(map[int32]kgo.EpochOffset, len(offsets))
	for id, o := range offsets {
		want[id] = kgo.EpochOffset{Epoch: -1, Offset: o.at}
	}
	ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		// Losing the partitions ends t.ctx before the client may join anew: a
		// commit prepared after that would carry a generation that was never
		// ours for them.
		if err := t.ctx.Err(); err != nil {
			return err
		}
		for i := range req.Topics {
			for j := range req.Topics[i].Partitions {
				p := &req.Topics[i].Partitions[j]
				metadata := offsets[p.Partition].metadata
				p.Metadata = &metadata
			}
		}
		return nil
	})
	if !t.byID.Load() {
		if err := t.sameLog(ctx); err != nil {
			return err
		}
	}
	var result error
	t.client.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{t.cfg.Topic: want},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
			result = err
			if resp == nil || err != nil {
				return
			}
			t.byID.Store(resp.Version >= 10)
			answered := 0
			for _, topic := range resp.Topics {
				for _, p := range topic.Partitions {
					answered++
					if e := kerr.ErrorForCode(p.ErrorCode); e != nil && result == nil {
						result = e
					}
				}
			}
			if result == nil && answered != len(offsets) {
				result = fmt.Errorf("coordinator answered for %d of %d partitions", answered, len(offsets))
			}
		})
	if result != nil {
		t.cfg.Kafka.Errors.Count("commit", result)
		ids := slices.Sorted(maps.Keys(offsets))
		return fmt.Errorf("commit offsets of partitions %v: %w", ids, result)
	}
	return nil
}

// sameLog reports whether the topic's name is still that of the log of this session. Before
// Kafka 4.1 a commit says the name only, and would be taken for the next log of that name,
// of which it would pass what nobody has stored.
func (t *session) sameLog(ctx context.Context) error {
	req := kmsg.NewPtrMetadataRequest() // and not what the client remembers
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = kmsg.StringPtr(t.cfg.Topic)
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, t.client)
	switch {
	case err != nil:
	case len(resp.Topics) != 1:
		err = fmt.Errorf("asked for one topic, got %d", len(resp.Topics))
	default:
		err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
	}
	if err != nil {
		return fmt.Errorf("read the topic's id: %w", err)
	}
	if resp.Topics[0].TopicID != t.source.topic {
		return kerr.UnknownTopicID
	}
	return nil
}

type commitOffset struct {
	at       int64
	metadata string
}

// refused reports whether a commit failed because the partitions are, or may
// be, somebody else's.
func refused(err error) bool {
	for _, e := range []error{kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.FencedInstanceID, kerr.FencedMemberEpoch, kerr.StaleMemberEpoch} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
