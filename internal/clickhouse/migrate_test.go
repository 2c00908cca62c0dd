package clickhouse

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"edge/migrations"
)

// schema is every table and view of the database, without its name.
func schema(t *testing.T, p *Pool) []string {
	t.Helper()
	rows, err := p.Strings(testContext(t), `SELECT s FROM (
		SELECT concat(name, ' ', engine_full, ' ', replaceAll(as_select, currentDatabase(), '')) AS s FROM system.tables WHERE database = currentDatabase()
		UNION ALL SELECT concat(table, '.', name, ' ', type, ' ', compression_codec) AS s FROM system.columns WHERE database = currentDatabase()
	) ORDER BY s`)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestMigrateTwice(t *testing.T) {
	t.Parallel()
	for _, exclusive := range []bool{false, true} {
		o := database(t)
		m := options()
		m.Exclusive = exclusive
		migrate(t, o, m)
		p := open(t, o)
		before := schema(t, p)
		if all := strings.Join(before, "\n"); !strings.Contains(all, "events_users_mv ") || strings.Contains(all, lockPrefix) {
			t.Errorf("the schema is %s", all)
		}
		at := row(t, p, "SELECT max(metadata_modification_time) FROM system.tables WHERE database = currentDatabase()")
		migrate(t, o, m)
		if diff := cmp.Diff(before, schema(t, p)); diff != "" {
			t.Error(diff)
		}
		if again := row(t, p, "SELECT max(metadata_modification_time) FROM system.tables WHERE database = currentDatabase()"); again != at {
			t.Errorf("the second run changed a table at %s", again)
		}
		if n := row(t, p, "SELECT count() FROM schema_migrations"); n != fmt.Sprint(count(t)) {
			t.Errorf("%s migrations are recorded", n)
		}
	}
}

func count(t *testing.T) int {
	names, err := fs.Glob(migrations.FS, "*.up.sql")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// files adds numbered files to the real ones.
func files(t *testing.T, more ...string) fstest.MapFS {
	t.Helper()
	out := fstest.MapFS{}
	names, err := fs.Glob(migrations.FS, "*.up.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := fs.ReadFile(migrations.FS, name)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = &fstest.MapFile{Data: text}
	}
	for i, text := range more {
		out[fmt.Sprintf("%03d_more.up.sql", len(names)+i+1)] = &fstest.MapFile{Data: []byte(text)}
	}
	return out
}

// A start with nothing to do creates nothing: on a cluster whose name nobody
// knows it would fail.
func TestMigratedClusterNeedsNoDDL(t *testing.T) {
	t.Parallel()
	o := database(t)
	migrate(t, o, options())
	m := options()
	m.Cluster = "of-which-a-server-is-down"
	migrate(t, o, m)
}

func TestManyMigrators(t *testing.T) {
	t.Parallel()
	o := database(t)
	m := options()
	// Not safe to run twice, so that a second run shows.
	m.Files = files(t, "CREATE TABLE runs (x UInt8) ENGINE = MergeTree ORDER BY x;\nINSERT INTO runs SELECT 1;\n")
	m.TTL = 10000 * time.Hour
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := Migrate(testContext(t), o, m); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	p := open(t, o)
	if n := row(t, p, "SELECT count() FROM runs"); n != "1" {
		t.Errorf("the last migration ran %s times", n)
	}
	if n := row(t, p, "SELECT count() FROM schema_migrations"); n != fmt.Sprint(count(t)+1) {
		t.Errorf("%s rows in schema_migrations", n)
	}
	if n := row(t, p, "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name LIKE '%lock%'"); n != "0" {
		t.Errorf("%s locks are left", n)
	}
}

func TestServerDecidesHowRowsAreCompressed(t *testing.T) {
	t.Parallel()
	o := database(t)
	migrate(t, o, options())
	p := open(t, o)
	const codecs = "SELECT arrayStringConcat(arraySort(groupUniqArray(compression_codec)), ', ') FROM system.columns" +
		" WHERE database = currentDatabase() AND compression_codec != '' AND "
	if got := row(t, p, codecs+"table = 'events'"); got != "CODEC(Default), CODEC(Delta(8), Default)" {
		t.Errorf("columns of events have %s", got)
	}
	if got := row(t, p, codecs+"table = 'events_users' AND name = 'u'"); got != "CODEC(LZ4)" {
		t.Errorf("states have %s", got)
	}
}

func TestMergesAddNoStatistics(t *testing.T) {
	t.Parallel()
	o := database(t)
	migrate(t, o, options())
	p := open(t, o)
	const left = "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name LIKE 'events%' AND engine LIKE '%MergeTree' AND "
	if n := row(t, p, left+"position(engine_full, 'auto_statistics_types = \\'\\'') = 0"); n != "0" {
		t.Errorf("%s tables get statistics", n)
	}
	// One that somebody wants them for keeps them, one that has none set does not.
	if err := p.Exec(testContext(t), "ALTER TABLE events MODIFY SETTING auto_statistics_types = 'uniq'"); err != nil {
		t.Fatal(err)
	}
	if err := p.Exec(testContext(t), "ALTER TABLE events_1m RESET SETTING auto_statistics_types"); err != nil {
		t.Fatal(err)
	}
	if err := (runner{p, options()}).dropStatistics(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if n := row(t, p, left+"position(engine_full, 'auto_statistics_types = \\'\\'') > 0"); n != "2" {
		t.Errorf("%s tables get no statistics; want 2", n)
	}
	if n := row(t, p, left+"position(engine_full, 'uniq') > 0"); n != "1" {
		t.Errorf("%s tables have what was set by hand; want 1", n)
	}
}

func TestChangedMigrationIsRefused(t *testing.T) {
	t.Parallel()
	o := database(t)
	migrate(t, o, options())
	m := options()
	changed := files(t)
	changed["001_initial_schema.up.sql"].Data = append(changed["001_initial_schema.up.sql"].Data, "-- a comment\n"...)
	m.Files = changed
	err := Migrate(testContext(t), o, m)
	if err == nil || !strings.Contains(err.Error(), "001_initial_schema.up.sql was applied with other text") {
		t.Errorf("got %v", err)
	}
}

func TestNewerDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	o := database(t)
	m := options()
	m.Files = files(t, "CREATE TABLE a (x UInt8) ENGINE = Memory;\n", "CREATE TABLE b (x UInt8) ENGINE = Memory;\n")
	migrate(t, o, m)
	err := Migrate(testContext(t), o, options())
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("at migration %d, which this binary does not know", count(t)+2)) {
		t.Errorf("got %v", err)
	}
}

func TestBadFilesAreRefused(t *testing.T) {
	f := func(want string, names ...string) {
		t.Helper()
		m := options()
		all := fstest.MapFS{}
		for _, n := range names {
			name, text, _ := strings.Cut(n, "=")
			all[name] = &fstest.MapFile{Data: []byte(text)}
		}
		m.Files = all
		// Before any connection.
		if err := Migrate(testContext(t), Options{Addr: "nowhere"}, m); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v; want %s", names, err, want)
		}
	}
	f("want number 001", "002_b.up.sql=SELECT 1;")
	f("want number 002", "001_a.up.sql=SELECT 1;", "003_c.up.sql=SELECT 1;")
	f("want number 001", "one.up.sql=SELECT 1;")
	f("no statement", "001_a.up.sql=-- nothing;\n")
	f("migration 001_a.up.sql", "001_a.up.sql={{.Cluster}}")
}

