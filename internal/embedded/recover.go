package embedded

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// hole is a range of offsets missing inside a partition's log: a segment was
// damaged or lost while later ones survived. A consumer passes over it without
// an error. Records in it that were not stored are lost; no offset is used twice
// because of it.
type hole struct {
	topic       string
	partition   int32
	first, last int64
}

// recovery is what walking the log found.
type recovery struct {
	cut     int64 // bytes behind the last whole batch of a segment
	holes   []hole
	windows []*sequenceWindow
}

// partitionSnapshot is kfake's description of a partition, which it writes on
// a clean shutdown and believes when the sizes match.
type partitionSnapshot struct {
	Version          int               `json:"version"`
	HighWatermark    int64             `json:"high_watermark"`
	LastStableOffset int64             `json:"last_stable_offset"`
	LogStartOffset   int64             `json:"log_start_offset"`
	CreatedAt        time.Time         `json:"created_at"`
	Segments         []segmentSnapshot `json:"segments"`
}

type segmentSnapshot struct {
	BaseOffset int64 `json:"base_offset"`
	Size       int64 `json:"size"`
}

// recoverLog walks every segment before kfake opens it, cuts what is not a
// whole batch and writes the snapshot of each partition anew. kfake can do
// most of that, but
//
//   - without a snapshot, which is after every kill, it holds the whole log in
//     memory at once: a backlog larger than memory could never be opened again;
//   - with a snapshot it forgets to shorten its idea of a segment it has cut,
//     and looks for every later batch at the wrong place;
//   - it says nothing about offsets missing in the middle;
//   - it has forgotten the producers after a kill, see producers.go.
//
// The cost is one more sequential pass over the log.
func recoverLog(dir string) (r recovery, err error) {
	parts, err := os.ReadDir(filepath.Join(dir, "partitions"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("recover the log: %w", err)
	}
	for _, p := range parts {
		i := strings.LastIndexByte(p.Name(), '-')
		n, err := strconv.ParseInt(p.Name()[i+1:], 10, 32)
		if i < 0 || err != nil {
			continue // not a partition's directory
		}
		topic, err := url.PathUnescape(p.Name()[:i])
		if err != nil {
			continue
		}
		if err := r.partition(filepath.Join(dir, "partitions", p.Name()), topic, int32(n)); err != nil {
			return r, fmt.Errorf("recover %s, partition %d: %w", topic, n, err)
		}
	}
	if err := writeSequences(dir, r.windows); err != nil {
		return r, fmt.Errorf("recover what producers have written: %w", err)
	}
	return r, nil
}

func (r *recovery) partition(dir, topic string, partition int32) error {
	bases, err := segmentBases(dir)
	if err != nil || len(bases) == 0 {
		return err
	}
	snap := partitionSnapshot{Version: 1, LogStartOffset: bases[0], CreatedAt: time.Now()}
	next := bases[0]
	of := make(producers)
	for _, base := range bases {
		path := segmentPath(dir, base)
		w, err := walkSegment(path, of)
		if err != nil {
			return err
		}
		if w.size < w.fileSize {
			if err := truncate(path, w.size); err != nil {
				return fmt.Errorf("cut %d bytes behind the last whole batch: %w", w.fileSize-w.size, err)
			}
			r.cut += w.fileSize - w.size
		}
		for _, b := range w.runs {
			if b.first < next {
				return fmt.Errorf("%s holds offset %d again: the log was put together from parts that do not belong together", path, b.first)
			}
			if b.first > next {
				r.holes = append(r.holes, hole{topic, partition, next, b.first - 1})
			}
			next = b.end
		}
		snap.Segments = append(snap.Segments, segmentSnapshot{base, w.size})
	}
	for _, w := range of {
		w.Topic, w.Partition = topic, partition
		r.windows = append(r.windows, w)
	}
	if err := snap.dropEmptyTail(dir); err != nil {
		return err
	}
	snap.HighWatermark, snap.LastStableOffset = next, next
	path := filepath.Join(dir, "snapshot.json")
	if old, ok := readSnapshot(path); ok && old.LogStartOffset > snap.LogStartOffset && old.LogStartOffset <= next {
		snap.LogStartOffset = old.LogStartOffset // trimmed inside the first segment
	}
	b, err := json.Marshal(snap)
	if err != nil {
		return err
	}
	return replaceFile(path, b)
}

// dropEmptyTail removes segments that were begun and hold nothing. kfake goes
// on in the one before, which would then reach past the name of the empty one.
// A segment that is alone stays: its name is all that is left of the offsets.
func (s *partitionSnapshot) dropEmptyTail(dir string) error {
	for n := len(s.Segments) - 1; n > 0 && s.Segments[n].Size == 0; n-- {
		base := filepath.Join(dir, strconv.FormatInt(s.Segments[n].BaseOffset, 10))
		if err := os.Remove(base + ".dat"); err != nil {
			return err
		}
		if err := os.Remove(base + ".idx"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.Segments = s.Segments[:n]
	}
	return nil
}

func readSnapshot(path string) (s partitionSnapshot, ok bool) {
	b, err := os.ReadFile(path)
	return s, err == nil && json.Unmarshal(b, &s) == nil
}

func segmentPath(dir string, base int64) string {
	return filepath.Join(dir, strconv.FormatInt(base, 10)+".dat")
}

// segmentBases returns the base offsets of the segment files in dir, ascending.
func segmentBases(dir string) ([]int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var bases []int64
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".dat")
		if base, err := strconv.ParseInt(name, 10, 64); ok && err == nil {
			bases = append(bases, base)
		}
	}
	slices.Sort(bases)
	return bases, nil
}

