package codec

// check holds a well-formed event of size bytes against the rules. Missing
// fields point at the event, broken ones at their value.
func (d *Decoder) check(ev *Event, size int, lim *limits, record bool) {
	if size > lim.eventBytes {
		d.reject(eventTooLarge, unknownField, d.start, lim.eventBytes)
		return
	}
	d.checkString(eventName, ev.Name, true, lim)
	d.checkString(userID, ev.UserID, true, lim)
	d.checkString(channel, ev.Channel, false, lim)
	d.checkString(campaignID, ev.CampaignID, false, lim)
	d.checkString(eventID, ev.EventID, record, lim)
	if !knownChannel(ev.Channel) {
		d.reject(badChannel, channel, d.offset[channel], 0)
	}
	for _, tag := range ev.Tags {
		if len(tag) > lim.fieldBytes {
			d.reject(tooLong, tags, d.offset[tags], lim.fieldBytes)
		}
	}
	d.checkTime(ev.Timestamp, lim)
	if record {
		d.checkInstant(receivedAt, ev.ReceivedAt)
	}
}

func (d *Decoder) checkString(f field, text []byte, required bool, lim *limits) {
	switch {
	case len(text) == 0:
		if required {
			d.reject(missing, f, d.start, 0)
		}
	case len(text) > lim.fieldBytes:
		d.reject(tooLong, f, d.offset[f], lim.fieldBytes)
	case d.nul&(1<<f) != 0:
		d.reject(hasNUL, f, d.offset[f], 0)
	}
}

func knownChannel(name []byte) bool {
	switch string(name) {
	case "", "web", "mobile", "api", "email", "push":
		return true
	}
	return false
}

func (d *Decoder) checkTime(t int64, lim *limits) {
	at := d.offset[timestamp]
	switch {
	case at == 0:
		d.reject(missing, timestamp, d.start, 0)
	case t < lim.oldest && lim != &contract:
		d.rejectTime(belowRange, at, lim.oldest)
	case t > lim.newest && lim != &contract:
		d.rejectTime(aboveRange, at, lim.newest)
	default:
		d.checkInstant(timestamp, t)
	}
}

func (d *Decoder) rejectTime(w what, offset int, bound int64) {
	if d.broken.what == none {
		d.broken = newError(w, fieldNames[timestamp], offset, bound)
	}
}

// checkInstant holds a time against what the columns can store.
func (d *Decoder) checkInstant(f field, t int64) {
	if d.offset[f] == 0 {
		d.reject(missing, f, d.start, 0)
	} else if t < 0 || t >= endTime {
		d.reject(outOfRange, f, d.offset[f], 0)
	}
}
