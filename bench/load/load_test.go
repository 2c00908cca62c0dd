//go:build linux

package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestHistogramBucketsAreClosed(t *testing.T) {
	f := func(v uint64) {
		t.Helper()
		b := bucket(v)
		if b < 0 || b >= buckets {
			t.Fatalf("%d: bucket %d of %d", v, b, buckets)
		}
		if floor(b) > v {
			t.Errorf("%d: bucket %d starts at %d", v, b, floor(b))
		}
		if b+1 < buckets && floor(b+1) <= v {
			t.Errorf("%d: bucket %d ends below it, at %d", v, b, floor(b+1))
		}
	}
	for v := range uint64(5000) {
		f(v)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		f(rng.Uint64() >> rng.IntN(64))
	}
	f(math.MaxUint64)
}

func TestHistogramQuantilesAreWithinOnePercent(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var h Histogram
	var all []time.Duration
	for range 20_000 {
		d := time.Duration(math.Exp(rng.NormFloat64()*2) * float64(time.Millisecond))
		all = append(all, d)
		h.Add(d)
	}
	slices.Sort(all)
	if h.Count() != uint64(len(all)) || h.Max() != all[len(all)-1] {
		t.Errorf("got %d and %v; want %d and %v", h.Count(), h.Max(), len(all), all[len(all)-1])
	}
	for _, q := range []float64{0.001, 0.5, 0.9, 0.99, 0.999, 1} {
		want := all[int(math.Ceil(q*float64(len(all))))-1]
		got := h.Quantile(q)
		if got < want || float64(got) > 1.01*float64(want) {
			t.Errorf("q %v: got %v; want %v and up to 1 %% more", q, got, want)
		}
	}
}

func TestHistogramEmpty(t *testing.T) {
	var h Histogram
	if h.Quantile(0.99) != 0 || h.Max() != 0 {
		t.Error("an empty histogram has values")
	}
	h.Add(-time.Second) // a clock that ran ahead
	if h.Quantile(1) != 0 || h.Count() != 1 {
		t.Errorf("got %v of %d; want 0 of 1", h.Quantile(1), h.Count())
	}
}

func TestScheduleIsDueWhenTheAreaSaysSo(t *testing.T) {
	f := func(s Schedule, total int64, at map[int64]time.Duration) {
		t.Helper()
		if got := s.Total(); got != total {
			t.Errorf("%v: %d requests; want %d", s, got, total)
		}
		for n, want := range at {
			if got := s.At(n); (got - want).Abs() > time.Microsecond {
				t.Errorf("%v: request %d at %v; want %v", s, n, got, want)
			}
		}
		var before time.Duration
		for n := range s.Total() {
			at := s.At(n)
			if at < before || at > s.Length() {
				t.Fatalf("%v: request %d at %v, the one before at %v", s, n, at, before)
			}
			before = at
		}
	}
	f(Constant(1000, time.Second), 1000, map[int64]time.Duration{0: 0, 500: 500 * time.Millisecond, 999: 999 * time.Millisecond})
	// From 0 to 1000 a second in 2 s: 1000 in all, and a quarter of them in the first half.
	f(Ramp(0, 1000, 2*time.Second), 1000, map[int64]time.Duration{0: 0, 250: time.Second})
	f(Ramp(1000, 0, 2*time.Second), 1000, map[int64]time.Duration{0: 0, 750: time.Second})
	f(Spike(100, 1000, time.Second, time.Second, time.Second, time.Second), 100+550+1000+550+100,
		map[int64]time.Duration{50: 500 * time.Millisecond, 650: 2 * time.Second, 1650: 3 * time.Second})
	f(Schedule{{time.Second, 0, 0}, {time.Second, 10, 10}}, 10, map[int64]time.Duration{0: time.Second})
}

func TestFrame(t *testing.T) {
	f := func(text string, status int, body string, closes bool) {
		t.Helper()
		for cut := range text {
			if _, ok, err := frame([]byte(text[:cut])); ok || err != nil {
				t.Errorf("%q cut at %d: got %v, %v; want an answer that is not whole", text, cut, ok, err)
			}
		}
		a, ok, err := frame([]byte(text))
		if err != nil || !ok || a.status != status || string(a.body) != body || a.close != closes {
			t.Errorf("%q: got %+v, %v, %v", text, a, ok, err)
		}
	}
	f("HTTP/1.1 202 Accepted\r\nServer: x\r\nContent-Length: 2\r\n\r\n{}", 202, "{}", false)
	f("HTTP/1.1 429 Too Many Requests\r\ncontent-length:  0 \r\nconnection: Close\r\n\r\n", 429, "", true)
	f("HTTP/1.1 202 \r\nContent-Length: 1\r\n\r\nx", 202, "x", false)
}

