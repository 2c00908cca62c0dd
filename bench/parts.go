//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// partWatch tells when an insert's parts are in the directories of all its tables,
// of a ClickHouse on this machine: it asks the server nothing.
type partWatch struct {
	inotify *os.File
	tables  map[int32]string // by watch
	made    map[int32][]part // by inserts
}

// part is a part of a table, which holds the blocks from min to max.
type part struct {
	table, partition string
	min, max         int64
}

// parsePart reads a part's name: partition_min_max_level. Others are those that are not
// whole yet or any more.
func parsePart(table, name string) (part, bool) {
	fields := strings.Split(name, "_")
	if len(fields) != 4 {
		return part{}, false
	}
	first, err1 := strconv.ParseInt(fields[1], 10, 64)
	last, err2 := strconv.ParseInt(fields[2], 10, 64)
	return part{table, fields[0], first, last}, err1 == nil && err2 == nil
}

// covers tells whether p has all that q has.
func (p part) covers(q part) bool {
	return p.table == q.table && p.partition == q.partition && p.min <= q.min && q.max <= p.max
}

// watchParts watches the directories of tables, by their names.
func watchParts(directories map[string]string) (*partWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	w := &partWatch{inotify: os.NewFile(uintptr(fd), "inotify"), tables: make(map[int32]string), made: make(map[int32][]part)}
	for table, directory := range directories {
		// A part is written under another name and gets its own when it is whole.
		id, err := unix.InotifyAddWatch(fd, directory, unix.IN_MOVED_TO)
		if err != nil {
			w.close()
			return nil, fmt.Errorf("watch %s: %w", directory, err)
		}
		w.tables[int32(id)] = table
	}
	return w, nil
}

func (w *partWatch) close() { _ = w.inotify.Close() }

// each calls ask with every insert's parts, until it has seen them. It ends with ctx.
func (w *partWatch) each(ctx context.Context, ask func([]part) (seen bool, err error)) error {
	stop := context.AfterFunc(ctx, func() { _ = w.inotify.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		parts, err := w.wait()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		for seen := false; !seen && ctx.Err() == nil; {
			if seen, err = ask(parts); err != nil {
				return err
			}
		}
	}
}

// wait returns the next part that an insert made of each table, when all of them have one.
func (w *partWatch) wait() (next []part, err error) {
	for buf := make([]byte, 16<<10); ; {
		for id := range w.tables {
			if len(w.made[id]) > 0 {
				next = append(next, w.made[id][0])
			}
		}
		if len(next) == len(w.tables) {
			break
		}
		next = next[:0]
		n, err := w.inotify.Read(buf)
		if err != nil {
			return nil, err
		}
		for events := buf[:n]; len(events) >= unix.SizeofInotifyEvent; {
			id, name := int32(binary.NativeEndian.Uint32(events)), events[unix.SizeofInotifyEvent:]
			name = name[:binary.NativeEndian.Uint32(events[12:])]
			events = events[unix.SizeofInotifyEvent+len(name):]
			if p, ok := parsePart(w.tables[id], string(bytes.TrimRight(name, "\x00"))); ok && p.min == p.max {
				w.made[id] = append(w.made[id], p)
			}
		}
	}
	for id := range w.tables {
		w.made[id] = w.made[id][1:]
	}
	return next, nil
}
