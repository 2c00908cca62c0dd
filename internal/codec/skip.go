package codec

import "unicode/utf8"

// skipValue validates the value at i, which must exist, and returns the index
// behind it. depth is the nesting around the value. It is a loop and not a
// recursion, so the input cannot choose the stack it takes: the kinds of the
// open brackets are bits, object 1 and array 0, innermost lowest. An event nested
// deeper than MaxDepth is lost, yet its brackets are followed to the end, however
// many they are, or its neighbours were lost with it: a bit a level, and a level is
// at least a byte of the body.
func (d *Decoder) skipValue(data []byte, i, depth int) int {
	var kinds uint64
	open := 0 // brackets opened by this value
value:
	if i >= len(data) {
		return d.fail(unexpectedEnd, i)
	}
	switch c := data[i]; c {
	case '"':
		if i = d.skipString(data, i+1); i < 0 {
			return i
		}
	case '{', '[':
		if open++; open+depth > MaxDepth {
			d.reject(nestedTooDeep, unknownField, i, MaxDepth)
		}
		if open > 64 && open&63 == 1 {
			d.stack = append(d.stack[:open>>6-1], kinds)
		}
		kinds <<= 1
		i = skipSpace(data, i+1)
		if c == '[' {
			if i < len(data) && data[i] == ']' {
				goto closing
			}
			goto value
		}
		kinds |= 1
		if i < len(data) && data[i] == '}' {
			goto closing
		}
		goto key
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		next := skipNumber(data, i)
		if next < 0 {
			return d.failNumber(data, ^next)
		}
		i = next
	case 't':
		i = d.literal(data, i, "true")
	case 'f':
		i = d.literal(data, i, "false")
	case 'n':
		i = d.literal(data, i, "null")
	default:
		return d.fail(wantValue, i)
	}
	if i < 0 {
		return i
	}
after:
	if open == 0 {
		return i
	}
	if i < len(data) && data[i] <= ' ' {
		i = skipSpace(data, i)
	}
	if i >= len(data) {
		return d.fail(unexpectedEnd, i)
	}
	switch data[i] {
	case ',':
		i++
		if i < len(data) && data[i] <= ' ' {
			i = skipSpace(data, i)
		}
		if kinds&1 == 0 {
			goto value
		}
		goto key
	case '}':
		if kinds&1 == 1 {
			goto closing
		}
	case ']':
		if kinds&1 == 0 {
			goto closing
		}
	}
	return d.fail(wantCommaOrEnd, i)
closing: // the bracket at i
	i++
	kinds >>= 1
	if open--; open >= 64 && open&63 == 0 {
		kinds = d.stack[open>>6-1]
	}
	goto after
key:
	if i >= len(data) {
		return d.fail(unexpectedEnd, i)
	}
	if data[i] != '"' {
		return d.fail(wantKey, i)
	}
	if i = d.skipString(data, i+1); i < 0 {
		return i
	}
	if i < len(data) && data[i] <= ' ' {
		i = skipSpace(data, i)
	}
	if i >= len(data) {
		return d.fail(unexpectedEnd, i)
	}
	if data[i] != ':' {
		return d.fail(wantColon, i)
	}
	i++
	if i < len(data) && data[i] <= ' ' {
		i = skipSpace(data, i)
	}
	goto value
}

// dropStack gives up what only an attack takes.
func (d *Decoder) dropStack() {
	if cap(d.stack) > keepStack {
		d.stack = nil
	}
}

// skipString validates the string whose text starts at i.
func (d *Decoder) skipString(data []byte, i int) int {
	end, flags := scanString(data, i)
	if end < 0 {
		return d.fail(what(flags), ^end)
	}
	if flags&high != 0 && !utf8.Valid(data[i:end]) {
		d.reject(badUTF8, unknownField, i+firstInvalid(data[i:end]), 0)
	}
	return end + 1
}

func (d *Decoder) literal(data []byte, i int, word string) int {
	if len(data)-i >= len(word) && string(data[i:i+len(word)]) == word {
		return i + len(word)
	}
	for k := range len(word) {
		if i+k >= len(data) {
			return d.fail(unexpectedEnd, i+k)
		}
		if data[i+k] != word[k] {
			break
		}
	}
	return d.fail(badLiteral, i)
}
