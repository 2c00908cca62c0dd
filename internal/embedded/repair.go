package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
)

// stateLogs are kfake's append-only files. It reads them up to the first
// broken entry and then appends behind it, where no later start looks:
//
//	commit 41 torn by a power cut → start reads up to 40, appends 42..90
//	→ SIGKILL → start reads up to 40 again; commits 42..90 are gone
//
// So a torn tail is cut off before kfake opens the file.
var stateLogs = []string{"groups.log", "pids.log"}

// prepareDir makes kfake's directory safe to open.
func prepareDir(dir string) error {
	if err := refuseOrphans(dir); err != nil {
		return err
	}
	for _, name := range stateLogs {
		if err := cutTornTail(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	// Members saved by a clean shutdown were goroutines of the last process.
	// kfake would wait out their session timeout before a new one may join.
	if err := os.Remove(filepath.Join(dir, "session_state.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the members of the last run: %w", err)
	}
	return nil
}

// refuseOrphans stops a start that would write over a log. Without its list of
// topics kfake begins at offset 0 and appends to the segment files it finds,
// believing them empty: old and new records become unreadable together.
func refuseOrphans(dir string) error {
	segments, err := fs.Glob(os.DirFS(dir), "partitions/*/*.dat")
	if err != nil || len(segments) == 0 {
		return err
	}
	for _, name := range []string{"meta.json", "topics.json"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("%s holds %d log segments but %s cannot be read (%w): restore the file, or move the directory away to start with an empty log",
				dir, len(segments), name, err)
		}
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// cutTornTail truncates path behind its last whole entry. An entry is length (4,
// little-endian, counts what follows the checksum), CRC-32C (4) and that many bytes.
func cutTornTail(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read a state log: %w", err)
	}
	whole := wholeEntries(b)
	if whole == len(b) {
		return nil
	}
	if err := truncate(path, int64(whole)); err != nil {
		return fmt.Errorf("cut a torn state log: %w", err)
	}
	return nil
}

// wholeEntries returns the length of the longest prefix of whole entries.
func wholeEntries(b []byte) int {
	const header = 8
	pos := 0
	for len(b)-pos >= header {
		n := int64(binary.LittleEndian.Uint32(b[pos:]))
		if n < 2 || n > int64(len(b)-pos-header) {
			break
		}
		body := b[pos+header : pos+header+int(n)]
		if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[pos+4:]) {
			break
		}
		pos += header + int(n)
	}
	return pos
}
