package sink

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edge/internal/codec"
)

// smallDisk mounts a file system of that many bytes for the test.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a small disk is a tmpfs, which only root may mount")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skip("mount a tmpfs: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// ballast fills the disk of dir up to free bytes.
func ballast(t *testing.T, dir string, free int64) (remove func()) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-free); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// ClickHouse's disk fills up under load, and there is room again later.
func TestClickHouseDiskFull(t *testing.T) {
	needLibrary(t)
	disk := smallDisk(t, 64<<20)
	child := engineOn(t, filepath.Join(disk, "data"))
	l := newLabOn(t, child, 3)
	s := l.start()
	// Text that does not compress.
	r := dice(t)
	large := func(i int, ev *codec.Event) {
		twoMonths(i, ev)
		noise := make([]byte, 2<<10)
		for i := range noise {
			noise[i] = 'a' + byte(r.IntN(26))
		}
		ev.Metadata = fmt.Appendf(nil, `{"noise":"%s"}`, noise)
	}
	l.produce(100, large)
	l.settled()

	free := ballast(t, disk, 3<<20)
	failed := func() (codes map[string]uint64, n uint64) {
		s.sink.stats.mu.Lock()
		defer s.sink.stats.mu.Unlock()
		for _, of := range s.sink.stats.insertErrors {
			n += of
		}
		return maps.Clone(s.sink.stats.insertErrors), n
	}
	// A merge may make room once or twice: until it is full in earnest.
	eventually(t, "the disk is full", func() error {
		codes, n := failed()
		if n >= 3 {
			return nil
		}
		if l.atEnd() == nil {
			l.produce(100, large)
		}
		return fmt.Errorf("failed inserts by code: %v", codes)
	})
	free()
	eventuallyWithin(t, time.Minute, "everything is stored", l.atEnd)
	l.exact()
	codes, _ := failed()
	t.Logf("%d rows; failed inserts by code: %v", len(l.ledger), codes)
	if codes["243"] == 0 {
		t.Errorf("failed inserts by code: %v; want some of 243, not enough space", codes)
	}
}
