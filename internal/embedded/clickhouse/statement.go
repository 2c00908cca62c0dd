package clickhouse

import (
	"cmp"
	"math"
	"strings"
)

// A statement is what the session has to know about a query before the engine
// sees it: whether rows come back, whether the client sends rows, and the text
// with the parts taken out that mean something else inside a library.
type statement struct {
	text    string // for the engine
	streams bool   // may answer with rows: goes to the stream interface first
	lists   bool   // SHOW, DESCRIBE, EXISTS: answers with rows, which do not stream
	changes bool   // SET: what is remembered about session settings is stale
	moves   bool   // USE: the current database is another
	reads   bool   // SELECT: what is remembered about tables stays right
	names   bool   // has {x:Identifier} parameters, which may name a table
	kills   string // the condition of a KILL QUERY

	insert   bool   // the client sends the rows as Data packets
	target   string // `db.t` or `FUNCTION f(…)` as written
	function string // that `f(…)`, or ""
	columns  string // `(a, b)` as written, or ""
	options  string // `SETTINGS …` as written, or ""
}

// A scanner looks at a statement's tokens.
type scanner struct {
	q      string
	tokens []token
	brings bool // an INSERT brings rows along that are no SQL
}

// headTokens are looked at first: an INSERT may bring megabytes of JSON along, and tokens
// of it would take ten times as much memory.
const headTokens = 256

func (s *scanner) text(i int) string {
	if i < 0 || i >= len(s.tokens) {
		return ""
	}
	return s.q[s.tokens[i].start:s.tokens[i].end]
}

// is reports whether token i is the bare keyword.
func (s *scanner) is(i int, keyword string) bool {
	return i >= 0 && i < len(s.tokens) && s.tokens[i].kind == tokenWord && strings.EqualFold(s.text(i), keyword)
}

func (s *scanner) isWord(i int) bool { return i < len(s.tokens) && s.tokens[i].kind == tokenWord }

func (s *scanner) isPunct(i int, c string) bool {
	return i >= 0 && i < len(s.tokens) && s.tokens[i].kind == tokenPunct && s.text(i) == c
}

func (s *scanner) isOneOf(i int, keywords ...string) bool {
	for _, k := range keywords {
		if s.is(i, k) {
			return true
		}
	}
	return false
}

// past returns the index after the parenthesis that closes the one at i.
func (s *scanner) past(i int) int {
	depth := s.tokens[i].depth
	for i++; i < len(s.tokens); i++ {
		if s.isPunct(i, ")") && s.tokens[i].depth == depth {
			return i + 1
		}
	}
	return i
}

// parseStatement classifies and cleans one query, or refuses it.
func parseStatement(q string) (statement, error) {
	if s := (&scanner{q: q, tokens: lex(q, headTokens)}); len(s.tokens) == headTokens && s.is(0, "INSERT") {
		if st, err := s.parseInsert(); s.brings {
			return st, err
		}
	}
	s := &scanner{q: q, tokens: lex(q, math.MaxInt)}
	if len(s.tokens) == 0 {
		return statement{}, &exception{code: codeSyntaxError, message: "Syntax error: empty query"}
	}
	if s.is(0, "INSERT") {
		return s.parseInsert()
	}
	if err := s.oneStatement(); err != nil {
		return statement{}, err
	}
	if err := s.refuseServerFiles(len(s.tokens)); err != nil {
		return statement{}, err
	}
	st := statement{text: q, names: s.hasIdentifierParameter()}
	switch {
	case s.isOneOf(0, "DROP", "DETACH"):
		st.text = s.withoutSync()
	case s.is(0, "SET"):
		st.changes = true
	case s.is(0, "USE"):
		st.moves = true
	case s.isOneOf(0, "CREATE", "ALTER", "ATTACH", "RENAME", "EXCHANGE", "TRUNCATE", "OPTIMIZE",
		"SYSTEM", "GRANT", "REVOKE", "DELETE", "UPDATE", "UNDROP", "MOVE", "BEGIN", "COMMIT", "ROLLBACK"):
	default:
		// KILL and CHECK answer with rows too.
		st.reads = s.isOneOf(0, "SELECT", "WITH")
		st.lists = s.isOneOf(0, "SHOW", "DESCRIBE", "DESC", "EXISTS")
		st.streams = !st.lists
		st.kills = s.killCondition()
		st.text = s.withoutFormat()
		if s.is(0, "EXPLAIN") {
			// The stream interface runs it and answers nothing.
			st.text = "SELECT * FROM (" + st.text + "\n)"
			st.reads = true
		}
	}
	return st, nil
}

// oneStatement refuses `a; b`: the library would run both and answer for one.
func (s *scanner) oneStatement() error {
	n := len(s.tokens)
	for n > 0 && s.isPunct(n-1, ";") {
		n--
	}
	s.tokens = s.tokens[:n]
	if n == 0 {
		return &exception{code: codeSyntaxError, message: "Syntax error: empty query"}
	}
	s.q = s.q[:s.tokens[n-1].end]
	for i := range s.tokens {
		if s.isPunct(i, ";") {
			return &exception{code: codeSyntaxError, message: "Syntax error: multi-statements are not allowed"}
		}
	}
	return nil
}

