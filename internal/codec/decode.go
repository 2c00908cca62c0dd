package codec

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"
)

// A Decoder holds the scratch that decoding needs. The zero value is ready; it
// serves one goroutine.
type Decoder struct {
	scratch []byte             // unescaped text of the event at hand
	tags    [][]byte           // backing of Event.Tags
	stack   [stackWords]uint64 // brackets below the 64 innermost, see skipValue
	offset  [fieldCount]int    // of each field's last value, 0 when absent: the brace comes first
	nul     uint16             // fields, by bit, whose last value holds U+0000
	start   int                // of the event at hand
	broken  Error              // first rule broken, if broken.what != none
	fatal   Error              // where the text stopped being JSON
}

type field uint8

const (
	unknownField field = iota
	eventName
	channel
	campaignID
	userID
	timestamp
	tags
	metadata
	eventID
	receivedAt
	fieldCount
)

var fieldNames = [fieldCount]string{
	eventName: "event_name", channel: "channel", campaignID: "campaign_id", userID: "user_id",
	timestamp: "timestamp", tags: "tags", metadata: "metadata", eventID: "event_id", receivedAt: "received_at",
}

func fieldOf(key []byte) field {
	switch string(key) {
	case "event_name":
		return eventName
	case "user_id":
		return userID
	case "timestamp":
		return timestamp
	case "metadata":
		return metadata
	case "channel":
		return channel
	case "campaign_id":
		return campaignID
	case "tags":
		return tags
	case "event_id":
		return eventID
	case "received_at":
		return receivedAt
	}
	return unknownField
}

// longestKey is the length of the longest known key, quote and colon included.
const longestKey = len(`campaign_id":`)

// knownKey recognises a key written without escapes and followed directly by
// its colon, from its text on, and returns the index behind the colon. It is
// the shortcut for what nearly every event looks like: comparing with the one
// or two keys of that first letter is a few loads, finding the closing quote
// first costs twice as much (227 B event: 205 to 170 ns).
func knownKey(data []byte, i int) (field, int) {
	if len(data)-i < longestKey {
		return unknownField, i
	}
	text := data[i : i+longestKey]
	switch text[0] {
	case 'e':
		if string(text[:12]) == `event_name":` {
			return eventName, i + 12
		}
		if string(text[:10]) == `event_id":` {
			return eventID, i + 10
		}
	case 'u':
		if string(text[:9]) == `user_id":` {
			return userID, i + 9
		}
	case 't':
		if string(text[:11]) == `timestamp":` {
			return timestamp, i + 11
		}
		if string(text[:6]) == `tags":` {
			return tags, i + 6
		}
	case 'm':
		if string(text[:10]) == `metadata":` {
			return metadata, i + 10
		}
	case 'c':
		if string(text[:9]) == `channel":` {
			return channel, i + 9
		}
		if string(text[:13]) == `campaign_id":` {
			return campaignID, i + 13
		}
	case 'r':
		if string(text[:13]) == `received_at":` {
			return receivedAt, i + 13
		}
	}
	return unknownField, i
}

// Decode decodes one whole document, checking what the contract demands
// without regard to settings or the clock. The key received_at is unknown to
// it. The error, if any, is valid until the next call.
func (d *Decoder) Decode(data []byte, ev *Event) *Error {
	return d.document(data, ev, &contract, false)
}

