package codec

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// A sink decodes what appendRecord has encoded, and nearly every such record has no
// escape in its texts and times of thirteen digits. Then what comes next is known after
// each value, and the names of the fields are compared where they must be. Records of any
// other form are left to the grammar, which alone says what is wrong with one; those that
// somebody else made are known by their end, which is looked at first.

// At least, from behind the value to the end of the record.
const (
	afterEventID  = len(`","received_at":`) + 13 + len(`}`) // exactly
	afterMetadata = len(`,"event_id":"`) + 1 + afterEventID
	afterUserID   = len(`","timestamp":`) + 13 + afterMetadata
)

// canonical decodes value, a record, if it is of that form and breaks no rule, and
// tells whether it did.
func (d *Decoder) canonical(value []byte, ev *Event) bool {
	const start = len(`{"event_name":"`)
	if len(value) < start+afterUserID || string(value[:start]) != `{"event_name":"` {
		return false
	}
	*ev = Event{}
	tail := value[len(value)-afterEventID:]
	if string(tail[:16]) != `","received_at":` || tail[29] != '}' {
		return false
	}
	if ev.ReceivedAt = thirteenDigits((*[13]byte)(tail[16:])); ev.ReceivedAt < 0 {
		return false
	}
	var seen uint64
	var end int
	if ev.Name, end = plainText(value, start, &seen); len(ev.Name) == 0 {
		return false
	}
	rest := value[end:]
	if len(rest) >= afterUserID && string(rest[:13]) == `","channel":"` {
		if ev.Channel, end = plainText(value, end+13, &seen); len(ev.Channel) == 0 || !knownChannel(ev.Channel) {
			return false
		}
		rest = value[end:]
	}
	if len(rest) >= afterUserID && string(rest[:17]) == `","campaign_id":"` {
		if ev.CampaignID, end = plainText(value, end+17, &seen); len(ev.CampaignID) == 0 {
			return false
		}
		rest = value[end:]
	}
	if len(rest) < afterUserID || string(rest[:13]) != `","user_id":"` {
		return false
	}
	if ev.UserID, end = plainText(value, end+13, &seen); len(ev.UserID) == 0 {
		return false
	}
	rest = value[end:]
	if len(rest) < afterUserID || string(rest[:14]) != `","timestamp":` {
		return false
	}
	if ev.Timestamp = thirteenDigits((*[13]byte)(rest[14:])); ev.Timestamp < 0 {
		return false
	}
	end += 14 + 13
	if rest = value[end:]; string(rest[:10]) == `,"tags":["` {
		if end = d.plainTags(value, end+10, ev, &seen); end < 0 {
			return false
		}
		rest = value[end:]
	}
	if len(rest) > afterMetadata && string(rest[:13]) == `,"metadata":{` {
		begin := end + 12
		d.broken.what = none
		if end = d.skipValue(value, begin, 1); end < 0 || d.broken.what != none {
			return false
		}
		ev.Metadata = value[begin:end:end]
		rest = value[end:]
	}
	if len(rest) < afterMetadata || string(rest[:13]) != `,"event_id":"` {
		return false
	}
	if ev.EventID, end = plainText(value, end+13, &seen); len(ev.EventID) == 0 || len(value)-end != afterEventID {
		return false
	}
	ev.ID = ID(ev.EventID)
	return seen&highs == 0 || utf8.Valid(value)
}

// plainText returns the text that starts at i, if there is neither escape nor control
// character before its closing quote, and where the quote is; nil otherwise, and for
// what ends within eight bytes of the end of data. What it looked at goes into seen.
func plainText(data []byte, i int, seen *uint64) (text []byte, end int) {
	start := i
	for i+8 <= len(data) {
		w := binary.LittleEndian.Uint64(data[i:])
		*seen |= w
		m := special(w)
		if m == 0 {
			i += 8
			continue
		}
		i += bits.TrailingZeros64(m) >> 3
		if data[i] != '"' {
			return nil, start
		}
		return data[start:i:i], i
	}
	return nil, start
}

// plainTags decodes the strings of an array whose first begins at i, and returns the
// index behind the array, or a negative one.
func (d *Decoder) plainTags(data []byte, i int, ev *Event, seen *uint64) int {
	list := d.tags[:0]
	for {
		tag, end := plainText(data, i, seen)
		if tag == nil || len(data)-end < afterMetadata {
			return -1
		}
		list = append(list, tag)
		switch {
		case data[end+1] == ',' && data[end+2] == '"':
			i = end + 3
		case data[end+1] == ']':
			d.tags, ev.Tags = list, list
			return end + 2
		default:
			return -1
		}
	}
}

// thirteenDigits is the time in text, Unix ms, or -1 when it is none of the years 2001
// to 2106.
func thirteenDigits(text *[13]byte) int64 {
	lead := binary.LittleEndian.Uint64(text[:]) ^ ones*'0'
	tail := binary.LittleEndian.Uint64(text[5:]) ^ ones*'0' // three of them twice
	if lead&0xFF == 0 || !allDigits(lead) || !allDigits(tail) {
		return -1
	}
	t := int64(eightDigits(lead))*1e5 + int64(eightDigits(tail>>24<<24))
	if t >= endTime {
		return -1
	}
	return t
}
