package sink

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	engine "edge/internal/embedded/clickhouse"
)

// childEnv makes the test binary play `edge clickhouse` on the directory it names.
const childEnv = "EDGE_TEST_SINK_CLICKHOUSE_DIR"

// childMemoryEnv is how many bytes that engine may have.
const childMemoryEnv = "EDGE_TEST_SINK_CLICKHOUSE_MEMORY"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		os.Exit(childMain(dir))
	}
	// They wait more than they work: twice as many at a time as there are cores take a tenth
	// less time.
	flag.Parse()
	parallel := flag.Lookup("test.parallel")
	if n := runtime.GOMAXPROCS(0); parallel.Value.String() == strconv.Itoa(n) {
		if err := flag.Set(parallel.Name, strconv.Itoa(2*n)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	code := m.Run()
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func childMain(dir string) int {
	ln, lifeline, ok := engine.ListenerFromParent()
	if !ok {
		fmt.Fprintln(os.Stderr, "no listener from the parent")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg := engine.Config{Dir: dir, Lifeline: lifeline, Drain: time.Second,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))}
	cfg.MaxMemory, _ = strconv.ParseInt(os.Getenv(childMemoryEnv), 10, 64)
	if err := engine.Run(ctx, cfg, ln); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// shared is the engine of the tests that do not kill it. Starting one takes
// seconds, so they share it and have a database each.
var shared struct {
	sharedEngine
}

type sharedEngine struct {
	once  sync.Once
	child *engine.Child
	dir   string
	err   error
}

func (s *sharedEngine) get() (*engine.Child, error) {
	s.once.Do(func() {
		if s.dir, s.err = os.MkdirTemp("", "edge-sink-test-"); s.err == nil {
			s.child, s.err = startEngine(filepath.Join(s.dir, "data"))
		}
	})
	return s.child, s.err
}

func (s *sharedEngine) close() error {
	if s.child == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return errors.Join(s.child.Close(ctx), os.RemoveAll(s.dir))
}

func startEngine(dir string) (*engine.Child, error) {
	lib, err := engine.FindLibrary()
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return engine.StartChild(ctx, engine.ChildConfig{
		Command: []string{exe},
		Env:     []string{childEnv + "=" + dir, "CHDB_LIBRARY=" + lib},
		Log:     slog.New(slog.DiscardHandler),
	})
}

// needEngine returns the shared engine and skips without libchdb, unless the
// environment promises it.
func needEngine(t testing.TB) *engine.Child {
	t.Helper()
	needLibrary(t)
	child, err := shared.get()
	if err != nil {
		t.Fatal(err)
	}
	return child
}

func needLibrary(t testing.TB) {
	t.Helper()
	if _, err := engine.FindLibrary(); err != nil {
		if os.Getenv("EDGE_REQUIRE_ENGINE") == "1" {
			t.Fatal(err)
		}
		t.Skip("no embedded engine: ", err)
	}
}

// ownEngine starts an engine that the test may kill.
func ownEngine(t testing.TB) *engine.Child {
	t.Helper()
	needLibrary(t)
	child, err := startEngine(filepath.Join(t.TempDir(), "data"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := child.Close(ctx); err != nil {
			t.Errorf("close the engine: %v", err)
		}
	})
	return child
}

// wire dials through to something and can be cut, frozen and closed for good:
// the network of one sink.
type wire struct {
	dial func(ctx context.Context, network, addr string) (net.Conn, error)

	mu     sync.Mutex
	down   error // what a dial gets; nil: it is up
	thawed chan struct{}
	conns  map[*wireConn]struct{}
	// writes and reads are bytes to let through before the connection that wants
	// more is cut, one number a cut. Empty: no limit.
	writes, reads []int
	// bandwidth is how many bytes a second go out at most; 0: no bound.
	bandwidth int
	// watch sees every write before it is made, and every read (sent false).
	watch func(c *wireConn, p []byte, sent bool)
}

func newWire(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *wire {
	return &wire{dial: dial, conns: make(map[*wireConn]struct{})}
}

var errCut = errors.New("the test cut the wire")

func (w *wire) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := w.wait(nil); err != nil {
		return nil, err
	}
	c, err := w.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	wc := &wireConn{Conn: c, w: w, closed: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down != nil {
		c.Close()
		return nil, w.down
	}
	w.conns[wc] = struct{}{}
	return wc, nil
}

// cut breaks every connection; new ones are refused until mend.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = errCut
	for c := range w.conns {
		c.Conn.Close()
	}
	clear(w.conns)
}

// drop breaks every connection; new ones are taken.
func (w *wire) drop() { w.cut(); w.mend() }

func (w *wire) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = nil
}

// freeze holds every write and dial until thaw, as a stopped process does.
func (w *wire) freeze() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.freezeLocked()
}

