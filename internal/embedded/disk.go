package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sys/unix"
)

// diskEvery is how often free space is looked at. At the 100 MB/s this broker
// can write, a quarter of a second eats 25 MB of a reserve of 64 MiB or more.
const diskEvery = 250 * time.Millisecond

// verifyEvery bounds how long records are acknowledged on a disk that fails
// its fsyncs.
const verifyEvery = time.Second

// diskWatch turns requests away before the disk does. A full disk fails a
// produce cleanly, but a commit that cannot be written is answered as success,
// and the sink's plan must be durable before its insert. So producers stop
// first, at the reserve, while commits go on and the sink can drain; and
// commits stop before they could fail, at an eighth of it.
type diskWatch struct {
	b *Broker

	broken atomic.Pointer[error] // the first write-back error

	mu      sync.Mutex
	why     error              // why producers are turned away
	produce *kfake.FaultHandle // non-nil while they are
	commit  *kfake.FaultHandle

	second map[string]*os.File // by partition directory; verify's alone
}

func newDiskWatch(b *Broker) *diskWatch {
	w := &diskWatch{b: b, second: make(map[string]*os.File)}
	w.look()
	return w
}

// fail turns producers and commits away until the next start, which reads the
// log again and keeps what is really there. After a failed fsync the kernel
// has dropped the pages: trying again would succeed and prove nothing.
func (w *diskWatch) fail(err error) {
	w.b.stats.diskErrors.Inc()
	if w.broken.CompareAndSwap(nil, &err) {
		w.b.cfg.Logger.Error("the broker's disk failed: turning requests away until the next start", "err", err)
	}
}

// look compares free space with the reserve once.
func (w *diskWatch) look() {
	free, _, err := space(w.b.dir)
	if err != nil {
		w.b.stats.diskErrors.Inc()
		w.b.cfg.Logger.Error("look at the broker's disk", "err", err)
		return
	}
	reserve := w.b.cfg.MinFree
	why := fmt.Errorf("%d bytes free on the broker's disk, the reserve is %d", free, reserve)
	if err := w.broken.Load(); err != nil {
		free, why = math.MinInt64, fmt.Errorf("the broker's disk failed, restart it to see what was kept: %w", *err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.turn(&w.produce, free, reserve, kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.UnknownServerError})
	w.turn(&w.commit, free, reserve/8, kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.CoordinatorNotAvailable})
	if w.produce == nil {
		why = nil
	}
	w.why = why
}

// turn installs f when free is below limit and removes it a quarter above, so
// that a janitor freeing one segment does not make it flap.
func (w *diskWatch) turn(h **kfake.FaultHandle, free, limit int64, f kfake.Fault) {
	switch {
	case *h == nil && free < limit:
		f.Count = -1
		*h = w.b.cluster.Fault(f)
		w.b.cfg.Logger.Error("turning requests away from the embedded broker", "requests", f.Keys[0].Name(), "free", free, "reserve", limit)
	case *h != nil && free >= limit+limit/4:
		(*h).Remove()
		*h = nil
		w.b.cfg.Logger.Info("the embedded broker's disk has room again", "requests", f.Keys[0].Name(), "free", free)
	}
}

func (w *diskWatch) reason() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.why
}

// verify asks the kernel for the fsync errors that kfake ignored. Linux
// reports a write-back error once to every descriptor that was open when it
// happened, so a second descriptor on the segment being written sees what
// kfake's saw. With nothing dirty the fsync costs microseconds.
func (w *diskWatch) verify() {
	all := filepath.Join(w.b.dir, "partitions")
	entries, err := os.ReadDir(all)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.fail(err)
	}
	for _, e := range entries {
		dir := filepath.Join(all, e.Name())
		f := w.second[dir]
		if f != nil {
			if err := f.Sync(); err != nil {
				w.fail(err)
			}
		}
		if newest := newestSegment(dir); newest != "" && (f == nil || f.Name() != newest) {
			if f != nil {
				f.Close()
				delete(w.second, dir)
			}
			if f, err := os.Open(newest); err == nil { // else it was trimmed meanwhile
				w.second[dir] = f
			}
			if err := syncDir(dir); err != nil { // the new file's name
				w.fail(err)
			}
		}
	}
	w.look()
}

// newestSegment returns the path of the segment with the highest base offset.
func newestSegment(dir string) string {
	bases, err := segmentBases(dir)
	if err != nil || len(bases) == 0 {
		return ""
	}
	return segmentPath(dir, bases[len(bases)-1])
}

func (w *diskWatch) close() {
	for _, f := range w.second {
		f.Close()
	}
}

// space is what an unprivileged process may still write under dir, and what the file
// system holds when it is full, in bytes.
func space(dir string) (free, size int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("space of %s: %w", dir, err)
	}
	return int64(st.Bavail * uint64(st.Bsize)), int64(st.Blocks * uint64(st.Bsize)), nil
}
