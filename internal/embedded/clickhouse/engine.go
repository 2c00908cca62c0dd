package clickhouse

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"unsafe"
)

// An engine is ClickHouse inside this process, on one data directory.
type engine struct {
	lib  *library
	argv []string
	// admin holds the engine open while no client is connected, and kills the
	// queries of others: a session's own connection is busy with the query.
	admin *engineConn

	mu sync.Mutex // one statement at a time on admin
}

// openEngine starts the engine; every later connection must name the same path.
func openEngine(lib *library, argv []string) (*engine, error) {
	e := &engine{lib: lib, argv: argv}
	admin, err := e.connect("admin")
	if err != nil {
		return nil, err
	}
	e.admin = admin
	return e, nil
}

// close shuts the engine down. All other connections must be closed before.
func (e *engine) close() { e.admin.close() }

// sessionDefaults differ from the library's own: async_insert would answer
// before the rows are in a part; introspection functions are the library's idea
// of a local user; implicit_select would take a typing error for a query.
const sessionDefaults = "SET async_insert=0, allow_introspection_functions=0, implicit_select=0, "

// tagSetting carries the session's tag into system.processes, where kill finds
// it. Custom settings are off in the library, log_comment belongs to the client,
// and this one has no effect: it filters server logs, which are never sent.
const tagSetting = "send_logs_source_regexp"

func (e *engine) connect(tag string) (*engineConn, error) {
	conn, err := e.lib.open(e.argv)
	if err != nil {
		return nil, fmt.Errorf("connect to the engine: %w", err)
	}
	c := &engineConn{lib: e.lib, owner: conn, handle: *(*unsafe.Pointer)(conn), tag: tag}
	if err := c.exec(sessionDefaults+tagSetting+"="+quote(tag), nil); err != nil {
		c.close()
		return nil, fmt.Errorf("set up an engine session: %w", err)
	}
	return c, nil
}

// kill asks the query of the session tagged so to stop. It returns at once and
// is not heard when the query has not registered yet: repeat until it ended.
func (e *engine) kill(tag string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.admin.exec("KILL QUERY WHERE Settings['"+tagSetting+"']="+quote(tag)+" ASYNC", nil)
}

// quote makes a string literal.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// A parameter is a query parameter in the engine's Escaped form.
type parameter struct{ name, value string }

// An engineConn is one session with the engine: its current database, settings
// and temporary tables. One goroutine at a time may use it.
type engineConn struct {
	lib    *library
	owner  unsafe.Pointer // chdb_connection *, which close wants
	handle unsafe.Pointer // chdb_connection, which queries want
	tag    string

	settling bool
}

func (c *engineConn) close() {
	if c.owner != nil {
		c.lib.close(c.owner)
		c.owner, c.handle = nil, nil
	}
}

// callArgs keeps what a call points at in one place, so that one KeepAlive
// holds it all.
type callArgs struct {
	sql, format         string
	names, values       []*byte
	nameLens, valueLens []uintptr
}

func newCallArgs(sql, format string, params []parameter) *callArgs {
	a := &callArgs{sql: sql, format: format}
	for _, p := range params {
		// The library refuses the null pointer that an empty string may be.
		a.names = append(a.names, unsafe.StringData(p.name+"\x00"))
		a.nameLens = append(a.nameLens, uintptr(len(p.name)))
		a.values = append(a.values, unsafe.StringData(p.value+"\x00"))
		a.valueLens = append(a.valueLens, uintptr(len(p.value)))
	}
	return a
}

type queryFunc = func(conn, sql unsafe.Pointer, sqlLen uintptr, format unsafe.Pointer, formatLen uintptr,
	names, nameLens, values, valueLens unsafe.Pointer, count uintptr) unsafe.Pointer

