package server

import (
	"strconv"
	"time"

	"edge/internal/codec"
	"edge/internal/stat"
)

// route is the route label of the metrics. Unknown paths share one value, so
// that clients cannot make series.
type route uint8

const (
	routeEvents route = iota
	routeBulk
	routeMetrics
	routeHealth
	routeReady
	routeOpenAPI
	routeOther
	numRoutes
)

var routeLabels = [numRoutes]string{"/events", "/events/bulk", "/metrics", "/health", "/ready", "/openapi.yaml", "other"}

// codes are the statuses this package answers with; all others count as the
// last.
var codes = [...]int{200, 202, 204, 400, 401, 404, 405, 408, 413, 415, 429, 431, 503, 505, 500}

// codeIndex maps a status to its place in codes.
var codeIndex = func() (index [600]uint8) {
	for i := range index {
		index[i] = uint8(len(codes) - 1)
	}
	for i, c := range codes {
		index[c] = uint8(i)
	}
	return index
}()

// reason says why events were refused. The codec's reasons keep their values,
// the ones below are about the request and its way into the broker; 0 is not
// counted.
type reason uint8

const (
	malformed        = reason(codec.Malformed)
	bodyTooLarge     = reason(codec.TooMany) + iota // the body on the wire
	inflatedTooLarge                                // the body after inflation
	unsupported                                     // content type or encoding
	timedOut                                        // the body came too slowly
	unauthorized
	rateLimited // the key is over its rate
	memoryFull  // the budget for bodies and long answers is spent
	ringFull    // the producer has no room
	brokerTimeout
	brokerRefused
	shuttingDown
	numReasons
)

func (r reason) label() string {
	switch r {
	case bodyTooLarge:
		return "body_too_large"
	case inflatedTooLarge:
		return "inflated_too_large"
	case unsupported:
		return "unsupported"
	case timedOut:
		return "timeout"
	case unauthorized:
		return "unauthorized"
	case rateLimited:
		return "rate_limited"
	case memoryFull:
		return "memory_full"
	case ringFull:
		return "ring_full"
	case brokerTimeout:
		return "broker_timeout"
	case brokerRefused:
		return "broker_error"
	case shuttingDown:
		return "shutting_down"
	}
	return codec.Reason(r).String()
}

// Stats counts what the listener did.
type Stats struct {
	Accepted      stat.Counter // events a 202 promised
	Timeouts      stat.Counter // requests that did not arrive within ReadTimeout
	Panics        stat.Counter // handlers that panicked
	RejectedConns stat.Counter // connections over MaxConns or MaxConnsPerIP

	requests [numRoutes][len(codes)]stat.Counter
	seconds  [numRoutes]*stat.Histogram
	rejected [numReasons]stat.Counter
}

func (s *Stats) init() {
	for i := range s.seconds {
		s.seconds[i] = stat.NewHistogram(stat.Seconds)
	}
}

// count counts one answer.
func (s *Stats) count(r route, status int) {
	i := len(codes) - 1
	if status >= 0 && status < len(codeIndex) {
		i = int(codeIndex[status])
	}
	s.requests[r][i].Inc()
}

// observe counts one answer and how long its handler took.
func (s *Stats) observe(r route, status int, took time.Duration) {
	s.count(r, status)
	s.seconds[r].Observe(took)
}

// Stats returns the server's counters.
func (s *Server) Stats() *Stats { return &s.stats }

// Describe adds the server's metrics to set.
func (s *Server) Describe(set *stat.Set) {
	st := &s.stats
	set.CounterVec("edge_http_requests_total", "Answers sent, by route and status code.", []string{"route", "code"}, func(emit stat.Emit) {
		for r := range st.requests {
			for c := range codes {
				emit(float64(st.requests[r][c].Load()), routeLabels[r], strconv.Itoa(codes[c]))
			}
		}
	})
	set.HistogramVec("edge_http_request_seconds", "Time from the request's header to its answer, by route.", []string{"route"}, func(emit func(*stat.Histogram, ...string)) {
		for r, h := range st.seconds {
			emit(h, routeLabels[r])
		}
	})
	set.Gauge("edge_http_open_connections", "Open connections.", func() float64 { return float64(s.gate.open.Load()) })
	set.Counter("edge_http_rejected_connections_total", "Connections refused over a connection limit.", &st.RejectedConns)
	set.Counter("edge_http_timeouts_total", "Requests that did not arrive within the read timeout.", &st.Timeouts)
	set.Counter("edge_http_panics_total", "Handlers that panicked; each is a bug.", &st.Panics)
	set.Gauge("edge_http_inflight_bytes", "Bytes of request bodies and long answers held.", func() float64 { return float64(s.memory.used.Load()) })
	set.Gauge("edge_http_inflight_limit_bytes", "Bytes of request bodies and long answers that may be held.", func() float64 { return float64(s.memory.limit) })
	set.Counter("edge_events_accepted_total", "Events that a 202 promised.", &st.Accepted)
	set.CounterVec("edge_events_rejected_total", "Events refused; a body refused unread counts as one.", []string{"reason"}, func(emit stat.Emit) {
		for r := malformed; r < numReasons; r++ {
			emit(float64(st.rejected[r].Load()), r.label())
		}
	})
}
