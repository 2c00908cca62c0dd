package codec

// envelope decodes {"events":[…]} at i and returns the index behind it, or -1
// with b.err set.
func (b *Batch) envelope(body []byte, i int) int {
	d := &b.dec
	start, found := i, false
	d.broken.what = none
	fatal := func() int {
		b.err = d.fatal
		return -1
	}
	i = skipSpace(body, i+1)
	if i < len(body) && body[i] == '}' {
		return b.noEvents(body, start, i+1)
	}
	for {
		var key []byte
		if key, i = d.key(body, i); i < 0 {
			return fatal()
		}
		switch {
		case string(key) != "events":
			i = d.skipValue(body, i, 1)
		case body[i] == '[':
			found = true
			if i = b.array(body, i); i < 0 {
				return i
			}
			d.broken.what = none // it was an event's, and is noted
		case body[i] == 'n':
			found = false
			i = d.literal(body, i, "null")
		default:
			b.fail(wantEvents, "events", i, 0)
			return -1
		}
		if i < 0 {
			return fatal()
		}
		if d.broken.what != none { // outside any event, so it is the body's
			b.err = d.broken
			return -1
		}
		i = skipSpace(body, i)
		switch {
		case i >= len(body):
			d.fail(unexpectedEnd, i)
			return fatal()
		case body[i] == '}':
			if !found {
				return b.noEvents(body, start, i+1)
			}
			return i + 1
		case body[i] != ',':
			d.fail(wantCommaOrEnd, i)
			return fatal()
		}
		i = skipSpace(body, i+1)
	}
}

// noEvents fails for the object at start, which has no events and ends before i. Another
// one behind it is lines of events under the wrong type: that there is more comes first,
// since it is no JSON.
func (b *Batch) noEvents(body []byte, start, i int) int {
	switch i = skipSpace(body, i); {
	case i == len(body):
		b.fail(missing, "events", start, 0)
	case body[i] == '{':
		b.fail(wantLines, "", i, 0)
	default:
		b.fail(trailingData, "", i, 0)
	}
	return -1
}
