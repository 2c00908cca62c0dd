package clickhouse

import (
	"errors"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
)

// query serves one Query packet. An exception goes to the client and leaves the
// session alive; any other error ends it.
func (s *session) query() error {
	q, err := decodeQuery(s.in, s.version)
	if err != nil {
		return err
	}
	s.zip, s.skipping = s.compressor(&q), false
	external, err := s.externalTables()
	if err != nil {
		return err
	}
	if external > 0 {
		err = &exception{code: codeNotImplemented, message: "External tables are not supported; use a temporary table"}
	} else {
		err = s.execute(&q)
	}
	var e *exception
	if err != nil && !errors.As(err, &e) {
		return err
	}
	if err != nil {
		s.sendException(err)
		s.skipping = true
	}
	if ferr := s.flush(); ferr != nil {
		return ferr
	}
	if errors.Is(err, errStuck) {
		return err
	}
	return nil
}

// externalTables walks past the Data packets that follow a query, the empty one
// that ends them included, and counts the rest.
func (s *session) externalTables() (int, error) {
	for n := 0; ; n++ {
		code, err := s.in.byte()
		if err != nil {
			return n, err
		}
		if proto.ClientCode(code) != proto.ClientCodeData {
			return n, malformed("packet code %d follows a query instead of its data", code)
		}
		shape, err := s.clientBlock(discard)
		if err != nil {
			return n, err
		}
		if shape.columns == 0 {
			return n, nil
		}
	}
}

// skipBlock drops a block of an INSERT that has failed already: a client may send
// its rows before it has read the exception.
func (s *session) skipBlock() error {
	if !s.skipping {
		return malformed("a block arrived outside a query")
	}
	shape, err := s.clientBlock(discard)
	s.skipping = shape.columns > 0
	return err
}

func discard([]byte) error { return nil }

// clientBlock walks the Data packet whose code has been read and passes its
// block to keep in the library's revision.
func (s *session) clientBlock(keep func([]byte) error) (blockShape, error) {
	if _, err := s.in.string(maxName); err != nil { // table name
		return blockShape{}, err
	}
	c := s.in
	if s.zip != nil {
		if s.unzipped == nil {
			s.frames = newFrameReader(s.in)
			s.unzipped = newCursor(s.frames, windowSize)
		}
		c = s.unzipped
	}
	if err := walkInfo(c); err != nil {
		return blockShape{}, err
	}
	flag := flagNone
	if proto.FeatureCustomSerialization.In(s.version) {
		flag = flagDrop
	}
	c.keep = keep
	shape, err := s.walker.block(c, flag)
	c.keeping = false
	if err != nil {
		var e *exception
		if errors.As(err, &e) {
			// The end of a block with such a column cannot be found.
			return shape, malformed("%s", e.message)
		}
		return shape, err
	}
	if s.zip != nil && (c.r != c.w || s.frames.left != 0) {
		return shape, malformed("a block ends inside a compressed frame")
	}
	return shape, nil
}