func (c *engineConn) call(fn queryFunc, sql, format string, params []parameter) (unsafe.Pointer, error) {
	a := newCallArgs(sql, format, params)
	r := fn(c.handle,
		unsafe.Pointer(unsafe.StringData(a.sql)), uintptr(len(a.sql)),
		unsafe.Pointer(unsafe.StringData(a.format)), uintptr(len(a.format)),
		unsafe.Pointer(unsafe.SliceData(a.names)), unsafe.Pointer(unsafe.SliceData(a.nameLens)),
		unsafe.Pointer(unsafe.SliceData(a.values)), unsafe.Pointer(unsafe.SliceData(a.valueLens)),
		uintptr(len(a.names)))
	runtime.KeepAlive(a)
	if r == nil {
		return nil, &exception{code: codeUnknown, message: "The engine gave no answer"}
	}
	if text := c.lib.failure(r); text != "" {
		c.lib.destroy(r)
		c.settle()
		return nil, parseException(text)
	}
	return r, nil
}

// settle makes the library let go of a query that failed: until the connection's
// next statement it stays in system.processes and keeps its locks on tables,
// and an idle client may not send one for hours.
func (c *engineConn) settle() {
	if c.settling {
		return
	}
	c.settling = true
	defer func() { c.settling = false }()
	_ = c.exec("SET "+tagSetting+"="+quote(c.tag), nil)
}

// exec runs a statement to its end and drops its rows.
func (c *engineConn) exec(sql string, params []parameter) error {
	_, err := c.rows(sql, "Null", params)
	return err
}

// query runs a statement and returns its rows in RowBinary.
func (c *engineConn) query(sql string, params []parameter) ([]byte, error) {
	return c.rows(sql, "RowBinary", params)
}

// rows runs a statement and returns its rows in a format. For small answers: all
// of it is in memory, twice for a moment.
func (c *engineConn) rows(sql, format string, params []parameter) ([]byte, error) {
	r, err := c.call(c.lib.query, sql, format, params)
	if err != nil {
		return nil, err
	}
	defer c.lib.destroy(r)
	return append([]byte(nil), c.bytes(r)...), nil
}

// text runs a query for one string.
func (c *engineConn) text(sql string) (string, error) {
	row, err := c.query(sql, nil)
	if err != nil {
		return "", err
	}
	return over(row).string(uint64(len(row)))
}

func (c *engineConn) bytes(r unsafe.Pointer) []byte {
	n := c.lib.length(r)
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(c.lib.buffer(r)), n)
}

// A resultStream yields a query's blocks one by one, computed as they are
// fetched. It must be closed: an abandoned one poisons its connection.
type resultStream struct {
	c     *engineConn
	h     unsafe.Pointer
	chunk unsafe.Pointer
	ended bool // drained
	fails bool // fetching failed

	rowsRead, bytesRead uint64
}

func (c *engineConn) stream(sql string, params []parameter) (*resultStream, error) {
	h, err := c.call(c.lib.stream, sql, "Native", params)
	if err != nil {
		return nil, err
	}
	return &resultStream{c: c, h: h}, nil
}

// next returns the next block in Native format, valid until the next call, or
// nil after the last.
func (s *resultStream) next() ([]byte, error) {
	s.release()
	s.chunk = s.c.lib.fetch(s.c.handle, s.h)
	if s.chunk == nil {
		s.ended = true
		return nil, nil
	}
	if text := s.c.lib.failure(s.chunk); text != "" {
		s.fails = true
		return nil, parseException(text)
	}
	s.rowsRead, s.bytesRead = s.c.lib.rowsRead(s.chunk), s.c.lib.bytesRead(s.chunk)
	p := s.c.bytes(s.chunk)
	s.ended = p == nil
	return p, nil
}

func (s *resultStream) release() {
	if s.chunk != nil {
		s.c.lib.destroy(s.chunk)
		s.chunk = nil
	}
}

func (s *resultStream) close() {
	s.release()
	if !s.ended {
		s.c.lib.cancel(s.c.handle, s.h)
	}
	s.c.lib.destroy(s.h)
	if s.fails {
		s.c.settle()
	}
}