// DecodeRecord decodes the value of a record on the topic: the same grammar,
// with event_id and received_at required.
func (d *Decoder) DecodeRecord(value []byte, ev *Event) *Error {
	return d.document(value, ev, &contract, true)
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
	d.nul = 0
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

// fieldKey reads a key and its colon and returns the index of the value, which
// exists.
func (d *Decoder) fieldKey(data []byte, i int) (field, int) {
	if i < len(data) && data[i] == '"' {
		if f, next := knownKey(data, i+1); f != unknownField && next < len(data) {
			if data[next] <= ' ' {
				if next = skipSpace(data, next); next == len(data) {
					return 0, d.fail(unexpectedEnd, next)
				}
			}
			return f, next
		}
	}
	key, i := d.key(data, i)
	if i < 0 {
		return 0, i
	}
	return fieldOf(key), i
}

// key reads a key and its colon and returns the index of the value, which
// exists. The key is valid until the next string is unescaped.
func (d *Decoder) key(data []byte, i int) (key []byte, next int) {
	if i >= len(data) {
		return nil, d.fail(unexpectedEnd, i)
	}
	if data[i] != '"' {
		return nil, d.fail(wantKey, i)
	}
	start := i + 1
	end, flags := scanString(data, start)
	if end < 0 {
		return nil, d.fail(what(flags), ^end)
	}
	key = data[start:end]
	if flags != 0 {
		key = d.text(key, flags, start, unknownField)
	}
	i = end + 1
	if i >= len(data) || data[i] != ':' {
		if i = skipSpace(data, i); i >= len(data) {
			return nil, d.fail(unexpectedEnd, i)
		}
		if data[i] != ':' {
			return nil, d.fail(wantColon, i)
		}
	}
	i++
	if i < len(data) && data[i] <= ' ' {
		i = skipSpace(data, i)
	}
	if i >= len(data) {
		return nil, d.fail(unexpectedEnd, i)
	}
	return key, i
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
	start := len(d.scratch)
	d.scratch = unescape(d.scratch, raw)
	text := d.scratch[start:len(d.scratch):len(d.scratch)]
	if bytes.IndexByte(text, 0) >= 0 {
		d.nul |= 1 << f
	}
	return text
}

// value reads the value at i into the field's place.
func (d *Decoder) value(data []byte, i int, f field, ev *Event) int {
	d.offset[f] = i
	d.nul &^= 1 << f
	switch f {
	case eventName:
		return d.stringValue(data, i, f, &ev.Name)
	case userID:
		return d.stringValue(data, i, f, &ev.UserID)
	case timestamp:
		return d.integerValue(data, i, f, &ev.Timestamp)
	case metadata:
		return d.metadataValue(data, i, &ev.Metadata)
	case channel:
		return d.stringValue(data, i, f, &ev.Channel)
	case campaignID:
		return d.stringValue(data, i, f, &ev.CampaignID)
	case tags:
		return d.tagsValue(data, i, &ev.Tags)
	case eventID:
		return d.stringValue(data, i, f, &ev.EventID)
	case receivedAt:
		return d.integerValue(data, i, f, &ev.ReceivedAt)
	}
	return d.skipValue(data, i, 1)
}

// other handles a value that is not of the field's type: null is absent,
// anything else breaks a rule.
func (d *Decoder) other(data []byte, i int, f field, w what) int {
	if data[i] == 'n' {
		d.offset[f] = 0
		return d.literal(data, i, "null")
	}
	next := d.skipValue(data, i, 1)
	if next >= 0 {
		d.reject(w, f, i, 0)
	}
	return next
}

func (d *Decoder) stringValue(data []byte, i int, f field, p *[]byte) int {
	if data[i] != '"' {
		*p = nil
		return d.other(data, i, f, wantString)
	}
	end, flags := scanString(data, i+1)
	if end < 0 {
		return d.fail(what(flags), ^end)
	}
	text := data[i+1 : end : end]
	if flags != 0 {
		text = d.text(text, flags, i+1, f)
	}
	*p = text
	return end + 1
}

// integerValue reads an integer literal that fits in 64 bits.
func (d *Decoder) integerValue(data []byte, i int, f field, p *int64) int {
	*p = 0
	if c := data[i]; c != '-' && c-'0' > 9 {
		return d.other(data, i, f, wantInteger)
	}
	start := i
	negative := data[i] == '-'
	if negative {
		i++
	}
	var n uint64
	digits := i
	if i+8 <= len(data) {
		if w := binary.LittleEndian.Uint64(data[i:]) ^ ones*'0'; allDigits(w) {
			n = eightDigits(w)
			i += 8
		}
	}
	for i < len(data) && data[i]-'0' <= 9 && i-digits < 19 {
		n = n*10 + uint64(data[i]-'0')
		i++
	}
	leadingZero := i > digits+1 && data[digits] == '0'
	if i == digits || leadingZero || i < len(data) && numberGoesOn[data[i]] {
		next := skipNumber(data, start)
		if next < 0 {
			return d.failNumber(data, ^next)
		}
		if leadingZero { // the number ended after its 0
			return d.fail(badNumber, next)
		}
		d.reject(wantInteger, f, start, 0)
		return next
	}
	// Nineteen digits fit in 64 unsigned bits; what does not fit in 63 is refused.
	if n > 1<<63-1 {
		d.reject(wantInteger, f, start, 0)
	}
	*p = int64(n)
	if negative {
		*p = -int64(n)
	}
	return i
}

// numberGoesOn are the bytes that may follow the digits inside a number.
var numberGoesOn = [256]bool{
	'.': true, 'e': true, 'E': true,
	'0': true, '1': true, '2': true, '3': true, '4': true,
	'5': true, '6': true, '7': true, '8': true, '9': true,
}

// allDigits tells whether every byte of w, which is text xor '0', is 0 to 9.
func allDigits(w uint64) bool { return (w|(w+ones*6))&(ones*0xF0) == 0 }

// eightDigits joins eight decimal digits, first in the lowest byte, pairwise.
func eightDigits(w uint64) uint64 {
	w = w*10 + w>>8
	const mask = 0x000000FF000000FF
	return ((w&mask)*(100+1000000<<32) + (w>>16&mask)*(1+10000<<32)) >> 32
}

func (d *Decoder) failNumber(data []byte, offset int) int {
	if offset >= len(data) {
		return d.fail(unexpectedEnd, offset)
	}
	return d.fail(badNumber, offset)
}

func (d *Decoder) metadataValue(data []byte, i int, p *[]byte) int {
	*p = nil
	if data[i] != '{' {
		return d.other(data, i, metadata, wantMetadata)
	}
	end := d.skipValue(data, i, 1)
	if end >= 0 {
		*p = data[i:end:end]
	}
	return end
}

func (d *Decoder) tagsValue(data []byte, i int, p *[][]byte) int {
	*p = nil
	if data[i] != '[' {
		return d.other(data, i, tags, wantStrings)
	}
	list := d.tags[:0]
	start := i
	i = skipSpace(data, i+1)
	if i < len(data) && data[i] == ']' {
		return i + 1
	}
	for {
		if i >= len(data) {
			return d.fail(unexpectedEnd, i)
		}
		if data[i] != '"' {
			// The rest is only walked: the event is lost, its neighbours are not.
			next := d.skipValue(data, start, 1)
			if next >= 0 {
				d.reject(wantStrings, tags, i, 0)
			}
			return next
		}
		end, flags := scanString(data, i+1)
		if end < 0 {
			return d.fail(what(flags), ^end)
		}
		text := data[i+1 : end : end]
		if flags != 0 {
			text = d.text(text, flags, i+1, tags)
		}
		list = append(list, text)
		i = skipSpace(data, end+1)
		if i >= len(data) {
			return d.fail(unexpectedEnd, i)
		}
		if data[i] == ']' {
			break
		}
		if data[i] != ',' {
			return d.fail(wantCommaOrEnd, i)
		}
		i = skipSpace(data, i+1)
	}
	d.tags = list
	*p = list
	return i + 1
}
