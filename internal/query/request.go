package query

import (
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

const (
	// maxTime is the last second a DateTime column can hold, in the year 2106.
	maxTime = 1<<32 - 1

	// maxBuckets bounds the answer of group_by=minute, hour and day: a week of
	// minutes, a year of hours, thirty years of days. Twice as many would still
	// be read by nobody, and every group may be 12 kB of distinct-user state, which the
	// server sends, once for every part that has it, or, of rows alone, holds.
	maxBuckets = 11_000

	// maxNames bounds the answer of group_by=channel and campaign_id, the names
	// with most events first.
	maxNames = 10_000

	// maxNamesBytes bounds all those names together, which stand in an answer with up
	// to six bytes for one.
	maxNamesBytes = 1 << 20

	// maxNameBytes bounds event_name, channel and campaign_id: four times what
	// ingestion takes unless told otherwise, so a longer name is a mistake and
	// not an unknown event.
	maxNameBytes = 4096

	defaultSpan = 24 * 60 * 60
)

// Request is one validated metrics query over [From, To).
type Request struct {
	EventName  string
	From, To   int64  // Unix seconds; From inclusive, To exclusive
	GroupBy    string // "", channel, campaign_id, minute, hour or day
	Channel    string // only this channel; "" is every channel
	CampaignID string // only this campaign; "" is every campaign
	Zone       string // IANA zone of minute, hour and day groups; "" is UTC
	CountsOnly bool   // leave distinct users out of the answer
}

// Parse reads the parameters of GET /metrics:
//
//	event_name    required
//	from, to      Unix seconds, from inclusive, to exclusive; to defaults to
//	              the end of the current second, from to 24 h before to
//	group_by      channel, campaign_id, minute, hour, day; absent: no groups
//	channel       exact filter
//	campaign_id   exact filter
//	timezone      IANA name; the zone whose days and hours group_by means
//	unique_users  false leaves distinct users out, which lets counts by the
//	              minute come from the rollup
//
// get returns "" for an absent parameter, which therefore equals an empty one,
// and the first value of a repeated one. Every error is the caller's (400): one
// sentence that names the parameter and the rule.
func Parse(get func(name string) string, now time.Time) (Request, error) {
	r := Request{
		EventName:  get("event_name"),
		GroupBy:    get("group_by"),
		Channel:    get("channel"),
		CampaignID: get("campaign_id"),
	}
	if r.EventName == "" {
		return Request{}, errors.New("event_name is required")
	}
	for _, p := range [...]struct{ name, value string }{
		{"event_name", r.EventName}, {"channel", r.Channel}, {"campaign_id", r.CampaignID},
	} {
		if len(p.value) > maxNameBytes {
			return Request{}, fmt.Errorf("%s is %d bytes long; at most %d are allowed", p.name, len(p.value), maxNameBytes)
		}
		if !utf8.ValidString(p.value) {
			return Request{}, fmt.Errorf("%s must be valid UTF-8", p.name)
		}
	}
	switch get("unique_users") {
	case "", "true":
	case "false":
		r.CountsOnly = true
	default:
		return Request{}, errors.New("unique_users must be true or false")
	}
	var err error
	if r.From, r.To, err = parseRange(get("from"), get("to"), now); err != nil {
		return Request{}, err
	}
	r.Zone = get("timezone")
	if err := checkGroup(&r); err != nil {
		return Request{}, err
	}
	return r, nil
}

func parseRange(from, to string, now time.Time) (f, t int64, err error) {
	// The current second is part of the default range: an event that was just
	// accepted shows up.
	t = now.Unix() + 1
	if to != "" {
		if t, err = parseTime("to", to); err != nil {
			return 0, 0, err
		}
	}
	f = max(0, t-defaultSpan)
	if from != "" {
		if f, err = parseTime("from", from); err != nil {
			return 0, 0, err
		}
	}
	if f >= t {
		return 0, 0, fmt.Errorf("from (%d) must be before to (%d)", f, t)
	}
	return f, t, nil
}

func parseTime(name, value string) (int64, error) {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 0 || n > maxTime {
		return 0, fmt.Errorf("%s must be whole Unix seconds from 0 to %d", name, int64(maxTime))
	}
	return n, nil
}

func checkGroup(r *Request) error {
	zone, err := loadZone(r.Zone)
	if err != nil {
		return err
	}
	switch r.GroupBy {
	case "", "channel", "campaign_id":
		return nil
	}
	width := bucketSeconds(r.GroupBy)
	if width == 0 {
		return errors.New("group_by must be one of channel, campaign_id, minute, hour, day")
	}
	// Counted in UTC first, which a zone changes by two at most: a hostile
	// range does not get its century of clock changes looked up.
	n := (r.To-1)/width - r.From/width + 1
	if n <= maxBuckets+2 {
		n = zoneOffsets(zone, r.From, r.To).buckets(r.From, r.To, width)
	}
	if n > maxBuckets {
		return fmt.Errorf("group_by=%s over this range has %d groups; at most %d are allowed", r.GroupBy, n, maxBuckets)
	}
	return nil
}

// bucketSeconds is the width of a time group, 0 for every other grouping.
func bucketSeconds(groupBy string) int64 {
	switch groupBy {
	case "minute":
		return minuteGrain.seconds()
	case "hour":
		return hourGrain.seconds()
	case "day":
		return dayGrain.seconds()
	}
	return 0
}
