package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// dyingWait is how long a new child waits for one that is still dying: an engine whose
// edge was killed has its directory and its port until it has noticed. Most do within
// dyingSoon; after that it looks as if somebody else has them.
const (
	dyingWait = 15 * time.Second
	dyingSoon = time.Second
)

// whileBusy tries until the error is not busy, or for dyingWait, and logs what it waits for.
func whileBusy(ctx context.Context, log *slog.Logger, what string, busy error, try func() error) error {
	deadline := time.NewTimer(dyingWait)
	defer deadline.Stop()
	soon := time.NewTimer(dyingSoon)
	defer soon.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if !errors.Is(err, busy) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline.C:
			return err
		case <-soon.C:
			log.Warn("in use by another process; waiting, in case that is an engine about to end", "what", what, "at_most", dyingWait.String())
		case <-tick.C:
		}
	}
}

// lockDir makes sure that one process at a time has the directory: the library
// guards nothing, and two engines on one directory destroy it.
func lockDir(ctx context.Context, log *slog.Logger, dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = whileBusy(ctx, log, f.Name(), unix.EWOULDBLOCK, func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("lock %s for %s: %w", f.Name(), dyingWait, errBusy)
	}
	return nil, err
}

// prepareDir writes the engine's configuration and returns its arguments.
func prepareDir(cfg *Config) ([]string, error) {
	files := filepath.Join(cfg.Dir, "user_files")
	if err := os.MkdirAll(files, 0o700); err != nil {
		return nil, err
	}
	if err := removeDropped(cfg.Dir); err != nil {
		return nil, err
	}
	conf := filepath.Join(cfg.Dir, "engine.xml")
	if err := os.WriteFile(conf, []byte(engineConfig(cfg)), 0o600); err != nil {
		return nil, err
	}
	// The library looks for config.xml in the working directory, and lets a
	// query name files relative to it.
	if err := os.Chdir(files); err != nil {
		return nil, err
	}
	return []string{"clickhouse", "--config-file=" + conf, "--path=" + cfg.Dir}, nil
}

// engineConfig fits a server meant for dozens of cores to a machine it shares
// with a broker and an HTTP server. The caches ClickHouse would let grow to
// 5 GiB each hold the marks and primary keys of a few hundred million events in
// what they have here. Two merge threads are the least that keep a long merge
// from holding up the short ones. Parts below 256 MiB are compressed with LZ4: nearly
// all of them are merged soon, and ZSTD was a fifth of what the engine did for an event.
// Larger ones stay, and ZSTD makes them a fifth to a quarter smaller; a server gets the
// same rule from deploy/clickhouse. The schedule pool only ever runs timers. There is no
// <logger>: without one the library logs nothing, with one it formats every trace
// message and then drops it.
func engineConfig(cfg *Config) string {
	memory := "<max_server_memory_usage_to_ram_ratio>0.5</max_server_memory_usage_to_ram_ratio>"
	if cfg.MaxMemory > 0 {
		memory = "<max_server_memory_usage>" + strconv.FormatInt(cfg.MaxMemory, 10) + "</max_server_memory_usage>"
	}
	return `<clickhouse>
  ` + memory + `
  <mark_cache_size>134217728</mark_cache_size>
  <primary_index_cache_size>134217728</primary_index_cache_size>
  <index_mark_cache_size>16777216</index_mark_cache_size>
  <query_condition_cache_size>16777216</query_condition_cache_size>
  <iceberg_metadata_files_cache_size>1048576</iceberg_metadata_files_cache_size>
  <parquet_metadata_cache_size>1048576</parquet_metadata_cache_size>
  <vector_similarity_index_cache_size>1048576</vector_similarity_index_cache_size>
  <compression><case><min_part_size>268435456</min_part_size><min_part_size_ratio>0</min_part_size_ratio><method>zstd</method><level>1</level></case></compression>
  <background_pool_size>2</background_pool_size>
  <background_schedule_pool_size>2</background_schedule_pool_size>
  <background_buffer_flush_schedule_pool_size>1</background_buffer_flush_schedule_pool_size>
  <background_message_broker_schedule_pool_size>1</background_message_broker_schedule_pool_size>
  <max_thread_pool_free_size>16</max_thread_pool_free_size>
</clickhouse>
`
}

// droppedTable is the name of a dropped table's metadata: database, table, UUID.
var droppedTable = regexp.MustCompile(`\.([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\.sql$`)

// removeDropped deletes the data of tables dropped earlier. A server does it in
// the background some minutes after DROP; in the library that never runs.
func removeDropped(dir string) error {
	meta := filepath.Join(dir, "metadata_dropped")
	entries, err := os.ReadDir(meta)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		m := droppedTable.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		// Data first: after a crash in between the name is still there to go by.
		if err := os.RemoveAll(filepath.Join(dir, "store", m[1][:3], m[1])); err != nil {
			return fmt.Errorf("remove a dropped table's data: %w", err)
		}
		if err := os.Remove(filepath.Join(meta, e.Name())); err != nil {
			return fmt.Errorf("remove a dropped table's metadata: %w", err)
		}
	}
	return nil
}
