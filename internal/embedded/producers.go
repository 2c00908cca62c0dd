package embedded

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"path/filepath"
)

// What the broker knows of a producer's batches in a partition: by it a batch that
// is sent again, because its answer got lost, is known again. kfake writes it down
// on a clean shutdown only. After a kill it would take the first batch of each
// producer for new, also the one that was written and not answered; so it is made
// from the log at every start, as Kafka's own brokers do.

// sequences is kfake's seq_windows.json.
type sequences struct {
	Version int               `json:"version"`
	Windows []*sequenceWindow `json:"windows"`
}

// sequenceWindow has the last batches of a producer in a partition, a ring.
type sequenceWindow struct {
	Producer  int64       `json:"pid"`
	Topic     string      `json:"topic"`
	Partition int32       `json:"partition"`
	Entries   [5]sequence `json:"entries"`
	Count     uint8       `json:"count"`
	At        uint8       `json:"at"` // of the next entry
	Epoch     int16       `json:"epoch"`
	Seen      bool        `json:"seen"`
	Next      int32       `json:"next_seq"`
}

// sequence is one batch.
type sequence struct {
	First  int32 `json:"first_seq"`
	Next   int32 `json:"next_seq"`
	Offset int64 `json:"offset"`
}

// producers are the windows of one partition, by producer id.
type producers map[int64]*sequenceWindow

// add notes a whole batch.
func (p producers) add(batch []byte) {
	id, epoch := int64(binary.BigEndian.Uint64(batch[43:])), int16(binary.BigEndian.Uint16(batch[51:]))
	if id < 0 {
		return // not idempotent
	}
	w := p[id]
	if w == nil || w.Epoch != epoch {
		w = &sequenceWindow{Producer: id, Epoch: epoch, Seen: true}
		p[id] = w
	}
	first, records := int32(binary.BigEndian.Uint32(batch[53:])), int32(binary.BigEndian.Uint32(batch[57:]))
	w.Next = int32((int64(first) + int64(records)) % math.MaxInt32)
	w.Entries[w.At] = sequence{first, w.Next, int64(binary.BigEndian.Uint64(batch))}
	w.At = (w.At + 1) % uint8(len(w.Entries))
	w.Count = min(w.Count+1, uint8(len(w.Entries)))
}

// writeSequences replaces what an earlier shutdown wrote.
func writeSequences(dir string, windows []*sequenceWindow) error {
	b, err := json.Marshal(sequences{Version: 1, Windows: windows})
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, "seq_windows.json"), b)
}