func (s *session) execute(q *clientQuery) error {
	st, err := parseStatement(q.body)
	if err != nil {
		return err
	}
	if st.names {
		for _, p := range q.params {
			if strings.ContainsAny(p.value, `/\`) {
				return refusedFile("name " + clip(p.value))
			}
		}
	}
	if st.changes {
		// The settings of a SET would only hide what it does to the session.
		err = s.settings.apply(nil)
	} else {
		err = s.settings.apply(q.settings)
	}
	switch {
	case err != nil:
		return err
	case st.insert:
		return s.insert(q, &st)
	case st.kills != "":
		if err := s.killArrivals(st.kills, q.params); err != nil {
			return err
		}
	case !st.reads:
		defer s.srv.schema.Add(1) // whatever became of it
	}
	if st.streams {
		return s.rows(q, &st)
	}
	return s.command(q, &st)
}

// command runs a statement that the stream interface refuses. Rows are only asked
// for when it lists something: no more of them than the schema has names, and a
// client that sends KILL as a command takes none.
func (s *session) command(q *clientQuery, st *statement) error {
	format := "Null"
	if st.lists {
		format = "Native"
	}
	w := s.watch(true)
	blocks, err := s.eng.rows(st.text, format, q.params)
	if err == nil {
		err = s.srv.written()
	}
	if stopped := w.stop(); stopped != nil {
		return stopped
	}
	if st.changes {
		s.settings.forget()
	}
	if st.moves && err == nil {
		s.database, err = s.eng.text("SELECT currentDatabase() SETTINGS limit=0, offset=0")
	}
	if err != nil && !(w.cancelled.Load() && exceptionCode(err) == codeQueryCancelled) {
		return err
	}
	if err := s.sendBlocks(blocks); err != nil {
		return err
	}
	return s.finish(proto.Progress{})
}

// sendBlocks sends a header and the blocks that stand one behind the other in p.
func (s *session) sendBlocks(p []byte) error {
	for first := true; len(p) > 0; first = false {
		c := over(p)
		if _, err := s.walker.block(c, flagNone); err != nil {
			return err
		}
		if first {
			if err := s.sendHeader(s.walker.columns); err != nil {
				return err
			}
		}
		if err := s.sendBlock(p[:c.r]); err != nil {
			return err
		}
		p = p[c.r:]
	}
	return nil
}

// finish closes a successful answer.
func (s *session) finish(p proto.Progress) error {
	proto.Profile{}.EncodeAware(&s.out, s.version)
	proto.ServerCodeProgress.Encode(&s.out)
	p.EncodeAware(&s.out, s.version)
	if err := s.sendBlock(emptyBlock); err != nil {
		return err
	}
	proto.ServerCodeEndOfStream.Encode(&s.out)
	return nil
}

// emptyBlock has no columns and no rows.
var emptyBlock = []byte{0, 0}

// rows runs a statement that may answer with rows and sends them as they come.
func (s *session) rows(q *clientQuery, st *statement) error {
	w := s.watch(true)
	sent, p, err := s.sendRows(q, st, w)
	if stopped := w.stop(); stopped != nil {
		return stopped
	}
	var e *exception
	switch {
	case err != nil && !errors.As(err, &e):
		return err
	case err != nil && w.cancelled.Load() && e.code == codeQueryCancelled:
		// A client that cancelled waits for the end, not for an error.
	case err != nil && e.code == codeNotASelect && sent == 0 && notStreamable(e):
		return s.command(q, st)
	case err != nil:
		return err
	case sent == 0 && !w.cancelled.Load():
		if err := s.emptyHeader(q, st); err != nil {
			return err
		}
	}
	return s.finish(p)
}

// notStreamable tells the stream interface's own refusal of a statement without
// rows from a query's BAD_ARGUMENTS.
func notStreamable(e *exception) bool {
	return strings.Contains(strings.ToLower(e.message), "stream")
}

// sendRows sends a header and every block; sent counts them.
func (s *session) sendRows(q *clientQuery, st *statement, w *watch) (sent int, p proto.Progress, err error) {
	rows, err := s.eng.stream(st.text, q.params)
	if err != nil {
		return 0, p, err
	}
	defer rows.close()
	for !w.cancelled.Load() && !w.gone.Load() {
		block, err := rows.next()
		if err != nil {
			return sent, p, err
		}
		if block == nil {
			break
		}
		if sent == 0 {
			if _, err := s.walker.block(over(block), flagNone); err != nil {
				return 0, p, err
			}
			if err := s.sendHeader(s.walker.columns); err != nil {
				return 0, p, err
			}
		}
		if err := s.sendBlock(block); err != nil {
			return sent, p, err
		}
		sent++
		if err := s.flush(); err != nil {
			return sent, p, err
		}
	}
	p.Rows, p.Bytes = rows.rowsRead, rows.bytesRead
	return sent, p, nil
}

// emptyHeader names the columns of an empty result, of which the library says
// nothing at all. Only what fits into a subquery can be asked; for the rest
// the client gets a result without columns, as for an empty SHOW TABLES.
func (s *session) emptyHeader(q *clientQuery, st *statement) error {
	columns, err := s.describe("DESCRIBE ("+st.text+"\n)", q.params)
	var e *exception
	if errors.As(err, &e) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.sendHeader(columns)
}

// describe runs a DESCRIBE and returns the names and types it lists, at least one.
func (s *session) describe(sql string, params []parameter) ([]column, error) {
	p, err := s.eng.query(sql, params)
	if err != nil {
		return nil, err
	}
	c := over(p)
	const fields = 7 // name, type, default type, default, comment, codec, TTL
	var columns []column
	for c.r < c.w {
		var row [fields]string
		for i := range row {
			if row[i], err = c.string(uint64(len(p))); err != nil {
				return nil, err
			}
		}
		columns = append(columns, column{row[0], row[1]})
	}
	if len(columns) == 0 {
		// The library gives no other sign of it. A header without columns would keep
		// the client waiting for another.
		return nil, &exception{code: codeQueryCancelled, message: "Query was cancelled: it was killed while it looked at a table"}
	}
	return columns, nil
}
