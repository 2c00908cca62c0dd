//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
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
	made    map[int32][]part // by watch: parts of inserts that other tables have no part of yet
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

// upTo tells whether p has nothing that came after q.
func (p part) upTo(q part) bool {
	return p.table == q.table && p.partition == q.partition && p.max <= q.max
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

// each calls ask with every insert's parts, until it has seen them. It ends with ctx, and
// fails when parts were made that belong to no insert into all the tables: a repair after
// a failed insert, or an insert over the end of a month, shifts what belongs together.
func (w *partWatch) each(ctx context.Context, ask func([]part) (seen bool, err error)) error {
	stop := context.AfterFunc(ctx, func() { _ = w.inotify.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for ctx.Err() == nil {
		parts, err := w.wait()
		if ctx.Err() != nil {
			break
		}
		for seen := false; err == nil && !seen && ctx.Err() == nil; {
			seen, err = ask(parts)
		}
		if err != nil {
			return err
		}
	}
	for id, left := range w.made {
		if len(left) > 0 {
			return fmt.Errorf("%d parts of %s belong to no insert into all tables; measure again", len(left), w.tables[id])
		}
	}
	return nil
}

// wait returns the next part that an insert made of each table, when all of them have
// one.
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
		if err := w.note(buf[:n]); err != nil {
			return nil, err
		}
	}
	for id := range w.tables {
		w.made[id] = w.made[id][1:]
	}
	return next, nil
}

// note takes up the parts that events of inotify tell of.
func (w *partWatch) note(events []byte) error {
	for len(events) >= unix.SizeofInotifyEvent {
		id, mask := int32(binary.NativeEndian.Uint32(events)), binary.NativeEndian.Uint32(events[4:])
		if mask&unix.IN_Q_OVERFLOW != 0 {
			return errors.New("the kernel dropped events of the directories watched")
		}
		name := events[unix.SizeofInotifyEvent:][:binary.NativeEndian.Uint32(events[12:])]
		events = events[unix.SizeofInotifyEvent+len(name):]
		if p, ok := parsePart(w.tables[id], string(bytes.TrimRight(name, "\x00"))); ok && p.min == p.max {
			w.made[id] = append(w.made[id], p)
		}
	}
	return nil
}
