//go:build !linux

package clickhouse

import "os"

// newInsertFile returns a temporary file for the rows of one insert; only Linux
// has files without a name.
func newInsertFile() (*os.File, string, error) {
	f, err := os.CreateTemp("", "edge-insert-")
	if err != nil {
		return nil, "", err
	}
	return f, f.Name(), nil
}

func removeInsertFile(path string) { _ = os.Remove(path) }
