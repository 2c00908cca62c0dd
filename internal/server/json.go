package server

import (
	"strconv"
	"time"
	"unicode/utf8"
)

// appendString appends s as a JSON string. Broken UTF-8 becomes U+FFFD, so an
// answer that quotes a client's header stays valid JSON whatever was in it.
func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
			i++
		case c < 0x20 || c == 0x7f:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			i++
		case c < utf8.RuneSelf:
			dst = append(dst, c)
			i++
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r) // RuneError for what is broken
			i += n
		}
	}
	return append(dst, '"')
}

// appendSeconds appends d in whole seconds, rounded up, at least 1: a
// Retry-After of 0 invites the storm it is there to calm.
func appendSeconds(dst []byte, d time.Duration) []byte {
	return strconv.AppendInt(dst, int64(max(1, (d+time.Second-1)/time.Second)), 10)
}
