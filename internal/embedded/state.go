package embedded

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// identity is what must outlive the process besides the log: one file, one
// writer, replaced atomically, so its fields can never disagree after a crash.
type identity struct {
	// ClusterID is random and made once: the first part of a log's identity.
	ClusterID string `json:"cluster_id"`
	// Incarnation grows when offsets of this log may be handed out again.
	Incarnation uint32 `json:"incarnation"`
	// Until is where earlier incarnations ended, by incarnation, topic and partition.
	Until map[uint32]map[string]map[int32]int64 `json:"until,omitempty"`
	// BootID is the kernel's boot during which the broker last ran.
	BootID string `json:"boot_id"`
	// Unscanned is set by an unclean start on another boot and by a lost tail, until Scanned.
	Unscanned bool `json:"unscanned"`
	// Clean is true only between Close and the next start.
	Clean bool `json:"clean"`
}

const identityFile = "edge.json"

// loadIdentity reads the identity in dir; found is false for a new directory.
func loadIdentity(dir string) (id identity, found bool, err error) {
	path := filepath.Join(dir, identityFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return identity{ClusterID: newClusterID(), Incarnation: 1}, false, nil
	}
	if err != nil {
		return identity{}, false, fmt.Errorf("read the log's identity: %w", err)
	}
	if err := json.Unmarshal(b, &id); err != nil {
		return identity{}, false, fmt.Errorf("read the log's identity %s: %w", path, err)
	}
	if id.ClusterID == "" || id.Incarnation == 0 {
		return identity{}, false, fmt.Errorf("read the log's identity %s: cluster_id or incarnation is missing", path)
	}
	return id, true, nil
}

func (id identity) save(dir string) error {
	b, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("encode the log's identity: %w", err)
	}
	if err := replaceFile(filepath.Join(dir, identityFile), append(b, '\n')); err != nil {
		return fmt.Errorf("save the log's identity: %w", err)
	}
	return nil
}

// newClusterID returns 128 random bits in the alphabet Kafka uses for ids.
func newClusterID() string {
	var b [16]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// bootID names the kernel's current boot; page cache that was never synced
// does not survive from one boot to the next. Empty where there is no /proc.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// replaceFile writes path so that after a power cut it is the old file or the
// new one, whole: content first, then the name, then the directory.
func replaceFile(path string, b []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
