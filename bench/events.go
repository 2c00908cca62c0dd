//go:build linux

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"time"

	"edge/bench/load"
)

// generated makes events of the size that SDKs send, about 230 bytes. They are
// made up and say so nowhere: the recorded sets of the tests have neither
// channel nor campaign. The same seed makes the same events.
type generated struct {
	rng       *rand.Rand
	names     int // distinct event names
	campaigns int
	n         int // events made: names and campaigns come in turn, so that none is missing, but not in step
	users     int
	at        time.Time
	withID    bool
	numbered  bool   // its user is its number, of userDigits digits
	eventName string // instead of one of names
}

func newGenerated(seed uint64) *generated {
	return &generated{rng: rand.New(rand.NewPCG(seed, 1)), names: 3, campaigns: 40, users: 100_000, at: time.Now()}
}

var (
	shown    = []string{"product_view", "add_to_cart", "checkout"}
	channels = []string{"web", "mobile", "api", "email", "push"}
	tagNames = []string{"electronics", "featured", "sale", "new", "outlet"}
)

const userDigits = 12

// append adds one event to dst. If it has an event_id, that is what it ends with, and no
// other has it.
func (g *generated) append(dst []byte) []byte {
	name := g.eventName
	if name == "" {
		n := g.n % g.names
		if name = shown[n%len(shown)]; n >= len(shown) {
			name = fmt.Sprintf("event_%05d", n)
		}
	}
	user := fmt.Sprintf("user_%d", g.rng.IntN(g.users))
	if g.numbered {
		user = fmt.Sprintf("user_%0*d", userDigits, g.n)
	}
	dst = fmt.Appendf(dst, `{"event_name":"%s","channel":"%s","campaign_id":"summer_sale_%d","user_id":"%s","timestamp":%d,"tags":["%s","%s"],"metadata":{"product_id":"SKU-%04d","page_url":"/products/laptop/%d"}`,
		name, channels[g.rng.IntN(len(channels))], (g.n+g.n/max(g.names, g.campaigns))%g.campaigns, user,
		g.at.UnixMilli()-int64(g.rng.IntN(60_000)), tagNames[g.rng.IntN(len(tagNames))], tagNames[g.rng.IntN(len(tagNames))],
		g.rng.IntN(10_000), g.rng.IntN(1000))
	g.n++
	if g.withID {
		dst = fmt.Appendf(dst, `,"event_id":"%08x-%04x-7000-8000-%012x"`, g.rng.Uint32(), g.rng.IntN(1<<16), g.rng.Uint64()>>16)
	}
	return append(dst, '}')
}

// singles are n requests of one event.
func (g *generated) singles(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = load.Post("edge", "/events", "application/json", g.append(nil))
	}
	return out
}

// bulkSize is how many events a bulk has.
const bulkSize = 100

// lines are n bulks, as NDJSON.
func (g *generated) lines(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		var body []byte
		for range bulkSize {
			body = append(g.append(body), '\n')
		}
		out[i] = load.Post("edge", "/events/bulk", "application/x-ndjson", body)
	}
	return out
}

// arrays are n bulks, as a JSON array.
func (g *generated) arrays(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		body := []byte{'['}
		for k := range bulkSize {
			if k > 0 {
				body = append(body, ',')
			}
			body = g.append(body)
		}
		out[i] = load.Post("edge", "/events/bulk", "application/json", append(body, ']'))
	}
	return out
}

// distinct is a Stamp for requests, after which no two events are the same: user, product and
// page are others, and the time is that of sending, up to a minute before. A few thousand
// events that come again and again would be stored in a third of the room that events
// take, and merged in less time.
func distinct(requests [][]byte) func(n int64, buf []byte) {
	blanks := make([][]blank, len(requests))
	for i, r := range requests {
		blanks[i] = blanksOf(r)
	}
	return func(n int64, buf []byte) {
		now := time.Now().UnixMilli()
		rng := rand.NewPCG(uint64(n), uint64(now)) // the next run has a request n, too
		for _, b := range blanks[n%int64(len(blanks))] {
			v := rng.Uint64()
			if b.isTime {
				v = uint64(now - int64(v%60_000))
			}
			for i := b.to - 1; i >= b.from; i-- {
				buf[i] = byte('0' + v%10)
				v /= 10
			}
		}
	}
}

// blank is where a request has a number that may be any of as many digits, or a time.
type blank struct {
	from, to int
	isTime   bool
}

func blanksOf(request []byte) (all []blank) {
	for _, before := range []string{`"user_id":"user_`, `"timestamp":`, `"SKU-`, `/laptop/`} {
		for at := 0; ; {
			i := bytes.Index(request[at:], []byte(before))
			if i < 0 {
				break
			}
			b := blank{from: at + i + len(before), isTime: before == `"timestamp":`}
			for b.to = b.from; request[b.to] >= '0' && request[b.to] <= '9'; b.to++ {
			}
			all = append(all, b)
			at = b.to
		}
	}
	return all
}