func TestFrameRefuses(t *testing.T) {
	f := func(text string, want error) {
		t.Helper()
		if _, ok, err := frame([]byte(text)); ok || err != want {
			t.Errorf("%q: got %v, %v; want %v", text, ok, err, want)
		}
	}
	f("HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}H", errLong)
	f("HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n", errNoLength)
	f("HTTP/1.1 202 Accepted\r\nContent-Length: -2\r\n\r\n", errNoLength)
	f("HTTP/1.1 202 Accepted\r\nContent-Length: 99999999999\r\n\r\n", errNoLength)
	f("HTTP/1.1 2x2 Accepted\r\nContent-Length: 0\r\n\r\n", errNotHTTP)
	f("SSH-2.0-x\r\n\r\n", errNotHTTP)
	f("HTTP/1.1 202 Accepted\r\nno colon\r\n\r\n", errNotHTTP)
	f(strings.Repeat("x", maxHeader+1), errBigHeader)
}

func TestCounts(t *testing.T) {
	f := func(body string, accepted, rejected int, bulk bool) {
		t.Helper()
		a, r, ok := counts([]byte(body))
		if ok != bulk || ok && (a != accepted || r != rejected) {
			t.Errorf("%s: got %d, %d, %v; want %d, %d, %v", body, a, r, ok, accepted, rejected, bulk)
		}
	}
	f(`{"status":"accepted"}`, 0, 0, false)
	f(`{"status":"accepted","accepted":98,"rejected":2,"errors":[]}`, 98, 2, true)
	f(`{"accepted":x,"rejected":1}`, 0, 0, false)
}

