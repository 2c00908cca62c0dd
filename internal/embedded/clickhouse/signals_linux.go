package clickhouse

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// faultSignals are the signals libchdb takes over or resets: the ones Go's
// runtime turns into panics.
var faultSignals = [...]unix.Signal{
	unix.SIGILL, unix.SIGTRAP, unix.SIGABRT, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSYS,
}

// kernelAction is struct sigaction as rt_sigaction(2) of amd64 and arm64 has it.
type kernelAction struct {
	handler, flags, restorer, mask uint64
}

// signalActions remembers what the process did on the fault signals. Neither
// os/signal nor C's sigaction can say it: the first knows only its own, the
// second hides the restorer.
type signalActions [len(faultSignals)]kernelAction

func (a *signalActions) save() error {
	for i, sig := range faultSignals {
		if err := sigaction(sig, nil, &a[i]); err != nil {
			return err
		}
	}
	return nil
}

func (a *signalActions) restore() error {
	for i, sig := range faultSignals {
		if err := sigaction(sig, &a[i], nil); err != nil {
			return err
		}
	}
	return nil
}

func sigaction(sig unix.Signal, set, get *kernelAction) error {
	const maskSize = 8
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(get)), maskSize, 0, 0)
	if errno != 0 {
		return fmt.Errorf("rt_sigaction %s: %w", sig, errno)
	}
	return nil
}
