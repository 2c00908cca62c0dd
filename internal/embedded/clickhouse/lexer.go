package clickhouse

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// A tokenKind separates what the statement rules look at; numbers and operators
// matter to nobody here and share tokenOther.
type tokenKind uint8

const (
	tokenWord   tokenKind = iota // bare identifier or keyword
	tokenQuoted                  // `identifier` or "identifier"
	tokenString                  // 'literal' or $tag$literal$tag$
	tokenPunct                   // one of ( ) [ ] { } , ; .
	tokenOther
)

// A token is a piece of the statement, with its place in the text.
type token struct {
	kind       tokenKind
	start, end int
	depth      int // nesting of parentheses it stands in
}

// lex cuts a statement as the engine's own lexer does, comments dropped. It
// never fails: what does not close reaches to the end of the text, and the
// engine's parser says what is wrong with it.
func lex(q string) []token {
	tokens := make([]token, 0, 64)
	depth := 0
	for i := 0; i < len(q); {
		if n := skipBlank(q, i); n > i {
			i = n
			continue
		}
		t := token{kind: tokenOther, start: i, depth: depth}
		switch c := q[i]; {
		case isWordStart(c):
			t.kind = tokenWord
			for i++; i < len(q) && isWordPart(q[i]) && blank(q, i) == 0; i++ {
			}
		case c == '`' || c == '"':
			t.kind, i = tokenQuoted, closeQuote(q, i)
		case c == '\'':
			t.kind, i = tokenString, closeQuote(q, i)
		case c == '$':
			t.kind, i = tokenString, closeHeredoc(q, i)
		case c >= '0' && c <= '9':
			for i++; i < len(q) && isWordPart(q[i]) && blank(q, i) == 0; i++ {
			}
		case strings.IndexByte("()[]{},;.", c) >= 0:
			t.kind = tokenPunct
			switch c {
			case '(':
				depth++
			case ')':
				depth--
				t.depth = depth
			}
			i++
		default:
			i++
		}
		t.end = i
		tokens = append(tokens, t)
	}
	return tokens
}

func isWordStart(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

func isWordPart(c byte) bool { return isWordStart(c) || c >= '0' && c <= '9' || c == '$' }

// blank returns how many bytes of white space are at i, one character's. The engine
// takes what Unicode calls a space for one, some invisible characters, and the mark
// that some editors put at the start of a file.
func blank(q string, i int) int {
	if q[i] < utf8.RuneSelf {
		if strings.IndexByte(" \t\r\n\v\f\x00", q[i]) >= 0 {
			return 1
		}
		return 0
	}
	switch c, n := utf8.DecodeRuneInString(q[i:]); {
	case unicode.IsSpace(c), c == '\u180e', c >= '\u200b' && c <= '\u200d', c == '\u2060', c == '\ufeff':
		return n
	}
	return 0
}

// skipBlank returns the index after white space and one comment at i.
func skipBlank(q string, i int) int {
	for i < len(q) {
		n := blank(q, i)
		if n == 0 {
			break
		}
		i += n
	}
	rest := q[i:]
	switch {
	case strings.HasPrefix(rest, "--"), strings.HasPrefix(rest, "# "), strings.HasPrefix(rest, "#!"):
		if n := strings.IndexByte(rest, '\n'); n >= 0 {
			return i + n + 1
		}
		return len(q)
	case strings.HasPrefix(rest, "/*"):
		if n := strings.Index(rest[2:], "*/"); n >= 0 {
			return i + n + 4
		}
		return len(q)
	}
	return i
}

func closeQuote(q string, i int) int {
	if n := skipQuoted(q, i); n >= 0 {
		return n + 1
	}
	return len(q)
}

// closeHeredoc reads $tag$ … $tag$; a lone dollar is an operator's business.
func closeHeredoc(q string, i int) int {
	n := strings.IndexByte(q[i+1:], '$')
	if n < 0 {
		return i + 1
	}
	tag := q[i : i+n+2]
	for _, c := range []byte(tag[1 : len(tag)-1]) {
		if !isWordPart(c) {
			return i + 1
		}
	}
	body := i + len(tag)
	if end := strings.Index(q[body:], tag); end >= 0 {
		return body + end + len(tag)
	}
	return i + 1
}
