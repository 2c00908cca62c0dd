package codec

import "strconv"

// Reason classes an Error for status codes and metrics.
type Reason uint8

const (
	Malformed    Reason = iota + 1 // not JSON, not UTF-8, or not an object
	InvalidField                   // a field is missing, of the wrong type or out of its range
	TooOld                         // the timestamp lies below the bound
	TooLarge                       // the event's text is over MaxEventBytes
	TooDeep                        // nested over MaxDepth
	TooMany                        // more events in the body than MaxEvents
)

// Reasons lists every Reason, for whoever registers one counter per label.
var Reasons = [...]Reason{Malformed, InvalidField, TooOld, TooLarge, TooDeep, TooMany}

// String returns the metric label.
func (r Reason) String() string {
	switch r {
	case Malformed:
		return "malformed"
	case InvalidField:
		return "invalid_field"
	case TooOld:
		return "too_old"
	case TooLarge:
		return "too_large"
	case TooDeep:
		return "too_deep"
	case TooMany:
		return "too_many"
	}
	return "unknown"
}

// Error says what is wrong with an event or a body and where. It is a plain
// value: nothing is formatted or allocated until the text is asked for.
//
// Functions of this package return *Error, not error, pointing into memory
// that the next decode overwrites; copy the value to keep it.
type Error struct {
	Reason Reason
	what   what
	Field  string // the event's key, "" when no single field is to blame
	Offset int    // byte offset in the body
	Limit  int64  // the limit that was passed, where there is one
}

// what is the sentence of an Error.
type what uint8

const (
	none what = iota

	// The text stops being JSON.
	wantValue
	wantKey
	wantColon
	wantCommaOrEnd
	badLiteral
	badNumber
	badEscape
	badControl
	unexpectedEnd
	trailingData
	wantLines
	emptyBody
	wantArray

	// One event breaks a rule.
	wantObject
	badUTF8
	missing
	wantString
	wantInteger
	wantStrings
	wantMetadata
	wantEvents
	badChannel
	hasNUL
	tooLong
	belowRange
	aboveRange
	outOfRange
	eventTooLarge
	nestedTooDeep
	tooManyEvents
)

var sentences = [...]string{
	none:           "no error",
	wantValue:      "expected a value",
	wantKey:        "expected a key in double quotes",
	wantColon:      "expected a colon after the key",
	wantCommaOrEnd: "expected a comma or the closing bracket",
	badLiteral:     "expected true, false or null",
	badNumber:      "not a JSON number",
	badEscape:      "not a JSON escape sequence",
	badControl:     "raw control character in a string",
	unexpectedEnd:  "unexpected end",
	trailingData:   "unexpected data after the document",
	wantLines:      "unexpected data after the document; one event a line is application/x-ndjson",
	emptyBody:      "the body is empty",
	wantArray:      "expected an array of events or an object with the key events",
	wantObject:     "expected an object",
	badUTF8:        "is not valid UTF-8",
	missing:        "is required",
	wantString:     "must be a string",
	wantInteger:    "must be integer milliseconds since 1970 in 64 bits, without fraction or exponent",
	wantStrings:    "must be an array of strings",
	wantMetadata:   "must be an object",
	wantEvents:     "must be an array",
	badChannel:     "must be one of web, mobile, api, email, push, or empty",
	hasNUL:         "must not contain the character U+0000",
	tooLong:        "is longer than the limit in bytes, ",
	belowRange:     "lies before the oldest time accepted, in Unix milliseconds ",
	aboveRange:     "lies after the newest time accepted, in Unix milliseconds ",
	outOfRange:     "lies outside 1970 to 2106",
	eventTooLarge:  "the event is larger than the limit in bytes, ",
	nestedTooDeep:  "the event is nested deeper than the limit, ",
	tooManyEvents:  "the body has more events than the limit, ",
}

// reason of a sentence; what is not listed is Malformed.
func (w what) reason() Reason {
	switch w {
	case missing, wantString, wantInteger, wantStrings, wantMetadata, wantEvents,
		badChannel, hasNUL, tooLong, aboveRange, outOfRange:
		return InvalidField
	case belowRange:
		return TooOld
	case eventTooLarge:
		return TooLarge
	case nestedTooDeep:
		return TooDeep
	case tooManyEvents:
		return TooMany
	}
	return Malformed
}

func newError(w what, field string, offset int, limit int64) Error {
	return Error{Reason: w.reason(), what: w, Field: field, Offset: offset, Limit: limit}
}

// Error returns one sentence that names the field or the limit, and the offset.
func (e *Error) Error() string { return string(e.AppendText(nil)) }

// AppendText appends the sentence. It is printable ASCII without quotes or
// backslashes, so it can stand in a JSON string as it is.
func (e *Error) AppendText(dst []byte) []byte {
	switch {
	case e.Field != "":
		dst = append(dst, e.Field...)
		dst = append(dst, ' ')
	case e.what == badUTF8:
		dst = append(dst, "a string "...)
	case e.Reason == Malformed && e.what != wantObject:
		dst = append(dst, "malformed JSON: "...)
	}
	dst = append(dst, sentences[e.what]...)
	switch e.what {
	case tooLong, belowRange, aboveRange, eventTooLarge, nestedTooDeep, tooManyEvents:
		dst = strconv.AppendInt(dst, e.Limit, 10)
	}
	dst = append(dst, " (byte "...)
	dst = strconv.AppendInt(dst, int64(e.Offset), 10)
	return append(dst, ')')
}
