// Package migrations holds the database schema as numbered SQL files, applied
// in order by internal/clickhouse and never changed once released.
//
// A file is a sequence of statements, each ending in a semicolon at the end of
// a line, each safe to run twice: a crash between two of them is repaired by
// running the file again. Files are text/template with two names: {{.OnCluster}}
// is empty or " ON CLUSTER 'name'", and {{.Engine "MergeTree"}} is that engine
// or its replicated form.
package migrations

import "embed"

// FS holds every NNN_name.up.sql.
//
//go:embed *.up.sql
var FS embed.FS
