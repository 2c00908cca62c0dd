//go:build linux

package main

import (
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
	names     int // distinct event names, and as many campaigns
	users     int
	at        time.Time
	withID    bool
	eventName string // instead of one of names
}

func newGenerated(seed uint64) *generated {
	return &generated{rng: rand.New(rand.NewPCG(seed, 1)), names: 3, users: 100_000, at: time.Now()}
}

var (
	shown    = []string{"product_view", "add_to_cart", "checkout"}
	channels = []string{"web", "mobile", "api", "email", "push"}
	tagNames = []string{"electronics", "featured", "sale", "new", "outlet"}
)

// append adds one event to dst. If it has an event_id, that is what it ends with, and no
// other has it.
func (g *generated) append(dst []byte) []byte {
	name := g.eventName
	if name == "" {
		n := g.rng.IntN(g.names)
		if name = shown[n%len(shown)]; n >= len(shown) {
			name = fmt.Sprintf("event_%05d", n)
		}
	}
	dst = fmt.Appendf(dst, `{"event_name":"%s","channel":"%s","campaign_id":"summer_sale_%d","user_id":"user_%d","timestamp":%d,"tags":["%s","%s"],"metadata":{"product_id":"SKU-%04d","page_url":"/products/laptop/%d"}`,
		name, channels[g.rng.IntN(len(channels))], g.rng.IntN(max(g.names, 40)), g.rng.IntN(g.users),
		g.at.UnixMilli()-int64(g.rng.IntN(60_000)), tagNames[g.rng.IntN(len(tagNames))], tagNames[g.rng.IntN(len(tagNames))],
		g.rng.IntN(10_000), g.rng.IntN(1000))
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
