//go:build linux

package child

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of /proc/<pid>/stat: USER_HZ is 100 on every Linux that Go
// runs on.
const tick = 10 * time.Millisecond

// CPU is the processor time that pid has used so far, all threads, user and
// system; 0 when there is no such process.
func CPU(pid int) time.Duration {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	return statTime(text)
}

// Ran is the time for which the threads that pid has now were on a processor, to the
// nanosecond, for what is less than CPU's ticks; 0 when there is no such process. The time
// of threads that have ended is gone from it: a process that rests keeps its threads.
func Ran(pid int) (d time.Duration) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, l := range lists {
		text, _ := os.ReadFile(l)
		ran, _, _ := strings.Cut(string(text), " ")
		n, _ := strconv.ParseInt(ran, 10, 64)
		d += time.Duration(n)
	}
	return d
}

// statTime adds fields 14 and 15 of a stat line. The name in field 2 may hold
// anything, so fields are counted from the last parenthesis.
func statTime(text []byte) time.Duration {
	i := bytes.LastIndexByte(text, ')')
	if i < 0 {
		return 0
	}
	fields := strings.Fields(string(text[i+1:])) // from field 3 on
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * tick
}

// Self is the processor time of this process: of the load generator, while it
// does nothing else.
func Self() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Memory is what a process has resident, now and at most so far, in bytes.
func Memory(pid int) (now, peak int64) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, 0
	}
	return statusBytes(text, "VmRSS:"), statusBytes(text, "VmHWM:")
}

func statusBytes(text []byte, key string) int64 {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}

// ForgetPeak makes Memory's peak start again from now.
func ForgetPeak(pid int) {
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/clear_refs", []byte("5"), 0)
}

// Children are the processes that pid has started and that still run.
func Children(pid int) []int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var out []int
	for _, l := range lists {
		text, _ := os.ReadFile(l)
		for f := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(f); err == nil {
				out = append(out, child)
			}
		}
	}
	return out
}
