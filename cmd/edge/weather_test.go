//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// weather is the network between edge and one broker, as the broker's listener
// sees it.
type weather struct {
	net.Listener

	mu      sync.Mutex
	down    bool
	latency time.Duration // between an answer and its arrival
	thawed  chan struct{} // not nil: what arrives waits for it
	conns   map[*weatherConn]struct{}
	// requests and answers are bytes to let through before the connection that
	// wants more is cut; noCut: all.
	requests, answers int
	cuts              int
}

const noCut = -1

var errWeather = errors.New("the test cut the connection")

func (w *weather) Accept() (net.Conn, error) {
	for {
		c, err := w.Listener.Accept()
		if err != nil {
			return nil, err
		}
		wc := &weatherConn{Conn: c, w: w, sent: make(chan delayed, 1024), closed: make(chan struct{})}
		w.mu.Lock()
		if w.down {
			w.mu.Unlock()
			c.Close()
			continue
		}
		w.conns[wc] = struct{}{}
		w.mu.Unlock()
		go wc.deliver()
		return wc, nil
	}
}

// cut ends every connection and takes no new one until mend.
func (w *weather) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = true
	for c := range w.conns {
		c.Conn.Close()
	}
}

func (w *weather) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = false
}

func (w *weather) slow(latency time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.latency = latency
}

// freeze has the broker get nothing until thaw, which gives it everything.
func (w *weather) freeze() (thaw func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	thawed := make(chan struct{})
	w.thawed = thawed
	return sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.thawed = nil
		close(thawed)
	})
}

// limit arms one cut: see the fields.
func (w *weather) limit(requests, answers int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests, w.answers = requests, answers
}

// pass returns how many of n bytes get through, and whether the connection does.
func (w *weather) pass(limit *int, n int) (int, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch left := *limit; {
	case left == noCut:
		return n, true
	case left < n:
		*limit = noCut
		w.cuts++
		return left, false
	}
	*limit -= n
	return n, true
}

// weatherConn is the broker's end of a connection.
type weatherConn struct {
	net.Conn
	w      *weather
	once   sync.Once
	sent   chan delayed
	closed chan struct{}
}

type delayed struct {
	bytes []byte
	due   time.Time
}

