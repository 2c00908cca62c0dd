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

// lockDir takes the exclusive right of this process to a data directory, creating both if
// missing, and waits a while for a dying predecessor. The error names the process that
// holds it. The kernel drops the lock when the process dies, however it dies, so it never
// needs cleaning up by hand. Closing the file gives the directory back. The file stays:
// removing it would let a waiter lock an inode that a third process can no longer see.
func lockDir(dir string, wait time.Duration) (*os.File, error) {
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
			return f, nil
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
