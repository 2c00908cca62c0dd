package clickhouse

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// MigrateOptions says how the schema is laid down.
type MigrateOptions struct {
	Files   fs.FS         // NNN_name.up.sql, see package migrations
	Cluster string        // non-empty: ON CLUSTER and Replicated engines
	TTL     time.Duration // of rows in events and the rollups; 0 keeps them for ever
	MaxAge  time.Duration // of an event on its arrival; a TTL needs one
	KeepTTL bool          // the tables keep the TTL they have, whatever it is
	// Exclusive says that no other process can reach this server (embedded
	// mode), so the lock, which a kill would leave behind, is not needed.
	Exclusive bool
	Logger    *slog.Logger

	lockTTL time.Duration // 0: the constant; tests have less patience
}

type migration struct {
	version    int
	name       string
	sha256     string
	statements []string
}

// Migrate brings the database to the newest version: it creates the database
// when absent, applies what is missing in order and records each file with its
// checksum. A recorded file whose text has changed since is an error: the
// database is then not what the files say. Safe to run from many processes.
func Migrate(ctx context.Context, o Options, m MigrateOptions) error {
	files, err := load(m)
	if err != nil {
		return err
	}
	if err := createDatabase(ctx, o, m.Cluster); err != nil {
		return fmt.Errorf("create database %s: %w", o.Database, err)
	}
	p, err := Open(o)
	if err != nil {
		return err
	}
	defer p.Close()
	r := runner{p, m}
	pending, err := r.pending(ctx, files)
	if err != nil {
		return err
	}
	if len(pending) > 0 {
		if err := r.apply(ctx, files); err != nil {
			return err
		}
		// It is only what merges cost, so nothing waits for it.
		if err := r.dropStatistics(ctx); err != nil {
			r.Logger.Warn("merges compute statistics that nothing here uses", "err", err)
		}
	}
	if r.KeepTTL {
		return nil
	}
	return r.applyTTL(ctx)
}

// createDatabase, like everything here, asks before it creates: a database that
// is there needs no right to create one, and ON CLUSTER waits for minutes when
// one of the servers is down.
func createDatabase(ctx context.Context, o Options, cluster string) error {
	// The database a client names in its hello must exist, so this one
	// connection names none.
	c, err := ch.Dial(ctx, o.client(""))
	if err != nil {
		return err
	}
	defer c.Close()
	var name proto.ColStr
	there := false
	err = c.Do(ctx, ch.Query{
		Body:   "SELECT name FROM system.databases WHERE name = " + Quote(o.Database),
		Result: proto.Results{{Name: "name", Data: &name}},
		OnResult: func(context.Context, proto.Block) error {
			there = there || name.Rows() > 0
			return nil
		},
	})
	if err != nil || there {
		return err
	}
	return c.Do(ctx, ch.Query{Body: "CREATE DATABASE IF NOT EXISTS " + quoteName(o.Database) + onCluster(cluster)})
}

type runner struct {
	*Pool
	MigrateOptions
}

