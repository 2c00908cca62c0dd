package codec

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// The scanner works on (data, i) pairs and returns the next index. A negative
// index means the text stopped being JSON there and d.fatal says why.

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// text flags: what a string holds besides plain ASCII.
const (
	escaped = 1 << iota // a backslash: unescape before use
	high                // a byte over 0x7F: check UTF-8
)

// special marks the bytes of w that end a run of plain string text: a quote, a
// backslash or a control character, each as the high bit of its byte.
// Exchanging bit 1 puts the quote (0x22) at 0x20, next to the control
// characters, and nothing else below 0x21, so one subtraction finds both. A
// borrow can set false marks, but only above a true one: the lowest is exact.
func special(w uint64) uint64 {
	return (((w ^ ones*2) - ones*0x21) | ((w ^ ones*'\\') - ones)) &^ w & highs
}

// scanString finds the closing quote of the string whose text starts at i,
// eight bytes a step. It validates control characters and escapes; UTF-8 is
// left to the caller, told by the high flag. On an error end is the negative
// of the offset minus one and the second result is a what.
func scanString(data []byte, i int) (end int, flags uint8) {
	var seen uint64
	for {
		for i+8 <= len(data) {
			w := binary.LittleEndian.Uint64(data[i:])
			m := special(w)
			if m == 0 {
				seen |= w
				i += 8
				continue
			}
			seen |= w & (m&-m - 1) // what lies before the first mark
			i += bits.TrailingZeros64(m) >> 3
			if data[i] == '"' {
				if seen&highs != 0 {
					flags |= high
				}
				return i, flags
			}
			goto specialByte
		}
		for {
			if i >= len(data) {
				return ^len(data), uint8(unexpectedEnd)
			}
			c := data[i]
			if c == '"' {
				if seen&highs != 0 {
					flags |= high
				}
				return i, flags
			}
			if c < 0x20 || c == '\\' {
				break
			}
			seen |= uint64(c)
			i++
		}
	specialByte:
		if data[i] < 0x20 {
			return ^i, uint8(badControl)
		}
		next := afterEscape(data, i)
		if next < 0 {
			if ^next >= len(data) {
				return next, uint8(unexpectedEnd)
			}
			return ^i, uint8(badEscape)
		}
		flags |= escaped
		i = next
	}
}

// afterEscape checks the escape whose backslash is at i and returns the index
// behind it, or the negative of the offending offset minus one.
func afterEscape(data []byte, i int) int {
	if i+1 >= len(data) {
		return ^len(data)
	}
	switch data[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2
	case 'u':
		for k := i + 2; k < i+6; k++ {
			if k >= len(data) {
				return ^len(data)
			}
			if hexValue(data[k]) > 15 {
				return ^k
			}
		}
		return i + 6
	}
	return ^(i + 1)
}

func hexValue(c byte) byte {
	switch {
	case c-'0' <= 9:
		return c - '0'
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10
	}
	return 0xFF
}

// skipSpace returns the index of the first byte at or after i that is no JSON
// white space, or len(data).
func skipSpace(data []byte, i int) int {
	for i < len(data) && data[i] <= ' ' {
		switch data[i] {
		case ' ', '\t', '\n', '\r':
			i++
		default:
			return i
		}
	}
	return i
}

// skipNumber returns the index behind the number at i. A fault is returned as
// the negative of its offset minus one.
func skipNumber(data []byte, i int) int {
	if i < len(data) && data[i] == '-' {
		i++
	}
	if i >= len(data) {
		return ^i
	}
	if data[i] == '0' {
		i++
	} else if i = skipDigits(data, i); i < 0 {
		return i
	}
	if i < len(data) && data[i] == '.' {
		if i = skipDigits(data, i+1); i < 0 {
			return i
		}
	}
	if i < len(data) && data[i]|0x20 == 'e' {
		i++
		if i < len(data) && (data[i] == '+' || data[i] == '-') {
			i++
		}
		i = skipDigits(data, i)
	}
	return i
}

// skipDigits demands at least one digit.
func skipDigits(data []byte, i int) int {
	start := i
	for i < len(data) && data[i]-'0' <= 9 {
		i++
	}
	if i == start {
		return ^i
	}
	return i
}

// unescape appends the meaning of a validated string text. A surrogate escape
// without its partner becomes U+FFFD.
func unescape(dst, text []byte) []byte {
	for i := 0; i < len(text); {
		c := text[i]
		if c != '\\' {
			start := i
			for i < len(text) && text[i] != '\\' {
				i++
			}
			dst = append(dst, text[start:i]...)
			continue
		}
		c = text[i+1]
		if c != 'u' {
			dst = append(dst, plainEscape(c))
			i += 2
			continue
		}
		r := hexRune(text[i+2:])
		i += 6
		if r >= 0xD800 && r < 0xE000 {
			low := rune(0)
			if r < 0xDC00 && i+6 <= len(text) && text[i] == '\\' && text[i+1] == 'u' {
				low = hexRune(text[i+2:])
			}
			if low >= 0xDC00 && low < 0xE000 {
				r = 0x10000 + (r-0xD800)<<10 + (low - 0xDC00)
				i += 6
			} else {
				r = utf8.RuneError
			}
		}
		dst = utf8.AppendRune(dst, r)
	}
	return dst
}

func plainEscape(c byte) byte {
	switch c {
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return c // a quote, a backslash or a slash stands for itself
}

func hexRune(text []byte) rune {
	return rune(hexValue(text[0]))<<12 | rune(hexValue(text[1]))<<8 | rune(hexValue(text[2]))<<4 | rune(hexValue(text[3]))
}

// firstInvalid returns the index of the first byte that is not UTF-8.
func firstInvalid(text []byte) int {
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return len(text)
}
