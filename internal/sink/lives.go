package sink

import (
	"fmt"
	"maps"
	"slices"
)

// Lives says under which numbers a log was stored. The embedded log begins a new life when
// it has lost its tail, since the offsets of that are given to other records. What was
// stored of an earlier life is of the log as long as it lies before where the next began.
type Lives struct {
	Incarnation uint32 // of now; 0: a real cluster's, which has one life
	// Until is where earlier incarnations ended, by partition: the first offset that was
	// given away again. What one has stored that is not there is not the log's.
	Until map[uint32]map[int32]int64
}

// logNumbers are those of a log in ClickHouse.
type logNumbers struct {
	now     uint32
	earlier []life
	others  []life // that the log knows nothing of: it was put back from a copy of before them
}

// life is one that has ended.
type life struct {
	src   uint32
	until map[int32]int64 // of another: where the copy ends
	other bool
}

// numbers returns those of a topic.
func (l Lives) numbers(cluster string, topic [16]byte) logNumbers {
	out := logNumbers{now: SourceID(cluster, topic, l.Incarnation)}
	for of := range l.Incarnation {
		if l.Until[of] == nil {
			if n := len(out.earlier); n > 0 {
				out.others = append(out.others, life{SourceID(cluster, topic, of), out.earlier[n-1].until, true})
			}
			continue
		}
		until := maps.Clone(l.Until[of])
		for later := of + 1; later < l.Incarnation; later++ { // which may have lost some of this one's, too
			for id, end := range l.Until[later] {
				if before, ok := until[id]; ok {
					until[id] = min(before, end)
				}
			}
		}
		out.earlier = append(out.earlier, life{SourceID(cluster, topic, of), until, false})
	}
	return out
}

// had returns where the life that had the number src ended in a partition, if it was one of
// the log's.
func (n *logNumbers) had(src uint32, id int32) (end int64, ok bool) {
	for _, l := range n.earlier {
		if l.src == src {
			end, ok = l.until[id]
		}
	}
	return end, ok
}

// ended are all lives that stored what the log has lost.
func (n *logNumbers) ended() []life { return slices.Concat(n.others, n.earlier) }

// gone is the condition that a row of events is about a record of a partition that l had and
// the log has lost.
func (l *life) gone(id int32) string {
	from := l.until[id]
	if l.other {
		from = 0
	}
	return fmt.Sprintf("_src = %d AND _part = %d AND _offset >= %d", l.src, id, from)
}

// columns name those of a table that say which records a row of it is about.
type columns struct{ src, part, first, last string }

var (
	ofEvents  = columns{"_src", "_part", "_offset", "_last"}
	ofParts   = columns{"_src", "_part", "_first", "_last"} // all rows of batches that have records in the log
	ofBatches = columns{"src", "part", "first", "last"}     // without a row
)

// rows is the condition that a row of a table is about records of a partition of the log.
func (n *logNumbers) rows(id int32, of columns) string {
	src := fmt.Sprintf("%s = %d", of.src, n.now)
	for _, l := range n.earlier {
		if end, ok := l.until[id]; ok {
			src += fmt.Sprintf(" OR %s = %d AND %s < %d", of.src, l.src, of.first, end)
		}
	}
	return fmt.Sprintf("(%s) AND %s = %d", src, of.part, id)
}

// last is a row's last record that is of the log.
func (n *logNumbers) last(id int32, of columns) string {
	var ends string
	for _, l := range n.earlier {
		if end, ok := l.until[id]; ok {
			ends += fmt.Sprintf("%s = %d, least(%s, %d), ", of.src, l.src, of.last, max(end-1, 0))
		}
	}
	if ends == "" {
		return of.last
	}
	return "multiIf(" + ends + of.last + ")" // nested, many lives would be too deep
}
