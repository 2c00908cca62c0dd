//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"edge/internal/codec"
)

// node is an embedded edge as a process of its own, killed and started again on
// the same directory and ports.
type node struct {
	*process
	t        testing.TB
	settings []string
	public   string
	admin    string
	engine   string // ClickHouse's native protocol
}

// newNode prepares edge serve with settings; start runs it.
func newNode(t testing.TB, settings ...string) *node {
	t.Helper()
	public, admin, engine := freePort(t), freePort(t), "127.0.0.1:"+freePort(t)
	n := &node{
		t: t, public: "127.0.0.1:" + public, admin: "127.0.0.1:" + admin, engine: engine,
		settings: append([]string{"EMBEDDED", "true", "SERVER_HOST", "127.0.0.1", "SERVER_PORT", public, "ADMIN_PORT", admin,
			"LOG_LEVEL", "warn", "EMBEDDED_CLICKHOUSE_LISTEN", engine}, settings...),
	}
	t.Cleanup(n.awaitEngineGone)
	return n
}

// awaitEngineGone waits for the engine of a process that has ended: killed with it, it
// goes a little later, and until then it writes into a directory that is to be removed.
func (p *node) awaitEngineGone() {
	dir := p.setting("DATA_DIR")
	lock, err := os.Open(filepath.Join(dir, "clickhouse", "LOCK"))
	if dir == "" || err != nil {
		return // none was started
	}
	defer lock.Close()
	within(p.t, time.Minute, "the engine is gone", func() error {
		return syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	})
}

func (p *node) start() {
	p.t.Helper()
	p.process = spawn(p.t, "edge", p.settings, os.Args[0], "serve")
}

func (p *node) setting(name string) string {
	for i := 0; i < len(p.settings); i += 2 {
		if p.settings[i] == name {
			return p.settings[i+1]
		}
	}
	return ""
}

// ready waits until every part says so.
func (p *node) ready() {
	p.t.Helper()
	within(p.t, time.Minute, "ready", p.isReady, p.process)
}

var errStillReady = errors.New("/ready says ready")

// isReady is nil when GET /ready is 200.
func (p *node) isReady() error {
	resp, err := http.Get("http://" + p.public + "/ready")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// verify runs edge verify against the process until nothing is left to store
// and returns the report; it fails the test when something does not add up.
func (p *node) verify(accepted int64) verifyReport {
	p.t.Helper()
	var r verifyReport
	deadline := time.Now().Add(2 * time.Minute)
	for {
		resp, err := http.Post("http://"+p.admin+"/verify", "", nil)
		if err != nil {
			p.t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			p.t.Fatal(err)
		}
		r = verifyReport{}
		if err := json.Unmarshal(text, &r); err != nil {
			p.t.Fatalf("%v: %s", err, text)
		}
		r.text = string(text)
		if r.sum() >= accepted || time.Now().After(deadline) {
			return r
		}
	}
}

type verifyReport struct {
	Partitions []struct {
		Rows, Duplicates, Dead, Missing, Extra int64
	}
	Mismatched int64    `json:"mismatched_rollup_rows"`
	Users      int64    `json:"mismatched_user_cells"`
	Problems   []string `json:"problems"`
	text       string
}

// sum is rows + duplicates + dead letters.
func (r *verifyReport) sum() (n int64) {
	for _, p := range r.Partitions {
		n += p.Rows + p.Duplicates + p.Dead
	}
	return n
}

// promises is what the clients know: the ids they were promised, written down
// before the next request.
type promises struct {
	mu       sync.Mutex
	promised map[string]struct{}
	sent     atomic.Int64
	refused  atomic.Int64
}

// load posts from several clients until stop is closed. Every body is sent
// again under the same ids until it is answered: what a careful SDK does.
func (l *promises) load(url func() string, clients int, stop <-chan struct{}) *sync.WaitGroup {
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(c), 7))
			for n := 0; ; n++ {
				ids, body := randomBody(rng, c, n)
				for {
					select {
					case <-stop:
						return
					default:
					}
					l.sent.Add(int64(len(ids)))
					if postBody(url(), body) {
						l.mu.Lock()
						for _, id := range ids {
							l.promised[id] = struct{}{}
						}
						l.mu.Unlock()
						break
					}
					l.refused.Add(1)
				}
			}
		})
	}
	return &wg
}

// randomBody makes a bulk body of 1 to 200 events over three days and two months.
func randomBody(rng *rand.Rand, client, n int) (ids []string, body []byte) {
	var b bytes.Buffer
	days := []int64{1795305600, 1795392000, 1792800000} // Unix seconds; the last a month before
	for i := range 1 + rng.IntN(200) {
		id := fmt.Sprintf("c%d-%d-%d", client, n, i)
		ids = append(ids, id)
		at := days[rng.IntN(len(days))]*1000 + rng.Int64N(3600_000)
		fmt.Fprintf(&b, `{"event_name":"e%d","channel":"web","user_id":"u%d","timestamp":%d,"event_id":"%s"}`+"\n",
			rng.IntN(3), rng.IntN(500), at-86400_000, id)
	}
	return ids, b.Bytes()
}

var postClient = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}

// postBody reports whether the body was promised whole.
func postBody(url string, body []byte) bool {
	resp, err := postClient.Post(url+"/events/bulk", "application/x-ndjson", bytes.NewReader(body))
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode == http.StatusAccepted
}

// storedIDs counts the promised ids that events does not hold, and all ids that
// it holds more than once.
func storedIDs(t testing.TB, engine string, l *promises) (missing, twice int) {
	t.Helper()
	conn, err := ch.Dial(context.Background(), ch.Options{Address: engine, Database: "events_db"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var id proto.ColUUID
	var n proto.ColUInt64
	stored := make(map[[16]byte]struct{})
	err = conn.Do(context.Background(), ch.Query{
		Body:   "SELECT event_id, count() AS n FROM events GROUP BY event_id",
		Result: proto.Results{{Name: "event_id", Data: &id}, {Name: "n", Data: &n}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range id {
				stored[id[i]] = struct{}{}
				if n[i] > 1 {
					twice++
				}
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for promised := range l.promised {
		if _, ok := stored[codec.ID([]byte(promised))]; !ok {
			missing++
		}
	}
	return missing, twice
}
