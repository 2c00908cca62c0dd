package server

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/valyala/fasthttp"
)

// Scope is what a key may do.
type Scope uint8

// A key has one scope: one that is in every app's binary must not read.
const (
	Write Scope = iota // POST events
	Read               // GET /metrics
	numScopes
)

// String is the word for s in a keys file.
func (s Scope) String() string { return [...]string{"write", "read"}[s] }

// keyring is all keys of one moment. It never changes: a reload makes another,
// so a request sees the old keys or the new ones, and takes no lock.
type keyring [numScopes]scopeKeys

// scopeKeys are the keys of one scope.
type scopeKeys struct {
	guarded bool            // a key is asked for
	byID    map[string]*key // of the keys file, whose keys say which they are
	listed  []*key          // of WRITE_KEYS and READ_KEYS, which may be any text
}

// key is one API key. Only its SHA-256 is kept and compared: digests have one
// length, which ConstantTimeCompare needs, and a heap dump holds no key.
type key struct {
	digest [sha256.Size]byte
	rate   int     // events (write) or queries (read) a second; 0 is no limit
	bucket *bucket // nil without a limit
}

func newKey(digest [sha256.Size]byte, rate int) *key {
	return &key{digest: digest, rate: rate, bucket: newBucket(rate)}
}

func (k *key) is(digest *[sha256.Size]byte) int {
	return subtle.ConstantTimeCompare(k.digest[:], digest[:])
}

const (
	digestPrefix = "sha256:"
	// maxKeyBytes bounds the work of hashing what a client calls its key.
	maxKeyBytes = 512
)

// parseKeys reads keys written out or as "sha256:" and 64 hex digits. Errors
// name the place in the list, never the key.
func parseKeys(list []string) ([][sha256.Size]byte, error) {
	var ds [][sha256.Size]byte
	for i, k := range list {
		digest, isDigest := strings.CutPrefix(k, digestPrefix)
		switch {
		case isDigest:
			raw, err := hex.DecodeString(digest)
			if err != nil || len(raw) != sha256.Size {
				return nil, fmt.Errorf("key %d is not sha256: followed by 64 hex digits", i+1)
			}
			ds = append(ds, [sha256.Size]byte(raw))
		case k == "":
			return nil, fmt.Errorf("key %d is empty", i+1)
		case len(k) > maxKeyBytes:
			return nil, fmt.Errorf("key %d is longer than %d bytes", i+1, maxKeyBytes)
		default:
			ds = append(ds, sha256.Sum256([]byte(k)))
		}
	}
	return ds, nil
}

// CheckKeys returns what is wrong with list as Config.WriteKeys or ReadKeys. The
// error names a key by its place, never itself.
func CheckKeys(list []string) error {
	_, err := parseKeys(list)
	return err
}

// newKeyring returns the keys of cfg.
func newKeyring(cfg *Config) *keyring {
	ring := new(keyring)
	for scope, list := range [numScopes][]string{cfg.WriteKeys, cfg.ReadKeys} {
		rate := cfg.KeyRate
		if Scope(scope) == Read {
			rate = 0
		}
		ks := &ring[scope]
		ks.guarded = len(list) > 0
		digests, err := parseKeys(list)
		if err != nil {
			panic("BUG: keys that CheckKeys has not seen: " + err.Error())
		}
		for _, d := range digests {
			ks.listed = append(ks.listed, newKey(d, rate))
		}
	}
	return ring
}

// with returns r with the keys of f in place of those of another keys file. A
// key that stays keeps its bucket: a reload forgives nobody.
func (r *keyring) with(f *KeyFile, writeRate int) *keyring {
	next := *r
	for scope := range next {
		ks := &next[scope]
		before := ks.byID
		ks.guarded, ks.byID = true, make(map[string]*key, len(f.keys[scope]))
		for id, k := range f.keys[scope] {
			rate := k.rate
			if rate == defaultRate {
				rate = 0
				if Scope(scope) == Write {
					rate = writeRate
				}
			}
			kept := before[id]
			if kept == nil || kept.digest != k.digest || kept.rate != rate {
				kept = newKey(k.digest, rate)
			}
			ks.byID[id] = kept
		}
	}
	return &next
}

// SetKeyFile replaces the keys of the keys file for all requests from now on. One
// without keys lets nobody in but those of WriteKeys and ReadKeys.
func (s *Server) SetKeyFile(f *KeyFile) {
	if f.Len(Write)+f.Len(Read) == 0 {
		s.log.Warn("the keys file has no key: nobody is let in by it")
	}
	s.keys.Store(s.keys.Load().with(f, s.cfg.KeyRate))
}

// find returns the key that text is, or nil. Which id it names is no secret;
// the rest is compared in constant time, with one digest or, when text names no
// id of ours, with all that are listed.
func (ks *scopeKeys) find(text []byte) *key {
	digest := sha256.Sum256(text)
	if k := ks.byID[string(keyID(text))]; k != nil && k.is(&digest) == 1 {
		return k
	}
	found := -1
	for i, k := range ks.listed {
		found = subtle.ConstantTimeSelect(k.is(&digest), i, found)
	}
	if found < 0 {
		return nil
	}
	return ks.listed[found]
}

// authorize returns the key the request carries, nil when the scope is open to
// everybody. A refusal is logged here, without what was presented: it may be
// the right key with a typing error.
func (s *Server) authorize(ctx *fasthttp.RequestCtx, scope Scope) (*key, error) {
	ring := s.keys.Load()
	ks := &ring[scope]
	if !ks.guarded {
		return nil, nil
	}
	var basic [maxKeyBytes]byte
	text, err := presentedKey(&ctx.Request.Header, basic[:0])
	switch {
	case err != nil, len(text) > maxKeyBytes:
		text, err = nil, errWrongKey
	case len(text) == 0:
		err = errNoKey
	default:
		if k := ks.find(text); k != nil {
			return k, nil
		}
		err = errWrongKey
	}
	id := string(keyID(text))
	if ring[Write].byID[id] == nil && ring[Read].byID[id] == nil {
		id = "" // the client's own words
	}
	s.log.Warn("request without a valid API key", "scope", scope.String(), "remote", ctx.RemoteIP().String(), "key", id, "err", err)
	return nil, err
}

// presentedKey returns the key a request brings: bearer token, X-API-Key or
// Basic user name, the last one decoded into buf.
func presentedKey(h *fasthttp.RequestHeader, buf []byte) ([]byte, error) {
	auth := h.PeekCanonical(keyAuthorization)
	scheme, value, _ := bytes.Cut(auth, []byte(" "))
	value = bytes.TrimSpace(value)
	switch {
	case len(auth) == 0:
		return h.PeekCanonical(keyAPIKey), nil
	case equalFold(scheme, "bearer"):
		return value, nil
	case equalFold(scheme, "basic"):
		if base64.StdEncoding.DecodedLen(len(value)) > cap(buf) {
			return nil, errors.New("basic credentials too long")
		}
		n, err := base64.StdEncoding.Decode(buf[:cap(buf)], value)
		user, _, _ := bytes.Cut(buf[:n], []byte(":"))
		return user, err
	}
	return nil, errors.New("unknown authorization scheme")
}

// equalFold compares b with lower, an ASCII string in lower case.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}
