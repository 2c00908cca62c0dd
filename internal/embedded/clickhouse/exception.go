package clickhouse

import (
	"errors"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
)

// Codes of the exceptions raised here rather than by the engine. They are the
// numbers a ClickHouse server gives the same failures.
const (
	codeNotFoundColumn   = proto.Error(10)
	codeNotImplemented   = proto.Error(48)
	codeUnknownType      = proto.Error(50)
	codeSyntaxError      = proto.Error(62)
	codeUnexpectedPacket = proto.Error(101)
	codeUnknownSetting   = proto.Error(115)
	codeTooManyQueries   = proto.Error(202)
	codeMemoryLimit      = proto.Error(241)
	codeQueryCancelled   = proto.Error(394)
	codeAccessDenied     = proto.Error(497)
	codeAuthentication   = proto.Error(516)
	codeUnknown          = proto.Error(1002)
	codeNotASelect       = proto.Error(36)
	codeTooLargeInsert   = proto.Error(396) // TOO_MANY_ROWS_OR_BYTES
)

// An exception is a failure the client is told about; the connection survives.
type exception struct {
	code    proto.Error
	message string
}

func (e *exception) Error() string {
	return "code " + strconv.Itoa(int(e.code)) + ": " + e.message
}

func exceptionCode(err error) proto.Error {
	var e *exception
	if errors.As(err, &e) {
		return e.code
	}
	return 0
}

// parseException reads the library's `Code: 60. DB::Exception: … (UNKNOWN_TABLE)`.
func parseException(text string) *exception {
	text = strings.TrimSpace(text)
	e := &exception{code: codeUnknown, message: text}
	rest, ok := strings.CutPrefix(text, "Code: ")
	if !ok {
		return e
	}
	number, rest, ok := strings.Cut(rest, ".")
	if !ok {
		return e
	}
	n, err := strconv.ParseInt(number, 10, 32)
	if err != nil {
		return e
	}
	e.code = proto.Error(n)
	rest = strings.TrimSpace(rest)
	e.message = strings.TrimPrefix(rest, "DB::Exception: ")
	return e
}
