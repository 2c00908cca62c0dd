package codec

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"strconv"
)

// AppendRecord appends the record of ev: one JSON object that any parser
// reads, keys in a fixed order, absent optional fields left out, metadata byte
// for byte. The text of ev must be valid UTF-8, as Decode leaves it.
func AppendRecord(dst []byte, ev *Event) []byte {
	var text [20]byte
	return appendRecord(dst, ev, false, appendMillis(text[:0], ev.ReceivedAt))
}

// appendRecord is AppendRecord for whoever knows that no text of ev needs escaping,
// and the text of its ReceivedAt.
func appendRecord(dst []byte, ev *Event, plain bool, receivedAt []byte) []byte {
	dst = append(dst, `{"event_name":"`...)
	dst = appendText(dst, ev.Name, plain)
	if len(ev.Channel) > 0 {
		dst = append(dst, `","channel":"`...)
		dst = appendText(dst, ev.Channel, plain)
	}
	if len(ev.CampaignID) > 0 {
		dst = append(dst, `","campaign_id":"`...)
		dst = appendText(dst, ev.CampaignID, plain)
	}
	dst = append(dst, `","user_id":"`...)
	dst = appendText(dst, ev.UserID, plain)
	dst = append(dst, `","timestamp":`...)
	dst = appendMillis(dst, ev.Timestamp)
	if len(ev.Tags) > 0 {
		dst = append(dst, `,"tags":["`...)
		for i, tag := range ev.Tags {
			if i > 0 {
				dst = append(dst, `","`...)
			}
			dst = appendText(dst, tag, plain)
		}
		dst = append(dst, `"]`...)
	}
	if len(ev.Metadata) > 0 {
		dst = append(dst, `,"metadata":`...)
		dst = append(dst, ev.Metadata...)
	}
	dst = append(dst, `,"event_id":"`...)
	dst = appendText(dst, ev.EventID, plain)
	dst = append(dst, `","received_at":`...)
	dst = append(dst, receivedAt...)
	return append(dst, '}')
}

// appendMillis appends ms in decimal. Those of the years 2001 to 2286 have 13
// digits, which are found eight at a time.
func appendMillis(dst []byte, ms int64) []byte {
	if ms < 1e12 || ms >= 1e13 {
		return strconv.AppendInt(dst, ms, 10)
	}
	var text [16]byte
	binary.LittleEndian.PutUint64(text[:], textOfEight(uint64(ms/1e8)))
	binary.LittleEndian.PutUint64(text[8:], textOfEight(uint64(ms%1e8)))
	return append(dst, text[3:]...)
}

// textOfEight undoes eightDigits: n below 10^8 as eight digits of text, in the order
// of memory. Each step halves every number there is into its leading and its
// trailing digits, all of them in one multiplication by a reciprocal.
func textOfEight(n uint64) uint64 {
	n = n/1e4 | n%1e4<<32
	lead := n * 10486 >> 20 & (0x7F | 0x7F<<32) // of 4 digits: 10486/2^20 is 1/100
	n = lead | (n-100*lead)<<16
	lead = n * 103 >> 10 & (0xF | 0xF<<16 | 0xF<<32 | 0xF<<48) // of 2 digits: 103/2^10 is 1/10
	n = lead | (n-10*lead)<<8
	return n | 0x3030303030303030
}

// appendText appends text as the inside of a JSON string; plain says that it needs no
// escaping, as far as is known.
func appendText(dst, text []byte, plain bool) []byte {
	if plain || isPlain(text) {
		return append(dst, text...)
	}
	return appendEscaped(dst, text)
}

func appendEscaped(dst, text []byte) []byte {
	plain := 0
	for i, c := range text {
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, text[plain:i]...)
		dst = appendEscape(dst, c)
		plain = i + 1
	}
	return append(dst, text[plain:]...)
}

