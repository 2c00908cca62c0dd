package embedded

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockWait covers a predecessor that was told to stop and is writing its last
// bytes; a supervisor restarts within that time. Waiting longer would hide a
// second instance started by mistake.
const lockWait = 3 * time.Second

// lockPoll is how often a held lock is tried again: flock has no wait with a
// deadline, and a blocked flock call cannot be given up.
const lockPoll = 20 * time.Millisecond

// DirLock is the exclusive right of this process to a data directory. The
// kernel drops it when the process dies, however it dies, so a lock never
// needs cleaning up by hand.
type DirLock struct {
	dir string
	f   *os.File
}

// LockDir takes the lock of dir, creating both if missing, and waits a moment
// for a dying predecessor. The error names the process that holds it.
func LockDir(dir string) (*DirLock, error) { return lockDir(dir, lockWait) }

func lockDir(dir string, wait time.Duration) (*DirLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the data directory: %w", err)
	}
	path := filepath.Join(dir, "LOCK")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock file: %w", err)
	}
	for deadline := time.Now().Add(wait); ; time.Sleep(lockPoll) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			if err := writePID(f); err != nil {
				f.Close()
				return nil, err
			}
			return &DirLock{dir: dir, f: f}, nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case !time.Now().Before(deadline):
			holder := readPID(path)
			f.Close()
			return nil, fmt.Errorf("data directory %s is in use by process %s: stop it or set another DATA_DIR", dir, holder)
		}
	}
}

// Close gives the directory back. The file stays: removing it would let a
// waiter lock an inode that a third process can no longer see.
func (l *DirLock) Close() error {
	if err := l.f.Close(); err != nil {
		return fmt.Errorf("release the lock of %s: %w", l.dir, err)
	}
	return nil
}

// writePID is for the error message of the next opener; the lock itself does
// not depend on it, so a full disk must not keep the process from starting.
func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write the lock file: %w", err)
	}
	_, err := fmt.Fprintf(f, "%d\n", os.Getpid())
	if err != nil && !errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("write the lock file: %w", err)
	}
	return nil
}

func readPID(path string) string {
	b, err := os.ReadFile(path)
	if pid := strings.TrimSpace(string(b)); err == nil && pid != "" {
		return pid
	}
	return "unknown"
}
