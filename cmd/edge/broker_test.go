//go:build linux

package main

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestBrokerDown: requests wait ACK_TIMEOUT and are told 503, beyond the ring
// 429; edge lives and is not ready; and goes on by itself.
func TestBrokerDown(t *testing.T) {
	const patience = 300 * time.Millisecond
	f := startFront(t, 1, "ACK_TIMEOUT", patience.String(), "RING_REQUESTS", "16", "MAX_INFLIGHT_RECORDS", "20")
	f.accepting()
	f.weather[0].cut()
	f.eventually("not ready, for Kafka's sake", func() error {
		text, err := f.do(http.MethodGet, "/ready", "", nil, http.StatusServiceUnavailable)
		if err == nil && !strings.Contains(string(text), `"kafka"`) {
			t.Errorf("/ready says %s", text)
		}
		return err
	})
	if _, err := f.get("/health"); err != nil {
		t.Errorf("a broker that is away is no reason to restart edge: %v", err)
	}
	refused := 0
	for range 2 {
		got := f.burst(200, 1)
		refused += len(got[http.StatusTooManyRequests])
		for status, answers := range got {
			for _, a := range answers {
				switch {
				case status != http.StatusServiceUnavailable && status != http.StatusTooManyRequests, a.retry != "1":
					t.Fatalf("answered %d, Retry-After %q", status, a.retry)
				case status == http.StatusServiceUnavailable && a.took < patience, a.took > patience+5*time.Second:
					t.Fatalf("answered %d after %s", status, a.took)
				}
			}
		}
	}
	if refused == 0 {
		t.Error("no request is refused")
	}
	f.weather[0].mend()
	f.accepting()
	f.eventually("ready", func() error { _, err := f.get("/ready"); return err })
	f.checkLog()
}

// TestBrokerSlow has every answer of the broker take half a second. Requests
// wait for their own answer and not for each other's: a burst takes the time of
// a few answers, and no request its whole ACK_TIMEOUT.
func TestBrokerSlow(t *testing.T) {
	const latency = 500 * time.Millisecond
	f := startFront(t, 1, "ACK_TIMEOUT", "5s")
	f.accepting()
	const requests = 400
	burst := func() (fastest, p99 time.Duration) {
		t.Helper()
		var took []time.Duration
		for status, answers := range f.burst(requests, 5) {
			if status != http.StatusAccepted {
				t.Errorf("%d requests are answered %d", len(answers), status)
			}
			for _, a := range answers {
				took = append(took, a.took)
			}
		}
		slices.Sort(took)
		return took[0], took[len(took)*99/100]
	}
	_, machine := burst()
	before, beforeSum := f.adminMetric("edge_produce_seconds_count"), f.adminMetric("edge_produce_seconds_sum")
	f.weather[0].slow(latency)
	fastest, p99 := burst()
	t.Logf("fastest %s, p99 %s; p99 %s with a quick broker", fastest, p99, machine)
	if fastest < latency {
		t.Errorf("answered after %s; the broker takes %s", fastest, latency)
	}
	// Requests of the burst meet an answer under way, and then have their own.
	if p99 > machine+4*latency {
		t.Errorf("p99 is %s; want it to follow the broker's %s", p99, latency)
	}
	f.eventually("every request is measured", func() error {
		return atLeast(int(f.adminMetric("edge_produce_seconds_count")-before), requests)
	})
	if sum := f.adminMetric("edge_produce_seconds_sum") - beforeSum; sum < requests*latency.Seconds() {
		t.Errorf("edge_produce_seconds says %.1f s for %d requests; want half a second each at least", sum, requests)
	}
	f.weather[0].slow(0)
	f.checkLog()
}