// isPlain tells whether text needs no escaping. The last step looks at bytes
// twice rather than at fewer than eight.
func isPlain(text []byte) bool {
	if len(text) < 8 {
		for _, c := range text {
			if c < 0x20 || c == '"' || c == '\\' {
				return false
			}
		}
		return true
	}
	for i := 0; i+8 < len(text); i += 8 {
		if special(binary.LittleEndian.Uint64(text[i:])) != 0 {
			return false
		}
	}
	return special(binary.LittleEndian.Uint64(text[len(text)-8:])) == 0
}

func appendEscape(dst []byte, c byte) []byte {
	const hex = "0123456789abcdef"
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	}
	return append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
}

// ID returns the 128-bit identity of an event_id: the bytes of a UUID in
// canonical text of any case, and for any other text the start of its SHA-256,
// marked as a version 8 UUID (RFC 9562) so that it cannot equal a UUID of
// another version. Everything that compares events compares this.
func ID(text []byte) [16]byte {
	if id, ok := parseUUID(text); ok {
		return id
	}
	sum := sha256.Sum256(text)
	id := [16]byte(sum[:16])
	id[6] = id[6]&0x0F | 0x80
	id[8] = id[8]&0x3F | 0x80
	return id
}

// parseUUID looks at every digit before it judges: a sink does this for each
// record, and a branch a digit cost four times as much, a table's lookup three times.
func parseUUID(text []byte) (id [16]byte, ok bool) {
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return id, false
	}
	t := (*[36]byte)(text)
	four := func(p *[4]byte) uint64 { return uint64(binary.LittleEndian.Uint32(p[:])) }
	a, badA := eightHex(binary.LittleEndian.Uint64(t[:8]))
	b, badB := eightHex(four((*[4]byte)(t[9:])) | four((*[4]byte)(t[14:]))<<32)
	c, badC := eightHex(four((*[4]byte)(t[19:])) | four((*[4]byte)(t[24:]))<<32)
	d, badD := eightHex(binary.LittleEndian.Uint64(t[28:]))
	binary.LittleEndian.PutUint64(id[:8], a|b<<32)
	binary.LittleEndian.PutUint64(id[8:], c|d<<32)
	return id, badA|badB|badC|badD == 0
}

// eightHex joins eight hex digits of either case, first in the lowest byte, into
// four bytes in the same order. bad has a bit for each byte that is none.
func eightHex(w uint64) (four, bad uint64) {
	// Of bytes below 0x80, which no sum carries out of: the high bit of each says so.
	letters := w | ones*0x20
	isLetter := (letters + ones*(0x80-'a')) &^ (letters + ones*(0x80-'g'))
	noDigit := w ^ ones*'0' + ones*(0x80-10)
	bad = (w | noDigit&^isLetter) & highs
	n := w&(ones*0x0F) + w>>6&ones*9 // a letter's low bits are 1 to 6
	n = (n<<4 | n>>8) & 0x00FF00FF00FF00FF
	n = (n | n>>8) & 0x0000FFFF0000FFFF
	return (n | n>>16) & 0xFFFFFFFF, bad
}

// appendUUID appends the canonical text of id.
func appendUUID(dst []byte, id [16]byte) []byte {
	const hex = "0123456789abcdef"
	for k, b := range id {
		if k == 4 || k == 6 || k == 8 || k == 10 {
			dst = append(dst, '-')
		}
		dst = append(dst, hex[b>>4], hex[b&15])
	}
	return dst
}

// PartitionHash spreads identities over partitions. Every bit of the id
// reaches every bit of the hash, because the leading half of a UUIDv7 hardly
// changes from one event to the next. The function is part of the stored
// contract: another one would send a retried event to another partition, whose
// window has never seen it.
func PartitionHash(id [16]byte) uint64 {
	h := mix(binary.BigEndian.Uint64(id[:8]))
	return mix(bits.RotateLeft64(h, 32) ^ binary.BigEndian.Uint64(id[8:]))
}

// mix is the 64-bit finalizer of MurmurHash3 (public domain), a bijection.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
