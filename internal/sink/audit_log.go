package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// logPosition is where a partition of the log stood.
type logPosition struct {
	logNumbers
	start, end, committed int64 // committed -1: the group has stored nothing
	first                 int64 // the first record, beyond start if nothing is left there
	young                 int64 // the first offset that no row of can have expired
	// Of an audit of some time, else 0: the first offset of that time, and the first that may
	// take a while to show.
	recent, calm int64
}

func (a *Audit) positions(ctx context.Context) (map[int32]logPosition, error) {
	if a.Log == nil {
		return nil, nil
	}
	client, err := a.Log.Kafka.Client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	adm := kadm.NewClient(client)
	committed, err := adm.FetchOffsets(ctx, a.Log.Group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, fmt.Errorf("read the offsets of group %s: %w", a.Log.Group, err)
	}
	meta, err := adm.Metadata(ctx, a.Log.Topic)
	if err == nil {
		err = meta.Topics[a.Log.Topic].Err
	}
	if err != nil {
		return nil, fmt.Errorf("read topic %s: %w", a.Log.Topic, err)
	}
	starts, err := adm.ListStartOffsets(ctx, a.Log.Topic)
	if err = cmp.Or(err, starts.Error()); err != nil {
		return nil, fmt.Errorf("read the start of topic %s: %w", a.Log.Topic, err)
	}
	ends, err := adm.ListEndOffsets(ctx, a.Log.Topic)
	if err = cmp.Or(err, ends.Error()); err != nil {
		return nil, fmt.Errorf("read the end of topic %s: %w", a.Log.Topic, err)
	}
	var firsts, recent, late kadm.ListedOffsets // firsts, because compaction leaves the start where it was
	young := starts                             // without a TTL
	calm := cmp.Or(a.calm, 5*time.Minute)
	for _, ask := range []struct {
		wanted bool
		from   time.Time
		to     *kadm.ListedOffsets
	}{
		{true, time.Unix(0, 0), &firsts},
		{!a.expiring.IsZero(), a.expiring, &young},
		{!a.Since.IsZero(), a.Since.Add(calm), &recent},
		{!a.Since.IsZero(), time.Now().Add(-calm), &late},
	} {
		if !ask.wanted {
			continue
		}
		*ask.to, err = adm.ListOffsetsAfterMilli(ctx, ask.from.UnixMilli(), a.Log.Topic)
		if err = cmp.Or(err, ask.to.Error()); err != nil {
			return nil, fmt.Errorf("read the times of topic %s: %w", a.Log.Topic, err)
		}
	}
	numbers := a.Log.Lives.numbers(meta.Cluster, meta.Topics[a.Log.Topic].ID)
	out := make(map[int32]logPosition)
	ends.Each(func(o kadm.ListedOffset) {
		p := logPosition{logNumbers: numbers, end: o.Offset, committed: -1}
		if s, ok := starts.Lookup(a.Log.Topic, o.Partition); ok {
			p.start = s.Offset
		}
		if f, ok := firsts.Lookup(a.Log.Topic, o.Partition); ok {
			p.first = max(f.Offset, p.start)
		}
		if y, ok := young.Lookup(a.Log.Topic, o.Partition); ok {
			p.young = y.Offset
		}
		if o, ok := recent.Lookup(a.Log.Topic, o.Partition); ok {
			p.recent = o.Offset
		}
		if o, ok := late.Lookup(a.Log.Topic, o.Partition); ok {
			p.calm = o.Offset
		}
		if c, ok := committed.Lookup(a.Log.Topic, o.Partition); ok {
			p.committed = c.At
		}
		out[o.Partition] = p
	})
	return out, nil
}

// compare holds what is stored against where the log stood before: what the group is past
// and no batch has, before the first of them and after the last.
func (r *Report) compare(log map[int32]logPosition) {
	for id, at := range log {
		first, next := int64(-1), int64(-1) // the offsets covered: [first,next)
		for _, c := range r.Partitions {
			if c.Partition == id && c.Source == at.now {
				first, next = c.First, c.Last+1
			}
		}
		r.Pending += max(at.end-max(next, at.start, at.committed), 0)
		if next < 0 {
			r.absent(id, at, at.start, at.committed, "nothing is stored")
			continue
		}
		r.absent(id, at, max(next, at.start), at.committed, fmt.Sprintf("what is stored ends at %d", next))
		r.absent(id, at, at.first, min(first, at.committed), fmt.Sprintf("what is stored begins at %d", first))
		r.Pending += max(first-max(at.first, at.young, at.committed), 0)
	}
}

// absent adds the offsets [from,to) of the log, which the group is past and no batch has.
func (r *Report) absent(id int32, at logPosition, from, to int64, but string) {
	if from >= to {
		return
	}
	young := min(max(from, at.young), to)
	c := Coverage{Source: at.now, Partition: id, First: from, Last: to - 1, Expired: young - from, Missing: to - young}
	if r.Partitions = append(r.Partitions, c); c.Missing > 0 {
		r.problem("source %d, partition %d: the group is at offset %d, and %s", at.now, id, at.committed, but)
	}
}
