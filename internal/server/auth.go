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

// keys are the SHA-256 digests of the API keys of one kind. Only digests are
// kept and compared: they have one length, which ConstantTimeCompare needs,
// and a heap dump holds no key.
type keys [][sha256.Size]byte

const (
	digestPrefix = "sha256:"
	// maxKeyBytes bounds the work of hashing what a client calls its key.
	maxKeyBytes = 512
)

// parseKeys reads keys written out or as "sha256:" and 64 hex digits. Errors
// name the place in the list, never the key.
func parseKeys(list []string) (keys, error) {
	var ks keys
	for i, k := range list {
		digest, isDigest := strings.CutPrefix(k, digestPrefix)
		switch {
		case isDigest:
			raw, err := hex.DecodeString(digest)
			if err != nil || len(raw) != sha256.Size {
				return nil, fmt.Errorf("key %d is not sha256: followed by 64 hex digits", i+1)
			}
			ks = append(ks, [sha256.Size]byte(raw))
		case k == "":
			return nil, fmt.Errorf("key %d is empty", i+1)
		case len(k) > maxKeyBytes:
			return nil, fmt.Errorf("key %d is longer than %d bytes", i+1, maxKeyBytes)
		default:
			ks = append(ks, sha256.Sum256([]byte(k)))
		}
	}
	return ks, nil
}

// CheckKeys returns what is wrong with list as Config.WriteKeys or ReadKeys. The
// error names a key by its place, never itself.
func CheckKeys(list []string) error {
	_, err := parseKeys(list)
	return err
}

// find returns the place of key, or -1. It compares with every digest, so that
// time tells nothing.
func (ks keys) find(key []byte) int {
	digest := sha256.Sum256(key)
	found := -1
	for i := range ks {
		same := subtle.ConstantTimeCompare(ks[i][:], digest[:])
		found = subtle.ConstantTimeSelect(same, i, found)
	}
	return found
}

// authorize returns which of ks the request carries, -1 when ks is empty and
// everybody may pass.
func authorize(ctx *fasthttp.RequestCtx, ks keys) (int, error) {
	if len(ks) == 0 {
		return -1, nil
	}
	var basic [maxKeyBytes]byte
	key, err := presentedKey(&ctx.Request.Header, basic[:0])
	if err != nil || len(key) > maxKeyBytes {
		return -1, errWrongKey
	}
	if len(key) == 0 {
		return -1, errNoKey
	}
	i := ks.find(key)
	if i < 0 {
		return -1, errWrongKey
	}
	return i, nil
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
