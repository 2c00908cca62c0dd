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
	// tokenForeign is text that the engine's lexer may cut in another way: a
	// character beyond ASCII that is neither quoted nor a blank (curly quotes are
	// quotes there), // (a comment), a comment in a comment, a heredoc of an odd
	// tag. No statement needs it outside of data.
	tokenForeign
)

// A token is a piece of the statement, with its place in the text.
type token struct {
	kind       tokenKind
	start, end int
	depth      int // nesting of parentheses it stands in
}

// lex cuts the first most tokens of a statement as the engine's own lexer does, comments
// dropped, and marks what it is not sure of as foreign. It never fails: what does not close
// reaches to the end of the text, and the engine's parser says what is wrong with it.
func lex(q string, most int) []token {
	tokens := make([]token, 0, 64)
	depth := 0
	for i := 0; i < len(q) && len(tokens) < most; {
		t := token{kind: tokenOther, start: i, depth: depth}
		if n, nested := skipBlank(q, i); n > i {
			if nested {
				t.kind, t.end = tokenForeign, n
				tokens = append(tokens, t)
			}
			i = n
			continue
		}
		switch c := q[i]; {
		case c >= utf8.RuneSelf:
			_, n := utf8.DecodeRuneInString(q[i:])
			t.kind, i = tokenForeign, i+n
		case strings.HasPrefix(q[i:], "//"):
			t.kind, i = tokenForeign, i+2
		case isWordStart(c):
			t.kind = tokenWord
			for i++; i < len(q) && isWordPart(q[i]); i++ {
			}
		case c == '`' || c == '"':
			t.kind, i = tokenQuoted, closeQuote(q, i)
		case c == '\'':
			t.kind, i = tokenString, closeQuote(q, i)
		case c == '$':
			t.kind, i = closeHeredoc(q, i)
		case c >= '0' && c <= '9':
			for i++; i < len(q) && isWordPart(q[i]); i++ {
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
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
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

// skipBlank returns the index after white space and one comment at i, and whether
// another one begins inside that.
func skipBlank(q string, i int) (next int, nested bool) {
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
			return i + n + 1, false
		}
		return len(q), false
	case strings.HasPrefix(rest, "/*"):
		text, _, closed := strings.Cut(rest[2:], "*/")
		if nested = strings.Contains(text, "/*"); closed {
			return i + 2 + len(text) + 2, nested
		}
		return len(q), nested
	}
	return i, false
}

func closeQuote(q string, i int) int {
	if n := skipQuoted(q, i); n >= 0 {
		return n + 1
	}
	return len(q)
}

// closeHeredoc reads $tag$ … $tag$; a lone dollar is an operator's business.
func closeHeredoc(q string, i int) (kind tokenKind, end int) {
	n := strings.IndexByte(q[i+1:], '$')
	if n < 0 {
		return tokenOther, i + 1
	}
	tag := q[i : i+n+2]
	for _, c := range []byte(tag[1 : len(tag)-1]) {
		if !isWordPart(c) {
			return tokenForeign, i + 1
		}
	}
	body := i + len(tag)
	if end := strings.Index(q[body:], tag); end >= 0 {
		return tokenString, body + end + len(tag)
	}
	return tokenOther, i + 1
}
