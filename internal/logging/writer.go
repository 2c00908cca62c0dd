package logging

import (
	"bytes"
	"io"
	"sync/atomic"
	"time"
)

// maxWaiting bounds the lines that a Writer holds, a few hundred kilobytes.
const maxWaiting = 1024

// Writer writes lines to another in a goroutine of its own, so that nobody who
// logs waits for it: a pipe that nobody reads any more would stop the program one
// goroutine after the other, event loops among them. What does not fit into what
// waits is dropped and counted.
type Writer struct {
	to      io.Writer
	report  func(dropped int64)
	waiting chan []byte
	dropped atomic.Int64
	closing chan struct{}
	ended   chan struct{}
}

// NewWriter returns a Writer to to. It calls report, which may write to to as well,
// when all that waited is out and lines were dropped behind it.
func NewWriter(to io.Writer, report func(dropped int64)) *Writer {
	w := &Writer{
		to: to, report: report,
		waiting: make(chan []byte, maxWaiting), closing: make(chan struct{}), ended: make(chan struct{}),
	}
	go w.run()
	return w
}

// Write takes one line, and never fails. The line is the caller's again when it returns.
func (w *Writer) Write(line []byte) (int, error) {
	select {
	case w.waiting <- bytes.Clone(line):
	default:
		w.dropped.Add(1)
	}
	return len(line), nil
}

// Close has what waits written, and gives up on it after patience. What is written
// later is lost. It is called once.
func (w *Writer) Close(patience time.Duration) {
	close(w.closing)
	select {
	case <-w.ended:
	case <-time.After(patience):
	}
}

func (w *Writer) run() {
	defer close(w.ended)
	for {
		select {
		case line := <-w.waiting:
			w.put(line)
		case <-w.closing:
			for {
				select {
				case line := <-w.waiting:
					w.put(line)
				default:
					return
				}
			}
		}
	}
}

func (w *Writer) put(line []byte) {
	_, _ = w.to.Write(line) // as little as slog itself could do about it
	if len(w.waiting) > 0 {
		return
	}
	if n := w.dropped.Swap(0); n > 0 {
		w.report(n)
	}
}
