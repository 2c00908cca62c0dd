//go:build linux

// Package load offers HTTP requests at a stated rate and says what came back.
//
// Open loop. Request n has an intended time, At(n) of the schedule, that does
// not depend on how the server is doing, and its latency counts from that time.
// A generator that waits for an answer before it asks again measures a stalled
// server once per connection and calls the rest fast; here everything that was
// due during the stall is late, and says so. Without a schedule the loop is
// closed, for the one question that answers: how much goes through.
//
// One thread, one epoll set, raw sockets, requests written as bytes that were
// made beforehand: on the two cores that the server shares with it, a generator
// on net/http would be most of what is measured. A connection carries one
// request at a time, as SDKs behind a proxy do; nothing is pipelined.
//
// Every request is accounted for: Sent = answered + Unknown, and what was due
// and never sent is Unsent. Accepted counts events, as the answers promise
// them, for the ledger.
package load

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"
)

// Load is what to offer, and to whom.
type Load struct {
	Addr  string // host:port on this machine
	Conns int
	// Requests are sent in turn; Events is how many events each carries.
	Requests [][]byte
	Events   int
	// Stamp, not nil, writes request n over buf, a copy of one of Requests:
	// an event_id, for those who want to find it again.
	Stamp func(n int64, buf []byte)

	// Schedule is the open loop. Empty: saturate for Duration.
	Schedule Schedule
	Duration time.Duration

	// Hold, not nil, keeps a saturating load from sending while it is true.
	Hold *atomic.Bool
	// Answered, not nil, hears of each answer: its number, its intended time
	// and its status, 0 for none. It runs between two requests: keep it short.
	Answered func(n int64, intended time.Time, status int)

	// Patience is how long after the last intended time answers are waited for
	// (default 10 s).
	Patience time.Duration
}

// Result is what came back.
type Result struct {
	Sent     int64 // requests written
	Unsent   int64 // due, and no connection was free before Patience ended
	Unknown  int64 // requests sent and never answered, or answered by a broken connection
	Accepted int64 // events in 202 answers
	Rejected int64 // events refused inside 202 answers
	Doubtful int64 // events whose fate no answer told: of Unknown requests, 503, 500
	Status   map[int]int64
	Broken   int64 // connections lost and opened again
	Latency  Histogram
	Elapsed  time.Duration // from the first intended time to the last answer
	Began    time.Time
}

// Refused is the number of answers that were not 2xx.
func (r *Result) Refused() (n int64) {
	for status, count := range r.Status {
		if status/100 != 2 {
			n += count
		}
	}
	return n
}

// Failed is the number of requests without a 2xx: refused, never answered, never sent.
func (r *Result) Failed() int64 { return r.Refused() + r.Unknown + r.Unsent }

// PerSecond is accepted events per second.
func (r *Result) PerSecond() float64 { return float64(r.Accepted) / r.Elapsed.Seconds() }

// Answers is the number of requests that were answered.
func (r *Result) Answers() (n int64) {
	for _, count := range r.Status {
		n += count
	}
	return n
}

// Run offers l and returns when every request is answered or given up, or soon after
// ctx has ended.
func Run(ctx context.Context, l Load) (*Result, error) {
	if len(l.Requests) == 0 || l.Conns < 1 {
		return nil, fmt.Errorf("load wants requests and connections, has %d and %d", len(l.Requests), l.Conns)
	}
	if l.Patience == 0 {
		l.Patience = 10 * time.Second
	}
	lp, err := newLoop(&l)
	if err != nil {
		return nil, err
	}
	defer lp.close()
	return lp.run(ctx)
}

// Post is a POST with a body, as bytes for Load.Requests.
func Post(addr, path, contentType string, body []byte) []byte {
	head := "POST " + path + " HTTP/1.1\r\nHost: " + addr + "\r\nContent-Type: " + contentType +
		"\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n"
	return append([]byte(head), body...)
}

// Get is a GET, as bytes for Load.Requests.
func Get(addr, path string) []byte {
	return []byte("GET " + path + " HTTP/1.1\r\nHost: " + addr + "\r\n\r\n")
}
