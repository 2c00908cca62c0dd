package loop

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// epollWait never waits, so the scheduler is not told of it.
func epollWait(fd int, events []unix.EpollEvent) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	return int(n), errno
}