func (c *weatherConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.w.mu.Lock()
	thawed := c.w.thawed
	c.w.mu.Unlock()
	if thawed != nil {
		select {
		case <-thawed:
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	if passed, ok := c.w.pass(&c.w.requests, n); !ok {
		c.Conn.Close()
		return passed, errWeather
	}
	return n, err
}

func (c *weatherConn) Write(p []byte) (int, error) {
	c.w.mu.Lock()
	due := time.Now().Add(c.w.latency)
	c.w.mu.Unlock()
	select {
	case c.sent <- delayed{append([]byte(nil), p...), due}:
		return len(p), nil
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

// deliver sends what was written when it is due; several answers are on their
// way at once.
func (c *weatherConn) deliver() {
	for {
		select {
		case d := <-c.sent:
			<-time.After(time.Until(d.due))
			n, ok := c.w.pass(&c.w.answers, len(d.bytes))
			if _, err := c.Conn.Write(d.bytes[:n]); err != nil || !ok {
				c.Conn.Close()
			}
		case <-c.closed:
			return
		}
	}
}

func (c *weatherConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	c.w.mu.Lock()
	delete(c.w.conns, c)
	c.w.mu.Unlock()
	return c.Conn.Close()
}

// front is edge with the role ingest, HTTP and all, on brokers in this process.
type front struct {
	*instance
	cluster *kfake.Cluster
	weather []*weather // of each broker
	pad     string     // makes each event this much larger
	ids     atomic.Int64

	mu       sync.Mutex
	promised map[string]bool // ids that were answered 202
	refused  map[string]bool // ids that were answered 429
}

const frontTopic = "events"

// startFront runs that with settings.
func startFront(t *testing.T, brokers int, settings ...string) *front {
	t.Helper()
	f := newFront(t, brokers)
	env := make(map[string]string)
	settings = append(f.settings(), settings...)
	for i := 0; i < len(settings); i += 2 {
		env[settings[i]] = settings[i+1]
	}
	f.instance = startWith(t, env)
	return f
}

// spawnFront runs it as a process of its own, for what only that shows.
func spawnFront(t *testing.T, settings ...string) (*front, *edgeProcess) {
	t.Helper()
	f := newFront(t, 1)
	public, admin := freePort(t), freePort(t)
	f.instance = &instance{t: t, public: "127.0.0.1:" + public, admin: "127.0.0.1:" + admin}
	settings = append(append(f.settings(), "SERVER_HOST", "127.0.0.1", "SERVER_PORT", public, "ADMIN_PORT", admin), settings...)
	p := &edgeProcess{settings: settings, public: f.public, admin: f.admin, process: spawn(t, "edge", settings, os.Args[0], "serve")}
	p.awaitReady()
	return f, p
}

func (f *front) settings() []string {
	return []string{"ROLES", "ingest", "KAFKA_BROKERS", strings.Join(f.cluster.ListenAddrs(), ","), "KAFKA_TOPIC", frontTopic, "LOG_LEVEL", "error", "SHARDS", "1"}
}

// newFront starts the brokers.
func newFront(t *testing.T, brokers int) *front {
	t.Helper()
	f := &front{promised: make(map[string]bool), refused: make(map[string]bool)}
	listen := func(network, address string) (net.Listener, error) {
		ln, err := net.Listen(network, address)
		if err != nil {
			return nil, err
		}
		w := &weather{Listener: ln, conns: make(map[*weatherConn]struct{}), requests: noCut, answers: noCut}
		f.weather = append(f.weather, w)
		return w, nil
	}
	var err error
	f.cluster, err = kfake.NewCluster(kfake.NumBrokers(brokers), kfake.SeedTopics(4, frontTopic), kfake.ListenFn(listen))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.cluster.Close)
	return f
}

// answered is what a request got.
type answered struct {
	status int
	retry  string // Retry-After
	took   time.Duration
}

// send posts events events with ids of their own and enters the answer into
// the ledger.
func (f *front) send(events int) answered {
	f.t.Helper()
	var ids []string
	var body strings.Builder
	for range events {
		id := fmt.Sprintf("event-%d", f.ids.Add(1))
		ids = append(ids, id)
		fmt.Fprintf(&body, `{"event_name":"a","user_id":"u","timestamp":1708732800000,"event_id":%q,"metadata":{"said":%q,"pad":%q}}`+"\n", id, id, f.pad)
	}
	began := time.Now()
	resp, err := clients.Post("http://"+f.public+"/events/bulk", "application/x-ndjson", strings.NewReader(body.String()))
	if err != nil {
		f.t.Errorf("post: %v", err)
		return answered{}
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		f.t.Errorf("post: %v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		switch resp.StatusCode {
		case http.StatusAccepted:
			f.promised[id] = true
		case http.StatusTooManyRequests:
			f.refused[id] = true
		}
	}
	return answered{resp.StatusCode, resp.Header.Get("Retry-After"), time.Since(began)}
}

// burst sends n requests at once and returns the answers by status.
func (f *front) burst(n, events int) map[int][]answered {
	f.t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	out := make(map[int][]answered)
	for range n {
		wg.Go(func() {
			a := f.send(events)
			mu.Lock()
			defer mu.Unlock()
			out[a.status] = append(out[a.status], a)
		})
	}
	wg.Wait()
	return out
}

// accepting waits until a request is answered 202.
func (f *front) accepting() time.Duration {
	f.t.Helper()
	return within(f.t, 30*time.Second, "events are accepted", func() error {
		if a := f.send(1); a.status != http.StatusAccepted {
			return fmt.Errorf("answered %d", a.status)
		}
		return nil
	})
}

// checkLog closes edge, which drains it, and holds the log to the ledger.
func (f *front) checkLog() {
	f.t.Helper()
	// One that the client dialed and had no use for would hold the server for
	// its read timeout.
	clients.CloseIdleConnections()
	f.close()
	f.logIsLedger()
}

// logIsLedger wants every promise in the log and no refusal, nothing twice, and
// every record as it was sent.
func (f *front) logIsLedger() {
	f.t.Helper()
	var want int64
	for _, p := range f.cluster.PartitionInfos(frontTopic) {
		want += p.HighWatermark
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(f.cluster.ListenAddrs()...), kgo.ConsumeTopics(frontTopic), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		f.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	seen := make(map[string]bool)
	for n := int64(0); n < want; {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			f.t.Fatalf("read the log, %d of %d records: %v", n, want, fetches.Err())
		}
		fetches.EachRecord(func(r *kgo.Record) {
			n++
			var ev struct {
				ID       string `json:"event_id"`
				Metadata struct{ Said string }
			}
			if err := json.Unmarshal(r.Value, &ev); err != nil || ev.ID == "" || ev.Metadata.Said != ev.ID {
				f.t.Errorf("record %q is not what was sent: %v", r.Value, err)
			}
			if seen[ev.ID] {
				f.t.Errorf("%s is in the log twice", ev.ID)
			}
			seen[ev.ID] = true
		})
	}
	lost, kept := 0, 0
	for id := range f.promised {
		if !seen[id] {
			lost++
		}
	}
	for id := range f.refused {
		if seen[id] {
			kept++
		}
	}
	if lost+kept > 0 || len(f.promised) == 0 {
		f.t.Errorf("of %d promised events %d are not in the log, of %d refused ones %d are", len(f.promised), lost, len(f.refused), kept)
	}
	f.t.Logf("%d promised, %d refused, %d in the log", len(f.promised), len(f.refused), len(seen))
}

// adminMetric is the sum of the samples of a metric on the admin port.
func (f *front) adminMetric(pattern string) float64 {
	p := edgeProcess{process: &process{t: f.t}, admin: f.admin}
	return p.metric(pattern)
}
