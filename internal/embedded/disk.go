package embedded

import (
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sys/unix"
)

// diskEvery is how often free space is looked at. At the 100 MB/s this broker
// can write, a quarter of a second eats 25 MB of a 64 MiB reserve.
const diskEvery = 250 * time.Millisecond

// diskWatch turns requests away before the disk does. A full disk fails a
// produce cleanly, but a commit that cannot be written is answered as success,
// and the sink's plan must be durable before its insert. So producers stop
// first, at the reserve, while commits go on and the sink can drain; and
// commits stop before they could fail, at an eighth of it.
type diskWatch struct {
	b *Broker

	mu      sync.Mutex
	produce *kfake.FaultHandle // non-nil while producers are turned away
	commit  *kfake.FaultHandle
}

func newDiskWatch(b *Broker) *diskWatch {
	w := &diskWatch{b: b}
	w.look()
	return w
}

// look compares free space with the reserve once.
func (w *diskWatch) look() {
	free, err := freeBytes(w.b.dir)
	if err != nil {
		w.b.stats.diskErrors.Inc()
		w.b.cfg.Logger.Error("look at the broker's disk", "err", err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	reserve := w.b.cfg.MinFree
	w.turn(&w.produce, free, reserve, kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.UnknownServerError})
	w.turn(&w.commit, free, reserve/8, kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.CoordinatorNotAvailable})
}

// turn installs f when free is below limit and removes it a quarter above, so
// that a janitor freeing one segment does not make it flap.
func (w *diskWatch) turn(h **kfake.FaultHandle, free, limit int64, f kfake.Fault) {
	switch {
	case *h == nil && free < limit:
		f.Count = -1
		*h = w.b.cluster.Fault(f)
		w.b.cfg.Logger.Error("disk is nearly full: turning requests away", "requests", f.Keys[0].Name(), "free", free, "reserve", limit)
	case *h != nil && free >= limit+limit/4:
		(*h).Remove()
		*h = nil
		w.b.cfg.Logger.Info("disk has room again", "requests", f.Keys[0].Name(), "free", free)
	}
}

func (w *diskWatch) refusing() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.produce != nil
}

func (w *diskWatch) close() {}

// freeBytes is what an unprivileged process may still write under dir.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}