// TestRingFull: what has no room is refused at once and whole, and nothing of it
// is kept.
func TestRingFull(t *testing.T) {
	f := startFront(t, 1, "ACK_TIMEOUT", "1s", "RING_REQUESTS", "8", "MAX_INFLIGHT_RECORDS", "20")
	f.accepting()
	thaw := f.weather[0].freeze()
	defer thaw()
	got := f.burst(100, 7)
	refused := got[http.StatusTooManyRequests]
	if len(refused) == 0 {
		t.Fatalf("answers %v; want refusals", got)
	}
	if len(refused) < 50 || len(refused)+len(got[http.StatusServiceUnavailable]) != 100 {
		t.Errorf("of 100 requests %d are refused, %d have an unknown outcome", len(refused), len(got[http.StatusServiceUnavailable]))
	}
	slices.SortFunc(refused, func(a, b answered) int { return cmp.Compare(a.took, b.took) })
	if median := refused[len(refused)/2]; median.took > 500*time.Millisecond || median.retry != "1" {
		t.Errorf("refused after %s, Retry-After %q; want at once, in whole seconds", median.took, median.retry)
	}
	if got, want := f.adminMetric(`edge_events_rejected_total\{reason="ring_full"\}`), float64(7*len(refused)); got != want {
		t.Errorf("%.0f events are counted as ring_full; want %.0f", got, want)
	}
	thaw()
	f.accepting()
	f.checkLog()
}

// TestAckLostAfterAppend: the broker has appended and answers that it timed out.
func TestAckLostAfterAppend(t *testing.T) {
	f := startFront(t, 1, "ACK_TIMEOUT", "10s")
	f.accepting()
	lost := f.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: 5})
	for range 20 {
		if a := f.send(3); a.status != http.StatusAccepted {
			t.Errorf("answered %d", a.status)
		}
	}
	if lost.Hits() != 5 {
		t.Errorf("%d answers were lost; want 5", lost.Hits())
	}
	f.checkLog()
}

// TestNodeLost takes one broker of three away, with the partitions it leads,
// while events come in.
func TestNodeLost(t *testing.T) {
	f := startFront(t, 3, "ACK_TIMEOUT", "10s")
	f.accepting()
	for node := range int32(2) {
		if err := f.cluster.RemoveNode(node); err != nil {
			t.Fatal(err)
		}
		f.weather[node].cut()
		for status, answers := range f.burst(50, 3) {
			for _, a := range answers {
				if status != http.StatusAccepted || a.took > 5*time.Second {
					t.Errorf("answered %d after %s", status, a.took)
				}
			}
		}
	}
	f.checkLog()
}

// TestNetworkCutMidRequest cuts the connection to the broker in the middle of a
// produce request and in the middle of its answer, at one byte after another.
func TestNetworkCutMidRequest(t *testing.T) {
	f := startFront(t, 1, "ACK_TIMEOUT", "20s")
	f.accepting()
	w := f.weather[0]
	for i := range 8 {
		w.limit(1+i*90, noCut)
		for range 3 {
			if a := f.send(5); a.status != http.StatusAccepted {
				t.Errorf("a cut after %d bytes of requests: answered %d", 1+i*90, a.status)
			}
		}
		w.limit(noCut, i*9)
		for range 3 {
			if a := f.send(5); a.status != http.StatusAccepted {
				t.Errorf("a cut after %d bytes of answers: answered %d", i*9, a.status)
			}
		}
	}
	w.limit(noCut, noCut)
	if w.cuts < 14 {
		t.Errorf("%d cuts; want 16 or nearly", w.cuts)
	}
	f.checkLog()
}

// TestHandlerTimesOutBeforePromise: requests are told 503 while the client of
// the broker still has their bytes to send, and others come in meanwhile.
func TestHandlerTimesOutBeforePromise(t *testing.T) {
	f := startFront(t, 1, "ACK_TIMEOUT", "100ms")
	f.accepting()
	thaw := f.weather[0].freeze()
	defer thaw()
	for range 4 {
		if got := f.burst(20, 10); len(got[http.StatusServiceUnavailable]) != 20 {
			t.Errorf("answers %v; want 503", got)
		}
	}
	thaw()
	f.accepting()
	f.eventually("every record has its outcome", func() error { return atLeast(-int(f.adminMetric("edge_produce_inflight_records")), 0) })
	if got := f.adminMetric(`edge_produce_records_total\{[^}]*"orphaned"\}`); got < 800 {
		t.Errorf("%.0f records had no request waiting any more; want the 800", got)
	}
	f.checkLog()
}
