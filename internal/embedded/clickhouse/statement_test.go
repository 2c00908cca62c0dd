package clickhouse

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseStatement(t *testing.T) {
	f := func(q string, want statement) {
		t.Helper()
		got, err := parseStatement(q)
		if err != nil {
			t.Errorf("%s: %v", q, err)
			return
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(statement{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", q, diff)
		}
	}
	rows := func(text string) statement { return statement{text: text, streams: true, reads: true} }
	f("SELECT 1", rows("SELECT 1"))
	f("SELECT 1 FORMAT TSV", rows("SELECT 1 "))
	f("SELECT format FROM t", rows("SELECT format FROM t"))
	f("SELECT ';' -- ;\n, `;`, $x$ ; $x$", rows("SELECT ';' -- ;\n, `;`, $x$ ; $x$"))
	f("SELECT * FROM (SELECT 1 FORMAT x)", rows("SELECT * FROM (SELECT 1 FORMAT x)"))
	f("SELECT format('{}', 1)", rows("SELECT format('{}', 1)"))
	f("SELECT file FROM t WHERE outfile = 1", rows("SELECT file FROM t WHERE outfile = 1"))
	f("SELECT trim(LEADING 'a/' FROM 'abc')", rows("SELECT trim(LEADING 'a/' FROM 'abc')"))
	f("SELECT -- ‘ /* /*\n 'naïve ‘’ // /* /*', `säule`", rows("SELECT -- ‘ /* /*\n 'naïve ‘’ // /* /*', `säule`"))
	f("with 1 AS a SELECT a", rows("with 1 AS a SELECT a"))
	// What else answers with rows might change a table, for all that is known.
	f("  (SELECT 1) ; ;", statement{text: "  (SELECT 1)", streams: true})
	f("EXPLAIN SELECT 1 -- c\nFORMAT TSV", rows("SELECT * FROM (EXPLAIN SELECT 1 -- c\n\n)"))
	f("REPLACE TABLE t (a UInt8) ENGINE = Memory", statement{text: "REPLACE TABLE t (a UInt8) ENGINE = Memory", streams: true})
	f("SHOW TABLES FROM d FORMAT TSV", statement{text: "SHOW TABLES FROM d ", lists: true})
	f("desc t", statement{text: "desc t", lists: true})
	kill := func(text, kills string) statement { return statement{text: text, streams: true, kills: kills} }
	f("KILL QUERY WHERE a = 'SYNC' AND (b) ASYNC", kill("KILL QUERY WHERE a = 'SYNC' AND (b) ASYNC", "a = 'SYNC' AND (b)"))
	f("kill query where a -- b\n", kill("kill query where a", "a"))
	f("KILL QUERY ON CLUSTER c WHERE a SYNC FORMAT Null", kill("KILL QUERY ON CLUSTER c WHERE a SYNC ", "a"))
	f("KILL QUERY WHERE a TEST", kill("KILL QUERY WHERE a TEST", ""))
	f("KILL MUTATION WHERE a", kill("KILL MUTATION WHERE a", ""))
	f("DROP TABLE x SYNC", statement{text: "DROP TABLE x"})
	f("drop table x no delay;", statement{text: "drop table x"})
	f("DROP TABLE sync", statement{text: "DROP TABLE sync"})
	f("SET a = 1", statement{text: "SET a = 1", changes: true})
	f("CREATE TABLE {t:Identifier} (a UInt8) ENGINE=Memory", statement{text: "CREATE TABLE {t:Identifier} (a UInt8) ENGINE=Memory", names: true})

	wait := func(target, columns, options string) statement {
		return statement{insert: true, target: target, columns: columns, options: options}
	}
	f("INSERT INTO t VALUES", wait("t", "", ""))
	f("insert t", wait("t", "", ""))
	f("INSERT INTO TABLE `a b`.\"t\" (x, `y z`) FORMAT Native;", wait("`a b`.\"t\"", "(x, `y z`)", ""))
	f("INSERT INTO t SETTINGS a=1, b='VALUES' VALUES", wait("t", "", "SETTINGS a=1, b='VALUES'"))
	f("INSERT INTO t (* EXCEPT(b)) -- c\nVALUES", wait("t", "(* EXCEPT(b))", ""))
	f("INSERT INTO FUNCTION/**/ null('a UInt8') VALUES", statement{insert: true, target: "FUNCTION/**/ null('a UInt8')", function: "null('a UInt8')"})
	f("INSERT INTO d.{t:Identifier} VALUES", statement{insert: true, target: "d.{t:Identifier}", names: true})
	inline := func(text string) statement { return statement{text: text} }
	f("INSERT INTO t VALUES (1), (';')", inline("INSERT INTO t VALUES (1), (';')"))
	f("INSERT INTO t FORMAT CSV\n1;2\nfile('x')", inline("INSERT INTO t FORMAT CSV\n1;2\nfile('x')"))
	f("INSERT INTO t FORMAT CSV\nä;“//\n", inline("INSERT INTO t FORMAT CSV\nä;“//\n"))
	lines := "INSERT INTO t (a) FORMAT JSONEachRow\n" + strings.Repeat(`{"a": "file('x') “//"};`+"\n", 1000)
	f(lines, inline(lines))
	values := "INSERT INTO t (a) VALUES " + strings.Repeat("(1), ", 1000) + "(2)"
	f(values, inline(values))
	f("INSERT INTO format SELECT 1"+strings.Repeat(" + 1", 1000), inline("INSERT INTO format SELECT 1"+strings.Repeat(" + 1", 1000)))
	f("INSERT INTO t VALUES ('ä', '//')", inline("INSERT INTO t VALUES ('ä', '//')"))
	f("INSERT INTO t SELECT 1;", inline("INSERT INTO t SELECT 1"))
	f("INSERT INTO t (SELECT 1)", inline("INSERT INTO t (SELECT 1)"))
	f("INSERT INTO t (a) WITH 1 AS a SELECT a", inline("INSERT INTO t (a) WITH 1 AS a SELECT a"))
}

func TestParseStatementRefuses(t *testing.T) {
	f := func(q string, want int) {
		t.Helper()
		if _, err := parseStatement(q); int(exceptionCode(err)) != want {
			t.Errorf("%s: got %v; want code %d", q, err, want)
		}
	}
	f("", 62)
	f(" -- nothing", 62)
	f(";", 62)
	f("SELECT 1; DROP TABLE t", 62)
	f("INSERT INTO t SELECT 1; DROP TABLE t", 62)
	f("INSERT INTO t (a", 62)
	f("SELECT * FROM file/**/(\n'x')", 497)
	f("SELECT 1 UNION ALL SELECT * FROM FiLe('x')", 497)
	f("CREATE TABLE t (a UInt8) ENGINE = File(CSV, 'x')", 497)
	f("CREATE TABLE t ENGINE=MergeTree ORDER BY a SETTINGS disk = disk(type=local, path='/x')", 497)
	f("CREATE DICTIONARY d (a UInt8) PRIMARY KEY a SOURCE(FILE(path '/x' format CSV)) LAYOUT(FLAT())", 497)
	f("CREATE DATABASE d ENGINE = Filesystem('/')", 497)
	f("ATTACH TABLE t FROM '/x' (a UInt8) ENGINE=MergeTree ORDER BY a", 497)
	f("BACKUP TABLE t TO File('/x')", 497)
	f("SELECT 1 into /**/ outfile 'x'", 497)
	f("INSERT INTO t FROM INFILE 'x' FORMAT CSV", 497)
	f("INSERT INTO t VALUES (file('/x'))", 497)
	many := strings.Repeat(" + 1", 1000)
	f("INSERT INTO t VALUES (1"+many+"), (file('/x'))", 497)
	f("INSERT INTO t FORMAT VALUES (1"+many+"), (file('/x'))", 497)
	f("INSERT INTO format SELECT 1"+many+" FROM file('/x')", 497)
	f("INSERT INTO t SELECT format, 1"+many+", * FROM file('/x')", 497)
	f("INSERT INTO t (a"+strings.Repeat(", a", 1000)+") FORMAT CSV SELECT * FROM file('/x'", 0) // data
	f("INSERT INTO t SETTINGS a=1"+many+" SELECT * FROM file('/x')", 497)
	f("INSERT INTO t (a"+strings.Repeat(", a", 1000)+") SELECT * FROM file('/x')", 497)
	f("INSERT INTO t FORMAT `Values` (file('/x'))", 497)
	f("INSERT INTO t FORMAT \"values\" (1"+many+"), (file('/x'))", 497)
	// The library runs what stands behind an empty line.
	f("INSERT INTO t FORMAT TSV\nx\n\nSELECT * FROM file('/x')", 62)
	f("INSERT INTO t FORMAT JSONEachRow {}\n\n\n;DROP TABLE t", 62)
	f(`INSERT INTO t FORMAT JSONEachRow `+strings.Repeat("{}\n", 1000)+"\nDROP TABLE t", 62)
	f("INSERT INTO t FORMAT TSV\n\nx\n", 0)
	f("SELECT 1 WHERE 'a' = 'a'", 0)
	f("INSERT INTO t FORMAT TSV\nx\n\n \n", 0)
	f("INSERT INTO t VALUES (1); DROP TABLE t SYNC", 62)
	f("INSERT INTO t FORMAT Values (1); DROP TABLE t SYNC", 62)
	f("SELECT * FROM\u00a0file('/x')", 497)
	// What the engine's lexer may cut in another way.
	f("SELECT * FROM ‘/etc/passwd’", 62)
	f("SELECT * FROM “file”('/x')", 62)
	f("SELECT ‘'’; DROP TABLE t -- '", 62)
	f("SELECT ‘'’, * FROM file('/x') -- '", 62)
	f("SELECT 1−file('/x')", 62)
	f("SELECT * /* /* */ ' */ FROM file('/x') -- '", 62)
	f("SELECT * // '\nFROM file('/x') // '", 62)
	f("SELECT $'$ ' $'$, * FROM file('/x') --'", 62)
	f("INSERT INTO FUNCTION file('/x', CSV, 'a UInt8') VALUES", 497)
	f("SELECT * FROM default.`/etc/passwd`", 497)
	f("SELECT * FROM t JOIN `../../x` USING a", 497)
	f("SELECT * FROM '/etc/passwd'", 497)
}

// The parser must neither panic nor hand the engine more than one statement.
func FuzzParseStatement(f *testing.F) {
	for _, q := range []string{
		"SELECT 1; SELECT 2", "INSERT INTO t (a) VALUES", "INSERT INTO FUNCTION f(", "INSERT INTO d.{t:Identifier} (", "DROP TABLE x SYNC",
		"SELECT 'a\\' /* `", "$a$ ; $a$", "INSERT", "INSERT INTO", "SET a=1", "SELECT 1 FORMAT", "{", "/*", "--", "))((",
	} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, q string) {
		st, err := parseStatement(q)
		if err != nil {
			return
		}
		if st.insert {
			_ = st.describe()
			_ = st.fromFile("/proc/self/fd/9")
			return
		}
		if st.text == "" {
			t.Errorf("%q: an empty statement for the engine", q)
		}
	})
}
