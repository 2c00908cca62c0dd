// Package codec turns the JSON of one event into a checked Event and an Event
// into the record that goes on the topic. It also owns the only pool of event
// memory: a Batch holds every record of one request in one arena.
//
// Why not a JSON library. An event has eight known keys, a record one more
// (received_at), so the scanner is directed by them: it walks the text once,
// validates every byte of it (grammar, UTF-8, depth, unknown keys and metadata
// included) and hands out views into it. There is no reflection, no map and no intermediate tree, and
// nothing is allocated in steady state; general decoders pay all three and are
// laxer than the contract where it matters (raw control characters, broken
// UTF-8, unchecked values under skipped keys). They serve as oracles in the
// tests instead.
//
// The decisions RFC 8259 leaves open:
//
//   - Duplicate keys: the last one wins, null included. Every occurrence must
//     have the right type; the rules about its content hold for the winner.
//   - Keys match exactly, after unescaping. Case is not folded.
//   - null equals absent for every field, and so does an empty event_id.
//   - Broken UTF-8 is an error, a lone surrogate escape becomes U+FFFD,
//     \u0000 is refused in the fields that identify and kept elsewhere.
//   - timestamp is an integer literal: 1e3 and 1.0 are refused.
//   - Nesting deeper than MaxDepth, the event itself being level 1, is refused.
//
// Two kinds of failure are told apart. When the text stops being JSON the rest
// of it has no meaning: the whole body fails. When one event breaks a rule (or
// carries broken UTF-8, or nests too deep) the scanner still knows where the
// event ends: that event is rejected and the next one is read. If both happen
// the first kind is reported.
//
// Bytes: an Event views the input and its Decoder's scratch, and lives until
// either changes. A Batch copies; its records live until the last Release.
// A Decoder and a Batch belong to one goroutine at a time, except Retain and
// Release, which any goroutine may call.
package codec

import (
	"time"
)

// MaxDepth is the deepest nesting of an event. Sixty-four brackets fit in one
// machine word, and no recorded event of ours nests deeper than five.
const MaxDepth = 64

// endTime is 2106-02-07T06:28:16Z in Unix ms, the first instant that a
// ClickHouse DateTime (32-bit Unix seconds) cannot hold.
const endTime = int64(1) << 32 * 1000

// Event is one decoded event. The byte fields are views into the input, or
// into the Decoder's scratch where unescaping was needed; they are valid until
// the next Decode or until the input changes.
type Event struct {
	Name       []byte // event_name, unescaped
	Channel    []byte // empty when absent
	CampaignID []byte // empty when absent
	UserID     []byte
	EventID    []byte   // the client's text, empty when absent
	ID         [16]byte // of EventID, only of records on the topic
	Timestamp  int64    // Unix ms
	ReceivedAt int64    // Unix ms, only in records on the topic
	Tags       [][]byte // unescaped
	Metadata   []byte   // the raw JSON object byte for byte, nil when absent
}

// Rules are the settings an event is checked against on its way in. A zero
// field means its default.
type Rules struct {
	MaxEventBytes int           // length of one event's text; default 64 KiB
	MaxEvents     int           // events in one body; default 10,000
	MaxFieldBytes int           // length of one string field or tag, unescaped; default 1024
	MinTime       int64         // Unix ms, inclusive; default 2000-01-01
	MaxAge        time.Duration // how far before now a timestamp may lie; default 0: MinTime alone decides
	MaxAhead      time.Duration // how far after now a timestamp may lie; default 24 h
}

func (r Rules) withDefaults() Rules {
	if r.MaxEventBytes == 0 {
		r.MaxEventBytes = 64 << 10
	}
	if r.MaxEvents == 0 {
		r.MaxEvents = 10_000
	}
	if r.MaxFieldBytes == 0 {
		r.MaxFieldBytes = 1024
	}
	if r.MinTime == 0 {
		r.MinTime = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	}
	if r.MaxAhead == 0 {
		r.MaxAhead = 24 * time.Hour
	}
	return r
}

// limits are Rules resolved against one instant, as plain comparisons.
type limits struct {
	eventBytes int
	fieldBytes int
	oldest     int64 // Unix ms, inclusive: below is too old
	newest     int64 // Unix ms, inclusive: above is too far ahead
}

// contract holds where no settings apply: what the columns can store.
var contract = limits{
	eventBytes: int(^uint(0) >> 1),
	fieldBytes: int(^uint(0) >> 1),
	oldest:     0,
	newest:     endTime - 1,
}

func (r *Rules) at(now time.Time) limits {
	oldest, newest := r.MinTime, now.Add(r.MaxAhead).UnixMilli()
	if r.MaxAge > 0 {
		oldest = max(oldest, now.Add(-r.MaxAge).UnixMilli())
	}
	return limits{
		eventBytes: r.MaxEventBytes,
		fieldBytes: r.MaxFieldBytes,
		oldest:     max(oldest, 0),
		newest:     min(newest, endTime-1),
	}
}
