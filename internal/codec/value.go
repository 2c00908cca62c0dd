package codec

import "encoding/binary"

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