// apply runs what is still missing once the lock is held; another process may
// have done it while we waited.
func (r runner) apply(ctx context.Context, files []migration) error {
	if !r.Exclusive {
		held, unlock, err := r.lock(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		ctx = held
	}
	pending, err := r.pending(ctx, files)
	if err != nil {
		return err
	}
	for _, f := range pending {
		started := time.Now()
		for i, sql := range f.statements {
			if err := r.Exec(ctx, sql); err != nil {
				return fmt.Errorf("migration %s, statement %d: %w", f.name, i+1, errors.Join(err, context.Cause(ctx)))
			}
		}
		record := fmt.Sprintf("INSERT INTO schema_migrations SELECT %d, %s, %s, now()", f.version, Quote(f.name), Quote(f.sha256))
		if err := r.Exec(ctx, record); err != nil {
			return fmt.Errorf("record migration %s: %w", f.name, err)
		}
		r.Logger.Info("migration applied", "name", f.name, "took_ms", time.Since(started).Milliseconds())
	}
	return nil
}

// pending returns the files the database has not recorded, oldest first.
func (r runner) pending(ctx context.Context, files []migration) ([]migration, error) {
	recorded, err := r.Strings(ctx, "SELECT name FROM system.tables WHERE database = currentDatabase() AND name = 'schema_migrations'")
	if err == nil && len(recorded) == 0 {
		err = r.Exec(ctx, `CREATE TABLE IF NOT EXISTS schema_migrations`+onCluster(r.Cluster)+` (
			version UInt32, name String, sha256 String, applied_at DateTime('UTC')
		) ENGINE = `+engine(r.Cluster, "ReplacingMergeTree")+` ORDER BY version`)
	}
	if err != nil {
		return nil, fmt.Errorf("create schema_migrations: %w", err)
	}
	var (
		version proto.ColUInt32
		sum     proto.ColStr
		applied = map[int]string{}
	)
	err = r.Do(ctx, ch.Query{
		Body:   "SELECT version, sha256 FROM schema_migrations FINAL",
		Result: proto.Results{{Name: "version", Data: &version}, {Name: "sha256", Data: &sum}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range version.Rows() {
				applied[int(version[i])] = sum.Row(i)
			}
			return nil
		},
	})
	if err != nil {
		return nil, fmt.Errorf("read schema_migrations: %w", err)
	}
	var out []migration
	for _, f := range files {
		switch sum, ok := applied[f.version]; {
		case !ok:
			out = append(out, f)
		case sum != f.sha256:
			return nil, fmt.Errorf("migration %s was applied with other text (recorded sha256 %.12s, this binary has %.12s): a released migration never changes", f.name, sum, f.sha256)
		}
		delete(applied, f.version)
	}
	if len(applied) > 0 {
		newest := slices.Max(slices.Collect(maps.Keys(applied)))
		return nil, fmt.Errorf("database is at migration %d, which this binary does not know: it was migrated by a newer edge", newest)
	}
	return out, nil
}

// applyTTL makes the tables' TTL what the settings say. It is not a migration:
// it follows a setting that may change at any start.
func (r runner) applyTTL(ctx context.Context) error {
	// A bucket is as old as the last event in it, not the first. Days stay a day
	// longer than the widest bucket that holds them, whose counts are compared
	// with theirs.
	const day, widest = 24 * 60 * 60, 256 * 24 * 60 * 60
	for _, t := range []struct{ table, column, width string }{
		{"events", "ts", ""}, {"events_1m", "m", " + 60"},
		{"events_users", "at", fmt.Sprintf(" + multiIf(width < %[1]d, width, width = %[1]d, %d, %d)", day, widest+day, widest)},
	} {
		table := t.table
		ddl, err := r.Strings(ctx, "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = "+Quote(table))
		if err != nil {
			return fmt.Errorf("read TTL of %s: %w", table, err)
		}
		if len(ddl) == 0 {
			return fmt.Errorf("table %s is missing although its migration is recorded", table)
		}
		alter := "ALTER TABLE " + table + onCluster(r.Cluster)
		// A part says when its rows go, by the TTL it was written under, and merges believe
		// it. Only that is written anew when the TTL changes: rows are dropped by the next
		// merges, since rewriting them all at once would stall inserts.
		const recalculate = "materialize_ttl_recalculate_only"
		told := strings.Contains(ddl[0], recalculate+" = 1")
		var change string
		note := table == "events"
		want := fmt.Sprintf("toDateTime(%s) + toIntervalSecond(%d%s)", t.column, int64(r.TTL.Seconds()), t.width)
		switch has := strings.Contains(ddl[0], " TTL "); {
		case r.TTL == 0 && has:
			change = " REMOVE TTL SETTINGS materialize_ttl_after_modify = 1"
		case r.TTL > 0 && !strings.Contains(ddl[0], " TTL "+want):
			change = " MODIFY TTL " + want + " SETTINGS materialize_ttl_after_modify = 1"
		case r.TTL > 0 && !told: // by an edge that did not tell them
			change, note = " MATERIALIZE TTL", false
		default:
			continue
		}
		if note {
			if err := r.noteExpiry(ctx); err != nil {
				return fmt.Errorf("note the TTL of %s: %w", table, err)
			}
		}
		if !told {
			if err := r.Exec(ctx, alter+" MODIFY SETTING "+recalculate+" = 1"); err != nil {
				return fmt.Errorf("set TTL of %s: %w", table, err)
			}
		}
		if err := r.Exec(ctx, alter+change); err != nil {
			return fmt.Errorf("set TTL of %s: %w", table, err)
		}
		r.Logger.Info("table TTL changed", "table", table, "change", strings.TrimSpace(change))
	}
	return r.noteAges(ctx)
}

// dropStatistics has merges leave out the statistics that newer servers add to every
// column by themselves: no query here uses them, and they are an eighth of what a merge
// costs and a twentieth of a part. It is not a migration: an older server does not know
// the setting. It goes with one, because then every server of a cluster is there and the
// user may alter tables.
func (r runner) dropStatistics(ctx context.Context) error {
	tables, err := r.Strings(ctx, "SELECT name FROM system.tables WHERE database = currentDatabase()"+
		" AND name IN ('events', 'events_1m', 'events_users') AND position(engine_full, 'auto_statistics_types') = 0"+
		" AND 'auto_statistics_types' IN (SELECT name FROM system.merge_tree_settings WHERE value != '')")
	if err != nil {
		return fmt.Errorf("read the tables' settings: %w", err)
	}
	for _, table := range tables {
		if err := r.Exec(ctx, "ALTER TABLE "+table+onCluster(r.Cluster)+" MODIFY SETTING auto_statistics_types = ''"); err != nil {
			return fmt.Errorf("leave out the statistics of %s: %w", table, err)
		}
	}
	return nil
}

// load reads and renders the files in version order.
func load(m MigrateOptions) ([]migration, error) {
	names, err := fs.Glob(m.Files, "*.up.sql")
	if err != nil {
		return nil, err
	}
	sort.Strings(names)
	var out []migration
	for _, name := range names {
		number, _, _ := strings.Cut(name, "_")
		version, err := strconv.Atoi(number)
		if err != nil || version != len(out)+1 {
			return nil, fmt.Errorf("migration %s: want number %03d", name, len(out)+1)
		}
		text, err := fs.ReadFile(m.Files, name)
		if err != nil {
			return nil, err
		}
		statements, err := render(string(text), m.Cluster)
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", name, err)
		}
		// The checksum is of the file, not of what it renders to: turning
		// replication on is not a change of the migration.
		sum := sha256.Sum256(text)
		out = append(out, migration{version, name, hex.EncodeToString(sum[:]), statements})
	}
	return out, nil
}

type schemaData struct{ OnCluster, cluster string }

func (d schemaData) Engine(name string) string { return engine(d.cluster, name) }

func render(text, cluster string) ([]string, error) {
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, schemaData{onCluster(cluster), cluster}); err != nil {
		return nil, err
	}
	var out []string
	for s := range strings.SplitSeq(stripComments(b.String()), ";\n") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no statement in it")
	}
	return out, nil
}

// stripComments drops whole-line comments, whose semicolons would end a
// statement and whose text every exception would quote.
func stripComments(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if !strings.HasPrefix(strings.TrimSpace(line), "--") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func onCluster(name string) string {
	if name == "" {
		return ""
	}
	return " ON CLUSTER " + Quote(name)
}

func engine(cluster, name string) string {
	if cluster == "" {
		return name
	}
	return "Replicated" + name
}

func quoteName(s string) string {
	return "`" + strings.NewReplacer("\\", "\\\\", "`", "\\`").Replace(s) + "`"
}