// fileFunctions reach the server's own files or start programs on it. A
// ClickHouse server confines them to a directory; the library does not.
var fileFunctions = map[string]bool{
	"file": true, "filecluster": true, "filesystem": true, "executable": true, "executablepool": true,
	"sqlite": true, "hdfs": true, "hdfscluster": true, "python": true, "disk": true,
	"iceberglocal": true, "deltalakelocal": true, "paimonlocal": true, "hudilocal": true,
}

// fileSettings name a file that the engine reads or writes, or hold SQL, which may name one.
var fileSettings = map[string]bool{
	"format_template_row": true, "format_template_resultset": true, "format_schema": true, "format_schema_source": true,
	"output_format_schema": true, "input_format_record_errors_file_path": true,
	"additional_table_filters": true, "additional_result_filter": true,
}

// refuseServerFiles looks at the first n tokens for the ways a query could read
// or write the server's files: table functions and engines, INTO OUTFILE, FROM
// INFILE, and a table named like a path (the library's default database falls
// back to the file system). What may be one of them without looking so is foreign.
func (s *scanner) refuseServerFiles(n int) error {
	for i := range n {
		switch s.tokens[i].kind {
		case tokenForeign:
			return &exception{code: codeSyntaxError, message: "Syntax error: " + clip(s.text(i)) + " outside of quotes"}
		case tokenWord:
			name := s.name(i)
			if fileSettings[name] {
				return refusedFile("setting " + name)
			}
			if s.isPunct(i+1, "(") && fileFunctions[name] {
				return refusedFile("function or engine " + s.text(i))
			}
			if s.is(i, "OUTFILE") && s.is(i-1, "INTO") || s.is(i, "INFILE") && s.is(i-1, "FROM") {
				return refusedFile(s.text(i-1) + " " + s.text(i))
			}
			if s.is(i, "FROM") && s.is(0, "ATTACH") && i+1 < n && s.tokens[i+1].kind == tokenString {
				return refusedFile("ATTACH … FROM a path")
			}
		case tokenQuoted:
			name := s.name(i)
			if fileSettings[name] || s.isPunct(i+1, "(") && fileFunctions[name] ||
				strings.HasPrefix(name, "/") || strings.Contains(name, "../") || strings.Contains(name, `\`) {
				return refusedFile("name " + clip(s.text(i)))
			}
		case tokenString:
			switch s.name(i - 1) {
			case "from", "join", "table", "into":
				// The library takes a literal there for a file name; trim(… FROM 'x') is fine.
				if strings.Contains(s.text(i), "/") {
					return refusedFile("name " + clip(s.text(i)))
				}
			case "query", "invalidate_query", "where":
				// A dictionary's source may be a text of SQL.
				if s.isOneOf(0, "CREATE", "ATTACH", "REPLACE") {
					return refusedFile("SQL in quotes after " + s.text(i-1))
				}
			}
		}
	}
	return nil
}

// name is the text of token i in lower case: a dictionary's keys may stand in quotes.
func (s *scanner) name(i int) string { return strings.ToLower(strings.Trim(s.text(i), "`\"")) }

func (s *scanner) hasIdentifierParameter() bool {
	for i := range s.tokens {
		if s.isPunct(i, "{") && s.is(i+3, "Identifier") {
			return true
		}
	}
	return false
}

func refusedFile(what string) error {
	return &exception{code: codeAccessDenied, message: "This server does not touch files for its clients: " + what + " is refused"}
}

// withoutSync drops the SYNC of a DROP or DETACH: inside the library nothing works off
// the queue it would wait for, so it would wait for ever.
func (s *scanner) withoutSync() string {
	n := len(s.tokens)
	switch {
	case s.isPunct(n-2, ".") || s.isOneOf(n-2, "TABLE", "VIEW", "DICTIONARY", "DATABASE", "EXISTS"):
		// That is a table called sync.
	case s.is(n-1, "SYNC"):
		n--
	case s.is(n-1, "DELAY") && s.is(n-2, "NO"):
		n -= 2
	}
	return s.q[:s.tokens[max(n-1, 0)].end]
}

// killCondition returns what a KILL QUERY that kills says after WHERE.
func (s *scanner) killCondition() string {
	if !s.is(0, "KILL") || !s.is(1, "QUERY") {
		return ""
	}
	where := 2
	for where < len(s.tokens) && !(s.is(where, "WHERE") && s.tokens[where].depth == 0) {
		where++
	}
	end, mode := len(s.tokens), ""
	for i := len(s.tokens) - 1; i > where; i-- {
		switch {
		case s.tokens[i].depth > 0:
		case s.is(i, "FORMAT") && s.isWord(i+1), s.is(i, "SETTINGS") && s.isWord(i+1) && s.text(i+2) == "=":
			end = i // that is not the function, or the column
		case s.isOneOf(i, "SYNC", "ASYNC", "TEST") && i+1 == end:
			end, mode = i, s.text(i)
		}
	}
	if strings.EqualFold(mode, "TEST") {
		return ""
	}
	return s.slice(where+1, end)
}

// withoutFormat drops `FORMAT x`: over the native protocol the client formats.
func (s *scanner) withoutFormat() string {
	for i := len(s.tokens) - 1; i > 0; i-- {
		if !s.is(i, "FORMAT") || s.tokens[i].depth != 0 || !s.isWord(i+1) {
			continue
		}
		if i+2 == len(s.tokens) || s.is(i+2, "SETTINGS") {
			return s.q[:s.tokens[i].start] + s.q[s.tokens[i+1].end:]
		}
	}
	return s.q
}

// parseInsert tells an INSERT that waits for the client's blocks from one that
// brings its rows along (inline values, SELECT), which the engine takes as is.
func (s *scanner) parseInsert() (statement, error) {
	i := 1
	if s.is(i, "INTO") {
		i++
	}
	if s.is(i, "TABLE") {
		i++
	}
	start := i
	function := s.is(i, "FUNCTION") && !s.isPunct(i+1, ".")
	if function {
		i++
	}
	for i++; s.isPunct(i, "."); i += 2 {
	}
	if i-1 < len(s.tokens) && s.isPunct(i-1, "{") { // {name:Identifier}
		for i < len(s.tokens) && !s.isPunct(i-1, "}") {
			i++
		}
	}
	if function && s.isPunct(i, "(") {
		i = s.past(i)
	}
	st := statement{insert: true, target: s.slice(start, i), names: s.hasIdentifierParameter()}
	if function {
		st.function = s.slice(start+1, i)
	}
	if s.isPunct(i, "(") && !s.isOneOf(i+1, "SELECT", "WITH") && !s.isPunct(i+1, "(") {
		from := i
		i = s.past(i)
		if !s.isPunct(i-1, ")") {
			return statement{}, &exception{code: codeSyntaxError, message: "Syntax error: the column list of the INSERT is not closed"}
		}
		st.columns = s.slice(from, i)
	}
	if s.is(i, "SETTINGS") {
		from := i
		for i < len(s.tokens) && !s.isOneOf(i, "VALUES", "FORMAT", "SELECT", "WITH", "FROM") && !s.isPunct(i, ";") {
			i++
		}
		st.options = s.slice(from, i)
	}
	return s.finishInsert(st, i)
}

func (s *scanner) finishInsert(st statement, i int) (statement, error) {
	data := i // first token of inline rows
	sql := len(s.tokens)
	switch {
	case s.is(i, "VALUES"):
		data = i + 1
	case s.is(i, "FORMAT"):
		data = i + 2
		if s.isWord(i+1) && !s.is(i+1, "VALUES") { // which may stand in quotes
			sql = min(data, sql) // what follows is data, not SQL
			s.brings = data < len(s.tokens)-1
			if data < len(s.tokens) && goesOn(s.q[s.tokens[i+1].end:]) {
				return statement{}, &exception{code: codeSyntaxError, message: "Syntax error: an empty line ends the rows of an INSERT, and nothing may follow it"}
			}
		}
	}
	for s.isPunct(data, ";") && data == len(s.tokens)-1 {
		s.tokens = s.tokens[:data]
		sql = min(sql, data)
	}
	if err := s.refuseServerFiles(sql); err != nil {
		return statement{}, err
	}
	if st.target != "" && data >= len(s.tokens) {
		return st, nil
	}
	if sql == len(s.tokens) { // INSERT … SELECT, or VALUES
		if err := s.oneStatement(); err != nil {
			return statement{}, err
		}
	}
	return statement{text: s.q, names: st.names}, nil
}

// goesOn tells whether there is more after the rows: the library ends them at the first empty
// line, and runs what follows as a statement. The line break after the format's name is none
// of theirs.
func goesOn(rows string) bool {
	rows = strings.TrimLeft(rows, " \t\f")
	rows = strings.TrimPrefix(strings.TrimPrefix(rows, "\r"), "\n")
	_, rest, _ := strings.Cut(rows, "\n\n")
	return strings.TrimSpace(rest) != ""
}

func (s *scanner) slice(i, j int) string {
	j = min(j, len(s.tokens))
	if i >= j {
		return ""
	}
	return s.q[s.tokens[i].start:s.tokens[j-1].end]
}

// describe is the query that names the columns an INSERT expects: it leaves out
// MATERIALIZED and ALIAS columns and resolves table functions, as a server does.
func (st *statement) describe() string {
	cols := "*"
	if st.columns != "" {
		cols = st.columns[1 : len(st.columns)-1]
	}
	return "DESCRIBE (SELECT " + cols + " FROM " + cmp.Or(st.function, st.target) + ")"
}

// fromFile is the INSERT that reads its rows from path.
func (st *statement) fromFile(path string) string {
	return "INSERT INTO " + st.target + " " + st.columns + " FROM INFILE '" + path + "' " + st.options + " FORMAT Native"
}