// A process died between two statements, anywhere: the next run repairs it.
func TestCrashBetweenStatements(t *testing.T) {
	t.Parallel()
	all, err := load(options())
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for k, f := range all {
		for n := range len(f.statements) + 1 {
			o := database(t)
			m := options()
			m.Exclusive = true
			m.Files = firstFiles(t, k)
			if k > 0 {
				migrate(t, o, m)
			}
			p := open(t, o)
			for _, sql := range f.statements[:n] {
				exec(t, p, sql)
			}
			m.Files = options().Files
			migrate(t, o, m)
			got := schema(t, p)
			if want == nil {
				want = got
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("after %d statements of %s: %s", n, f.name, diff)
			}
			exec(t, p, "DROP DATABASE "+quoteName(o.Database))
		}
	}
}

// firstFiles are the first n of the real ones.
func firstFiles(t *testing.T, n int) fstest.MapFS {
	t.Helper()
	all := files(t)
	for _, name := range slices.Sorted(maps.Keys(all))[n:] {
		delete(all, name)
	}
	return all
}

func TestMissingTableIsAnError(t *testing.T) {
	t.Parallel()
	o := database(t)
	migrate(t, o, options())
	exec(t, open(t, o), "DROP TABLE events_1m")
	err := Migrate(testContext(t), o, options())
	if err == nil || err.Error() != "table events_1m is missing although its migration is recorded" {
		t.Errorf("got %v", err)
	}
}

func TestClusterRendering(t *testing.T) {
	f := func(cluster, want string) {
		t.Helper()
		m := MigrateOptions{Cluster: cluster, Files: fstest.MapFS{"001_a.up.sql": {Data: []byte(`-- A comment; with a semicolon;
CREATE TABLE t{{.OnCluster}} (x UInt8) ENGINE = {{.Engine "MergeTree"}} ORDER BY x;
  -- Another;
ALTER TABLE t{{.OnCluster}} ADD COLUMN y String DEFAULT ';';
`)}}}
		got, err := load(m)
		if err != nil {
			t.Fatal(err)
		}
		if s := strings.Join(got[0].statements, " | "); s != want {
			t.Errorf("got  %s\nwant %s", s, want)
		}
	}
	f("", "CREATE TABLE t (x UInt8) ENGINE = MergeTree ORDER BY x | ALTER TABLE t ADD COLUMN y String DEFAULT ';'")
	f("c'1", `CREATE TABLE t ON CLUSTER 'c\'1' (x UInt8) ENGINE = ReplicatedMergeTree ORDER BY x | ALTER TABLE t ON CLUSTER 'c\'1' ADD COLUMN y String DEFAULT ';'`)
}

// Every statement of the real schema creates on the whole cluster, and every
// table that holds rows is replicated.
func TestSchemaOnACluster(t *testing.T) {
	m := options()
	one, err := load(m)
	if err != nil {
		t.Fatal(err)
	}
	m.Cluster = "prod"
	all, err := load(m)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range all {
		if f.sha256 != one[i].sha256 {
			t.Errorf("%s: the checksum depends on the cluster", f.name)
		}
		for _, sql := range f.statements {
			if !strings.Contains(sql, " ON CLUSTER 'prod'") {
				t.Errorf("%s: on one server only: %.80s", f.name, sql)
			}
			if _, engine, ok := strings.Cut(sql, "ENGINE = "); ok && !strings.HasPrefix(engine, "Replicated") {
				t.Errorf("%s: not replicated: %.80s", f.name, sql)
			}
			if strings.HasPrefix(sql, "CREATE") && !strings.Contains(sql, " IF NOT EXISTS ") {
				t.Errorf("%s: not safe to run twice: %.80s", f.name, sql)
			}
		}
	}
}
