package query

import (
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// Result is the answer to one Request.
type Result struct {
	Request   Request
	KeptFrom  int64 // Unix seconds; nothing before counts, since a TTL takes it; 0: all of the range does
	Events    int64
	Users     uint64 // distinct over the whole range, within the error bound; 0 with CountsOnly
	Groups    []Group
	Truncated bool // more names existed than an answer holds; Groups has the largest
}

// Group is one entry of the answer's data list.
type Group struct {
	// Label is the channel or campaign, "" for events that have none, or the
	// bucket's start in the request's zone, of a day the date alone:
	// 2024-02-24T13:00:00Z, 2024-02-24T14:00:00+01:00, 2024-02-24.
	Label  string
	Events int64
	Users  uint64
}

// bytes is about the memory that r takes.
func (r *Result) bytes() int {
	q := &r.Request
	n := 256 + len(q.EventName) + len(q.GroupBy) + len(q.Channel) + len(q.CampaignID) + len(q.Zone)
	for i := range r.Groups {
		n += 64 + len(r.Groups[i].Label)
	}
	return n
}

// AppendJSON appends the answer as one JSON object. unique_users is left out
// when it was not asked for; kept_from, and "truncated":true, are there only when it is so.
func (r *Result) AppendJSON(dst []byte) []byte {
	dst = slices.Grow(dst, 256+96*len(r.Groups))
	dst = append(dst, `{"event_name":`...)
	dst = AppendString(dst, r.Request.EventName)
	dst = append(dst, `,"from":`...)
	dst = strconv.AppendInt(dst, r.Request.From, 10)
	dst = append(dst, `,"to":`...)
	dst = strconv.AppendInt(dst, r.Request.To, 10)
	if r.KeptFrom != 0 {
		dst = append(dst, `,"kept_from":`...)
		dst = strconv.AppendInt(dst, r.KeptFrom, 10)
	}
	dst = append(dst, `,"grouped_by":`...)
	dst = AppendString(dst, r.Request.GroupBy)
	dst = r.appendCounts(append(dst, ','), r.Events, r.Users)
	dst = append(dst, `,"data":[`...)
	for i, g := range r.Groups {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"group":`...)
		dst = AppendString(dst, g.Label)
		dst = r.appendCounts(append(dst, ','), g.Events, g.Users)
		dst = append(dst, '}')
	}
	dst = append(dst, ']')
	if r.Truncated {
		dst = append(dst, `,"truncated":true`...)
	}
	return append(dst, '}')
}

func (r *Result) appendCounts(dst []byte, events int64, users uint64) []byte {
	dst = append(dst, `"total_events":`...)
	dst = strconv.AppendInt(dst, events, 10)
	if r.Request.CountsOnly {
		return dst
	}
	dst = append(dst, `,"unique_users":`...)
	return strconv.AppendUint(dst, users, 10)
}

// AppendString appends s as a JSON string. Bytes that are not UTF-8, which a foreign
// writer may have put into the tables and a client into its header, become U+FFFD.
func AppendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for _, c := range s { // an invalid byte ranges as U+FFFD
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', byte(c))
		case c < ' ' || c == 0x7f:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			dst = utf8.AppendRune(dst, c)
		}
	}
	return append(dst, '"')
}

// timeLabel is the label of a bucket key, as offsets.key makes them.
func timeLabel(groupBy string, key int64, zone *time.Location) string {
	if groupBy == "day" {
		return time.Unix(key, 0).UTC().Format(time.DateOnly)
	}
	return time.Unix(key, 0).In(zone).Format(time.RFC3339)
}
