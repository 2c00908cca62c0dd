package server

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// KeyFile is what a keys file says: a line for each key, with its scope, its
// id, the SHA-256 of the key in hex and, when it differs from the rest, its
// rate a second (0 is no limit):
//
//	# who posts
//	write shop 5d41...e2
//	write importer 7b5e...09 50000
//	read grafana 9c56...4f
//
// The file holds no key, so it may be backed up and reviewed. A key is
// edge_<w|r>_<id>_<secret>: it says itself which line is meant, so checking it
// costs the same with one line and with ten thousand, and whoever finds it
// somewhere knows what to revoke.
type KeyFile struct {
	keys [numScopes]map[string]fileKey
}

type fileKey struct {
	digest [sha256.Size]byte
	rate   int
}

// defaultRate is the rate of a line that names none.
const defaultRate = -1

// keyIDs are the ids a key can have; without the underscore that ends them.
var keyIDs = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// ParseKeyFile reads a keys file. An error names the line and never quotes it:
// what stands in the wrong place may be a key. A file without a word is an error
// too: it is more often one that is just being written than the wish to lock
// everybody out. Comments alone say that wish: the last key was revoked.
func ParseKeyFile(text []byte) (*KeyFile, error) {
	f := new(KeyFile)
	for scope := range f.keys {
		f.keys[scope] = make(map[string]fileKey)
	}
	line, said := 0, 0
	for row := range bytes.Lines(text) {
		line++
		words := strings.Fields(string(row))
		if len(words) == 0 {
			continue
		}
		said++
		if strings.HasPrefix(words[0], "#") {
			continue
		}
		if err := f.add(words); err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
	}
	if said == 0 {
		return nil, errors.New("it is empty; a comment and no key lets nobody in")
	}
	return f, nil
}

// add reads one line.
func (f *KeyFile) add(words []string) error {
	if len(words) < 3 || len(words) > 4 {
		return errors.New("want scope, id, SHA-256 and perhaps a rate")
	}
	scope, err := ParseScope(words[0])
	if err != nil {
		return err
	}
	id := words[1]
	if !keyIDs.MatchString(id) {
		return errBadID
	}
	raw, err := hex.DecodeString(words[2])
	if err != nil || len(raw) != sha256.Size {
		return errors.New("the SHA-256 of the key must be 64 hex digits")
	}
	k := fileKey{digest: [sha256.Size]byte(raw), rate: defaultRate}
	if len(words) == 4 {
		if k.rate, err = strconv.Atoi(words[3]); err != nil || k.rate < 0 || k.rate > maxKeyRate {
			return fmt.Errorf("the rate must be a number from 0 to %d", maxKeyRate)
		}
	}
	if _, twice := f.keys[scope][id]; twice {
		return fmt.Errorf("there is another %s key of the same id", scope)
	}
	f.keys[scope][id] = k
	return nil
}

var errBadID = errors.New("an id has 1 to 64 letters, digits and hyphens")

// maxKeyRate is one event a nanosecond, the shortest interval there is.
const maxKeyRate = int(time.Second)

// Len returns how many keys of scope the file has.
func (f *KeyFile) Len(scope Scope) int { return len(f.keys[scope]) }

// ParseScope reads the word for a scope.
func ParseScope(word string) (Scope, error) {
	for s := range numScopes {
		if word == s.String() {
			return s, nil
		}
	}
	return 0, errors.New("the scope must be write or read")
}

// NewKey makes a key with 128 random bits, and its line for the keys file. An
// empty id is made up.
func NewKey(scope Scope, id string) (text, line string, err error) {
	if id == "" {
		id = strings.ToLower(rand.Text()[:8])
	}
	if !keyIDs.MatchString(id) {
		return "", "", errBadID
	}
	text = keyPrefix + scope.String()[:1] + "_" + id + "_" + rand.Text()
	digest := sha256.Sum256([]byte(text))
	return text, fmt.Sprintf("%s %s %s", scope, id, hex.EncodeToString(digest[:])), nil
}

const keyPrefix = "edge_"

// keyID returns the id that a key names, or nil. The scope's letter is for
// people; the digest covers it.
func keyID(key []byte) []byte {
	rest, ours := bytes.CutPrefix(key, []byte(keyPrefix))
	if !ours || len(rest) < 2 || rest[1] != '_' {
		return nil
	}
	id, _, ok := bytes.Cut(rest[2:], []byte{'_'})
	if !ok {
		return nil
	}
	return id
}
