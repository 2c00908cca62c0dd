package load

import (
	"bytes"
	"errors"
)

// answer is one HTTP/1.1 response as far as the generator looks at it.
type answer struct {
	status int
	body   []byte
	close  bool // the server will close the connection
}

// Answers that end the connection: what follows on it has no meaning.
var (
	errNotHTTP   = errors.New("the answer is not HTTP/1.1")
	errNoLength  = errors.New("the answer has no Content-Length")
	errLong      = errors.New("the answer is longer than its Content-Length")
	errBigHeader = errors.New("the header of the answer is too long")
)

// maxHeader bounds what is read before the header must have ended.
const maxHeader = 16 << 10

// frame reads the one answer in buf. ok is false when it is not all there yet.
// One request is out at a time, so bytes behind the answer are an error.
func frame(buf []byte) (a answer, ok bool, err error) {
	end := bytes.Index(buf, []byte("\r\n\r\n"))
	if end < 0 {
		if len(buf) > maxHeader {
			return a, false, errBigHeader
		}
		return a, false, nil
	}
	head, rest := buf[:end+2], buf[end+4:]
	line := bytes.IndexByte(head, '\n')
	if line < 13 || string(head[:9]) != "HTTP/1.1 " {
		return a, false, errNotHTTP
	}
	for _, c := range head[9:12] {
		if c < '0' || c > '9' {
			return a, false, errNotHTTP
		}
		a.status = 10*a.status + int(c-'0')
	}
	length := -1
	for h := head[line+1:]; len(h) > 0; {
		line = bytes.IndexByte(h, '\n')
		name, value, found := bytes.Cut(h[:line], []byte(":"))
		h = h[line+1:]
		if !found {
			return a, false, errNotHTTP
		}
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length = number(bytes.TrimSpace(value)); length < 0 {
				return a, false, errNoLength
			}
		case bytes.EqualFold(name, []byte("Connection")):
			a.close = bytes.EqualFold(bytes.TrimSpace(value), []byte("close"))
		}
	}
	switch {
	case length < 0:
		return a, false, errNoLength
	case len(rest) < length:
		return a, false, nil
	case len(rest) > length:
		return a, false, errLong
	}
	a.body = rest
	return a, true, nil
}

// number is text as a decimal number, -1 when it is none.
func number(text []byte) int {
	if len(text) == 0 || len(text) > 9 {
		return -1
	}
	n := 0
	for _, c := range text {
		if c < '0' || c > '9' {
			return -1
		}
		n = 10*n + int(c-'0')
	}
	return n
}

// counts reads `"accepted":A,"rejected":R` out of the answer to a bulk request;
// ok is false when it says neither, as the answer to a single event does.
func counts(body []byte) (accepted, rejected int, ok bool) {
	a, aok := member(body, `"accepted":`)
	r, rok := member(body, `"rejected":`)
	return a, r, aok && rok
}

func member(body []byte, key string) (int, bool) {
	i := bytes.Index(body, []byte(key))
	if i < 0 {
		return 0, false
	}
	text := body[i+len(key):]
	end := 0
	for end < len(text) && text[end] >= '0' && text[end] <= '9' {
		end++
	}
	n := number(text[:end])
	return n, n >= 0
}