// freezeLocked is freeze for watch.
func (w *wire) freezeLocked() {
	if w.thawed == nil {
		w.thawed = make(chan struct{})
	}
}

func (w *wire) thaw() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.thawed != nil {
		close(w.thawed)
		w.thawed = nil
	}
}

// wait returns when the wire is not frozen, or when closed is.
func (w *wire) wait(closed chan struct{}) error {
	w.mu.Lock()
	thawed, down := w.thawed, w.down
	w.mu.Unlock()
	if down != nil {
		return down
	}
	if thawed == nil {
		return nil
	}
	select {
	case <-thawed:
		return nil
	case <-closed:
		return net.ErrClosed
	}
}

// slow sets the bandwidth.
func (w *wire) slow(bandwidth int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bandwidth = bandwidth
}

// transmit takes the time that n bytes need.
func (w *wire) transmit(n int, closed chan struct{}) error {
	w.mu.Lock()
	bandwidth := w.bandwidth
	w.mu.Unlock()
	if bandwidth == 0 {
		return nil
	}
	select {
	case <-time.After(time.Second * time.Duration(n) / time.Duration(bandwidth)):
		return nil
	case <-closed:
		return net.ErrClosed
	}
}

// limit arms cuts: see the fields.
func (w *wire) limit(writes, reads []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writes, w.reads = writes, reads
}

// allow takes n bytes off the first limit and reports how many may pass.
func (w *wire) allow(limits *[]int, n int) (int, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(*limits) == 0 {
		return n, true
	}
	if (*limits)[0] >= n {
		(*limits)[0] -= n
		return n, true
	}
	n = (*limits)[0]
	*limits = (*limits)[1:]
	return n, false
}

func (w *wire) tell(c *wireConn, p []byte, sent bool) (held chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watch != nil {
		w.watch(c, p, sent)
	}
	return c.held
}

type wireConn struct {
	net.Conn
	w      *wire
	deaf   bool          // the next read is cut; guarded by w.mu
	held   chan struct{} // what is written waits for it; nil: goes out; guarded by w.mu
	once   sync.Once
	closed chan struct{}
}

func (c *wireConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.w.tell(c, p[:n], false)
	allowed, ok := c.w.allow(&c.w.reads, n)
	c.w.mu.Lock()
	deaf := c.deaf
	c.w.mu.Unlock()
	if deaf {
		allowed, ok = 0, false
	}
	if !ok {
		c.Conn.Close()
		return allowed, errCut
	}
	return n, err
}

func (c *wireConn) Write(p []byte) (int, error) {
	if err := c.w.wait(c.closed); err != nil {
		return 0, err
	}
	if err := c.w.transmit(len(p), c.closed); err != nil {
		return 0, err
	}
	if held := c.w.tell(c, p, true); held != nil {
		select {
		case <-held:
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	if n, ok := c.w.allow(&c.w.writes, len(p)); !ok {
		n, _ = c.Conn.Write(p[:n])
		c.Conn.Close()
		return n, errCut
	}
	return c.Conn.Write(p)
}

func (c *wireConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	c.w.mu.Lock()
	delete(c.w.conns, c)
	c.w.mu.Unlock()
	return c.Conn.Close()
}