// server answers 202 to every POST, with what answer says.
func server(t *testing.T, answer http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestRunAccountsForEveryRequest(t *testing.T) {
	var seen atomic.Int64
	addr := server(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		n := seen.Add(1)
		switch {
		case n%10 == 3:
			http.Error(w, "full", http.StatusTooManyRequests)
		case n%10 == 7:
			http.Error(w, "unknown", http.StatusServiceUnavailable)
		default:
			w.WriteHeader(http.StatusAccepted)
			fmt.Fprintf(w, `{"status":"accepted","accepted":%d,"rejected":0}`, bytes.Count(body, []byte("\n")))
		}
	})
	body := []byte("{}\n{}\n{}\n")
	res, err := Run(t.Context(), Load{Addr: addr, Conns: 8, Events: 3, Requests: [][]byte{Post(addr, "/events/bulk", "application/x-ndjson", body)},
		Schedule: Constant(2000, 100*time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	if res.Sent != 200 || res.Unsent != 0 || res.Unknown != 0 || seen.Load() != 200 {
		t.Errorf("sent %d, unsent %d, unknown %d, the server saw %d; want 200, 0, 0, 200", res.Sent, res.Unsent, res.Unknown, seen.Load())
	}
	if res.Accepted != 3*160 || res.Doubtful != 3*20 || res.Refused() != 40 || res.Latency.Count() != 200 {
		t.Errorf("accepted %d, doubtful %d, refused %d, %d latencies; want 480, 60, 40, 200", res.Accepted, res.Doubtful, res.Refused(), res.Latency.Count())
	}
}

// A server that stalls once makes every request that was due meanwhile late:
// what a closed loop would call one slow request out of many.
func TestLatencyCountsFromTheIntendedTime(t *testing.T) {
	const stall = 200 * time.Millisecond
	var seen atomic.Int64
	addr := server(t, func(w http.ResponseWriter, _ *http.Request) {
		if seen.Add(1) == 100 {
			<-time.After(stall)
		}
		w.WriteHeader(http.StatusAccepted)
	})
	res, err := Run(t.Context(), Load{Addr: addr, Conns: 1, Events: 1, Requests: [][]byte{Get(addr, "/")}, Schedule: Constant(1000, 400*time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	late := 0
	for q := 1; q <= 100; q++ {
		if res.Latency.Quantile(float64(q)/100) > stall/10 {
			late++
		}
	}
	if res.Latency.Max() < stall || late < 30 {
		t.Errorf("longest %v, %d %% later than %v; want %v and at least 30 %%: those due during the stall", res.Latency.Max(), late, stall/10, stall)
	}
}

func TestRunCountsBrokenConnections(t *testing.T) {
	var seen atomic.Int64
	addr := server(t, func(w http.ResponseWriter, _ *http.Request) {
		if seen.Add(1)%4 == 0 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusAccepted)
	})
	res, err := Run(t.Context(), Load{Addr: addr, Conns: 4, Events: 1, Requests: [][]byte{Get(addr, "/")}, Schedule: Constant(1000, 100*time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	if res.Unknown != 25 || res.Doubtful != 25 || res.Accepted != 75 || res.Broken != 25 {
		t.Errorf("unknown %d, doubtful %d, accepted %d, broken %d; want 25, 25, 75, 25", res.Unknown, res.Doubtful, res.Accepted, res.Broken)
	}
}

func TestSaturateStopsAndStamps(t *testing.T) {
	var bad atomic.Int64
	var mu sync.Mutex
	bodies := make(map[string]bool)
	addr := server(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if len(body) != 8 {
			bad.Add(1)
		}
		mu.Lock()
		bodies[string(body)] = true
		mu.Unlock()
		w.WriteHeader(http.StatusAccepted)
	})
	req := Post(addr, "/", "text/plain", []byte("00000000"))
	res, err := Run(t.Context(), Load{Addr: addr, Conns: 4, Events: 1, Requests: [][]byte{req}, Duration: 50 * time.Millisecond,
		Stamp: func(n int64, buf []byte) { copy(buf[len(buf)-8:], fmt.Sprintf("%08d", n)) }})
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if res.Sent == 0 || int64(len(bodies)) != res.Sent || res.Accepted != res.Sent || bad.Load() != 0 {
		t.Errorf("sent %d, accepted %d, the server saw %d different bodies, %d of the wrong length", res.Sent, res.Accepted, len(bodies), bad.Load())
	}
}

func TestRunWithoutAServer(t *testing.T) {
	s := httptest.NewServer(nil)
	addr := s.Listener.Addr().String()
	s.Close()
	if _, err := Run(t.Context(), Load{Addr: addr, Conns: 1, Requests: [][]byte{Get(addr, "/")}}); err == nil {
		t.Error("no error; want one that names the address")
	}
}

// The load of a bench that was interrupted goes on for a minute otherwise, also while
// it only waits for answers.
func TestLoadEndsWithItsContext(t *testing.T) {
	end := make(chan struct{})
	asked := make(chan struct{}, 1)
	addr := server(t, func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-end
	})
	defer close(end)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	began := time.Now()
	_, err := Run(ctx, Load{Addr: addr, Conns: 1, Events: 1, Requests: [][]byte{Get(addr, "/")}, Schedule: Constant(1, time.Minute)})
	if took := time.Since(began); !errors.Is(err, context.Canceled) || took > 30*time.Second {
		t.Errorf("%v after %v, want %v at once", err, took, context.Canceled)
	}
}

func TestIdleConnectionsAreCountedUntilTheServerClosesThem(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Length", "2")
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, "{}")
	}))
	t.Cleanup(s.Close)
	addr := s.Listener.Addr().String()
	idle, err := OpenIdle(addr, 20, Post(addr, "/events", "application/json", []byte("{}")))
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if got := idle.Open(); got != 20 {
		t.Errorf("%d open; want 20", got)
	}
	s.CloseClientConnections()
	for deadline := time.Now().Add(10 * time.Second); idle.Open() > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d open 10 s after the server has closed them", idle.Open())
		}
	}
}

func TestIdleConnectionsMustBeAnswered(t *testing.T) {
	addr := server(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "full", http.StatusTooManyRequests) })
	if _, err := OpenIdle(addr, 2, Post(addr, "/events", "application/json", []byte("{}"))); err == nil || !strings.Contains(err.Error(), "status 429") {
		t.Errorf("got %v; want status 429", err)
	}
}
