package codec

import (
	"bytes"
	"time"
	"unicode/utf8"
)

// A Decoder holds the scratch that decoding needs. The zero value is ready; it
// serves one goroutine.
type Decoder struct {
	scratch []byte          // unescaped text of the event at hand
	tags    [][]byte        // backing of Event.Tags
	stack   []uint64        // brackets below the 64 innermost, see skipValue
	offset  [fieldCount]int // of each field's last value, 0 when absent: the brace comes first
	rough   bool            // something was unescaped, so that text may need escaping
	nul     uint16          // fields, by bit, whose last value holds U+0000
	start   int             // of the event at hand
	broken  Error           // first rule broken, if broken.what != none
	fatal   Error           // where the text stopped being JSON
}

// Decode decodes one whole document, checking what the contract demands
// without regard to settings or the clock. The key received_at is unknown to
// it. The error, if any, is valid until the next call.
func (d *Decoder) Decode(data []byte, ev *Event) *Error {
	return d.document(data, ev, &contract, false)
}

// DecodeUnder is Decode that checks the rules at now as well, as a Batch does.
func (d *Decoder) DecodeUnder(rules Rules, now time.Time, data []byte, ev *Event) *Error {
	rules = rules.withDefaults()
	lim := rules.at(now)
	return d.document(data, ev, &lim, false)
}

// DecodeRecord decodes the value of a record on the topic: the same grammar,
// with event_id and received_at required, and the event's ID found.
func (d *Decoder) DecodeRecord(value []byte, ev *Event) *Error {
	if d.canonical(value, ev) {
		return nil
	}
	if err := d.document(value, ev, &contract, true); err != nil {
		return err
	}
	ev.ID = ID(ev.EventID)
	return nil
}

func (d *Decoder) document(data []byte, ev *Event, lim *limits, record bool) *Error {
	i := skipSpace(data, 0)
	if i == len(data) {
		d.fail(emptyBody, i)
		return &d.fatal
	}
	if i = d.event(data, i, ev, lim, record); i < 0 {
		return &d.fatal
	}
	if i = skipSpace(data, i); i != len(data) {
		d.fail(trailingData, i)
		return &d.fatal
	}
	if d.broken.what != none {
		return &d.broken
	}
	return nil
}

// fail notes where the text stopped being JSON and returns the index that says so.
func (d *Decoder) fail(w what, offset int) int {
	d.fatal = newError(w, "", offset, 0)
	return -1
}

// reject notes a broken rule; the first one is the one reported.
func (d *Decoder) reject(w what, f field, offset int, limit int) {
	if d.broken.what == none {
		d.broken = newError(w, fieldNames[f], offset, int64(limit))
	}
}

// event decodes the value at i, which must exist, and returns the index behind
// it. d.broken tells whether the event is to be rejected.
func (d *Decoder) event(data []byte, i int, ev *Event, lim *limits, record bool) int {
	*ev = Event{}
	d.scratch = d.scratch[:0]
	d.rough = false
	d.offset = [fieldCount]int{}
	d.start = i
	d.broken.what = none
	if data[i] != '{' {
		if i = d.skipValue(data, i, 0); i >= 0 {
			d.reject(wantObject, unknownField, d.start, 0)
		}
		return i
	}
	i = d.members(data, i+1, ev, record)
	if i >= 0 && d.broken.what == none {
		d.check(ev, i-d.start, lim, record)
	}
	return i
}

// members decodes the keys and values from behind the opening brace to behind
// the closing one.
func (d *Decoder) members(data []byte, i int, ev *Event, record bool) int {
	i = skipSpace(data, i)
	if i < len(data) && data[i] == '}' {
		return i + 1
	}
	for {
		var f field
		if f, i = d.fieldKey(data, i); i < 0 {
			return i
		}
		if f == receivedAt && !record {
			f = unknownField
		}
		if i = d.value(data, i, f, ev); i < 0 {
			return i
		}
		if i < len(data) && data[i] <= ' ' {
			i = skipSpace(data, i)
		}
		if i >= len(data) {
			return d.fail(unexpectedEnd, i)
		}
		c := data[i]
		i++
		if c == ',' {
			if i < len(data) && data[i] <= ' ' {
				i = skipSpace(data, i)
			}
			continue
		}
		if c == '}' {
			return i
		}
		return d.fail(wantCommaOrEnd, i-1)
	}
}

// text turns the raw text of a string at offset into its meaning: a view of
// the input, or of the scratch when something had to be unescaped.
func (d *Decoder) text(raw []byte, flags uint8, offset int, f field) []byte {
	if flags&high != 0 && !utf8.Valid(raw) {
		d.reject(badUTF8, f, offset+firstInvalid(raw), 0)
		return nil
	}
	if flags&escaped == 0 {
		return raw
	}
	d.rough = true
	start := len(d.scratch)
	d.scratch = unescape(d.scratch, raw)
	text := d.scratch[start:len(d.scratch):len(d.scratch)]
	if bytes.IndexByte(text, 0) >= 0 {
		d.nul |= 1 << f
	}
	return text
}
