//go:build race

package loop

import (
	"errors"
	"syscall"
)

// Package syscall tells the race detector that what happened before a write happened
// before the read of it.

func read(fd int, p []byte) (int, syscall.Errno) { return told(syscall.Read(fd, p)) }

func write(fd int, p []byte) (int, syscall.Errno) { return told(syscall.Write(fd, p)) }

func told(n int, err error) (int, syscall.Errno) {
	var errno syscall.Errno
	errors.As(err, &errno)
	return n, errno
}