func truncate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
}

// run is a gapless range of offsets [first, end).
type run struct{ first, end int64 }

// walked is what a segment file holds: whole batches up to size, as runs.
type walked struct {
	runs           []run
	size, fileSize int64
}

const (
	// batchHeader is a record batch up to and with its record count.
	batchHeader = 61
	// batchLengthFrom is where a batch's length field starts to count.
	batchLengthFrom = 12
	// batchCRCFrom is where the bytes under the checksum begin.
	batchCRCFrom = 21
)

// walkSegment reads the whole batches of a segment file. It stops at the first
// that is short, fails its checksum or goes back in offsets. What they say of their
// producers goes into of, unless it is nil.
func walkSegment(path string, of producers) (w walked, err error) {
	f, err := os.Open(path)
	if err != nil {
		return w, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return w, err
	}
	w.fileSize = st.Size()
	r := bufio.NewReaderSize(f, 1<<20)
	var batch []byte
	for w.fileSize-w.size >= batchHeader {
		head, err := r.Peek(batchLengthFrom)
		if err != nil {
			return w, err
		}
		n := batchLengthFrom + int64(int32(binary.BigEndian.Uint32(head[8:])))
		if n < batchHeader || n > w.fileSize-w.size {
			return w, nil
		}
		batch = slices.Grow(batch[:0], int(n))[:n]
		if _, err := io.ReadFull(r, batch); err != nil {
			return w, err
		}
		if crc32.Checksum(batch[batchCRCFrom:], castagnoli) != binary.BigEndian.Uint32(batch[17:]) {
			return w, nil
		}
		if !w.add(int64(binary.BigEndian.Uint64(batch)), int64(binary.BigEndian.Uint32(batch[23:]))) {
			return w, nil
		}
		if of != nil {
			of.add(batch)
		}
		w.size += n
	}
	return w, nil
}

// add appends a batch to the runs and reports whether it may follow them.
func (w *walked) add(first, lastDelta int64) bool {
	end := first + lastDelta + 1
	if len(w.runs) == 0 {
		w.runs = append(w.runs, run{first, end})
		return true
	}
	switch last := &w.runs[len(w.runs)-1]; {
	case first < last.end:
		return false
	case first == last.end:
		last.end = end
	default:
		w.runs = append(w.runs, run{first, end})
	}
	return true
}
