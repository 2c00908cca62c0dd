package clickhouse

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
)

// An insertBuffer holds the rows of one INSERT until the client has said that
// they are all there. Only then does the engine see any of them: a client that
// dies half-way leaves nothing behind. The price is memory, so it is bounded,
// for one insert and for all together.
type insertBuffer struct {
	srv     *server
	file    *os.File
	path    string
	held    int64 // bytes in file, counted against the server's total
	dropped int64 // bytes walked past since the refusal
	refused error // what the client hears once it has sent everything
}

func newInsertBuffer(srv *server) (*insertBuffer, error) {
	f, path, err := newInsertFile()
	if err != nil {
		return nil, &exception{code: codeMemoryLimit, message: "Buffer an insert: " + err.Error()}
	}
	return &insertBuffer{srv: srv, file: f, path: path}, nil
}

func (b *insertBuffer) close() {
	b.srv.buffered.Add(-b.held)
	b.file.Close()
	removeInsertFile(b.path)
}

// keep appends a span of Native bytes. Past the limit it drops everything and
// lets the walk go on, since the place in the stream must not be lost.
func (b *insertBuffer) keep(span []byte) error {
	n := int64(len(span))
	if b.refused != nil {
		// A client that ignores the limit this far is not an honest one.
		if b.dropped += n; b.dropped > 8*b.srv.cfg.MaxInsertBytes {
			return malformed("a refused insert went on for %d bytes", b.dropped)
		}
		return nil
	}
	if b.held+n > b.srv.cfg.MaxInsertBytes {
		b.refuse(&exception{code: codeTooLargeInsert, message: fmt.Sprintf(
			"The insert is larger than %d bytes; send fewer rows at a time", b.srv.cfg.MaxInsertBytes)})
		return nil
	}
	if b.srv.buffered.Add(n) > b.srv.cfg.MaxBufferedBytes {
		b.srv.buffered.Add(-n)
		b.refuse(&exception{code: codeMemoryLimit, message: fmt.Sprintf(
			"Inserts under way hold more than %d bytes; try again", b.srv.cfg.MaxBufferedBytes)})
		return nil
	}
	b.held += n
	if _, err := b.file.Write(span); err != nil {
		b.refuse(&exception{code: codeMemoryLimit, message: "Buffer an insert: " + err.Error()})
	}
	return nil
}

func (b *insertBuffer) refuse(err error) {
	b.refused = err
	b.srv.buffered.Add(-b.held)
	b.held = 0
	_ = b.file.Truncate(0)
}

// errCancelled ends an INSERT whose client changed its mind while sending.
var errCancelled = errors.New("cancelled")

// insert serves an INSERT that waits for blocks: header out, blocks in, and one
// statement over all of them.
func (s *session) insert(q *clientQuery, st *statement) error {
	columns, err := s.columns(q, st)
	if err != nil {
		return err
	}
	buffer, err := newInsertBuffer(s.srv)
	if err != nil {
		return err
	}
	defer buffer.close()
	arriving := s.srv.arrivals.begin(s, q)
	defer s.srv.arrivals.end(arriving)
	if err := s.sendHeader(columns); err != nil {
		return err
	}
	if err := s.flush(); err != nil {
		return err
	}
	rows, err := s.receive(columns, buffer)
	switch {
	case errors.Is(err, errCancelled):
		s.inserted(proto.Progress{})
		return nil
	case err != nil:
		return err
	case buffer.refused != nil:
		return buffer.refused
	}
	if err := s.srv.arrivals.hand(arriving); err != nil {
		return err
	}
	if rows > 0 {
		if err := s.commit(q, st, buffer); err != nil {
			return err
		}
	}
	s.inserted(proto.Progress{WroteRows: rows, WroteBytes: uint64(buffer.held)})
	return nil
}

// taken is what the last INSERT of a session was told that its table takes.
// Asking costs a small insert a tenth of its time.
type taken struct {
	columns          []column
	query            string
	schema, settings uint64 // of which time this is right
}

// columns are those that an INSERT expects.
func (s *session) columns(q *clientQuery, st *statement) ([]column, error) {
	now := taken{query: st.describe(), schema: s.srv.schema.Load(), settings: s.settings.changes}
	last := &s.takes
	known := len(q.params) == 0 && st.function == ""
	if known && last.columns != nil && last.query == now.query && last.schema == now.schema && last.settings == now.settings {
		return last.columns, nil
	}
	var err error
	if now.columns, err = s.describe(now.query, q.params); err == nil && known {
		*last = now
	}
	return now.columns, err
}

// inserted closes the answer to an INSERT, after which some clients accept no
// profile and no block.
func (s *session) inserted(p proto.Progress) {
	proto.ServerCodeProgress.Encode(&s.out)
	p.EncodeAware(&s.out, s.version)
	proto.ServerCodeEndOfStream.Encode(&s.out)
}

// commit hands the buffered rows to the engine. The client has sent everything,
// so its going away no longer matters: half an insert is worth less than a
// whole one whose answer is lost.
func (s *session) commit(q *clientQuery, st *statement, b *insertBuffer) error {
	w := s.watch(false)
	err := s.eng.exec(st.fromFile(b.path), q.params)
	if err == nil {
		err = s.srv.written()
	}
	if stopped := w.stop(); stopped != nil {
		return stopped
	}
	return err
}

// receive reads Data packets up to the empty one and returns their row count.
func (s *session) receive(columns []column, b *insertBuffer) (uint64, error) {
	var rows uint64
	for {
		code, err := s.in.byte()
		if err != nil {
			return rows, err
		}
		switch proto.ClientCode(code) {
		case proto.ClientCodeData:
		case proto.ClientCodeCancel:
			return rows, errCancelled
		default:
			return rows, malformed("packet code %d arrived amid an insert", code)
		}
		shape, err := s.clientBlock(b.keep)
		if err != nil {
			return rows, err
		}
		if shape.columns == 0 {
			return rows, nil
		}
		rows += shape.rows
		if b.refused == nil {
			if err := sameColumns(columns, s.walker.columns); err != nil {
				b.refuse(err)
			}
		}
	}
}

// sameColumns checks that a block has exactly the columns asked for, in any
// order. The engine would fill a missing one with defaults, which a server does
// not.
func sameColumns(want, got []column) error {
	if len(got) != len(want) {
		return &exception{code: codeNotFoundColumn,
			message: fmt.Sprintf("The block has %d columns, the insert takes %d", len(got), len(want))}
	}
	byName := func(a, b column) int { return strings.Compare(a.name, b.name) }
	want, got = slices.Clone(want), slices.Clone(got)
	slices.SortFunc(want, byName)
	slices.SortFunc(got, byName)
	for i := range want {
		if want[i].name != got[i].name {
			return &exception{code: codeNotFoundColumn,
				message: fmt.Sprintf("The block has a column %q where the insert takes %q", clip(got[i].name), clip(want[i].name))}
		}
	}
	return nil
}
