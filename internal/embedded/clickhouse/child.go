package clickhouse

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// inheritEnv tells a child that its listener and lifeline are descriptors 3 and 4.
const inheritEnv = "EDGE_CLICKHOUSE_INHERIT"

const (
	listenerFD = 3
	lifelineFD = 4
)

// ChildConfig says how to start the child.
type ChildConfig struct {
	// Command is the program and its arguments: the running binary and
	// "clickhouse", as a rule. It must call ListenerFromParent and Run.
	Command []string
	// Env is added to the parent's environment.
	Env []string
	// Listen is a TCP address; empty means a unix socket in a private directory.
	Listen string
	// Log takes what the child writes to standard error; slog.Default() when nil.
	Log *slog.Logger
}

// A Child is the engine's process, kept alive. All methods are safe for
// concurrent use.
type Child struct {
	cfg      ChildConfig
	log      *slog.Logger
	listener *os.File // the socket, kept open so that the backlog outlives a child
	network  string
	address  string
	dir      string   // of the unix socket
	lifeline *os.File // read end, which children inherit
	hold     *os.File // write end: closes when this process ends, however it ends

	restarts atomic.Uint64
	pid      atomic.Int64
	closing  atomic.Bool
	closed   chan struct{} // closed by Close
	ended    chan struct{} // closed when keep returns
	closeOne sync.Once
	lastLine atomic.Pointer[string]
}

// Restart delays: the first is below what a client's retry would notice, the
// last keeps a child that cannot start from burning a core.
const (
	firstRestart = 100 * time.Millisecond
	lastRestart  = 5 * time.Second
	// settled is how long a child must live for the delay to start over.
	settled = 30 * time.Second
)

// StartChild starts the child and returns once it answers. A child that dies
// before it ever answered is an error; later deaths are repaired. ctx bounds the
// start only: Close ends the child.
func StartChild(ctx context.Context, cfg ChildConfig) (*Child, error) {
	if len(cfg.Command) == 0 {
		return nil, errors.New("start embedded ClickHouse: no command")
	}
	c := &Child{cfg: cfg, log: cfg.Log, closed: make(chan struct{}), ended: make(chan struct{})}
	if c.log == nil {
		c.log = slog.Default()
	}
	err := c.listen(ctx)
	if err == nil {
		c.lifeline, c.hold, err = os.Pipe()
	}
	if err != nil {
		c.release()
		return nil, fmt.Errorf("start embedded ClickHouse: %w", err)
	}
	first := make(chan error, 1)
	go c.keep(first)
	if err := c.waitReady(ctx, first); err != nil {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastRestart)
		defer cancel()
		return nil, fmt.Errorf("start embedded ClickHouse: %w", errors.Join(err, c.Close(stopping)))
	}
	return c, nil
}

func (c *Child) listen(ctx context.Context) error {
	if c.cfg.Listen != "" {
		var ln net.Listener
		err := whileBusy(ctx, c.log, c.cfg.Listen, syscall.EADDRINUSE, func() (err error) {
			ln, err = net.Listen("tcp", c.cfg.Listen)
			return err
		})
		if err != nil {
			return err
		}
		defer ln.Close()
		c.network, c.address = "tcp", ln.Addr().String()
		c.listener, err = ln.(*net.TCPListener).File()
		return err
	}
	// A socket's path must fit into 108 bytes, which a long TMPDIR breaks.
	dir := os.TempDir()
	if len(dir) > 60 {
		dir = "/tmp"
	}
	removeLeftSockets(dir)
	var err error
	if c.dir, err = os.MkdirTemp(dir, socketDir); err != nil { // mode 0700
		return err
	}
	c.network, c.address = "unix", filepath.Join(c.dir, "native.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: c.address})
	if err != nil {
		return err
	}
	defer ln.Close()
	ln.SetUnlinkOnClose(false)
	c.listener, err = ln.File()
	return err
}

// socketDir begins the names of directories with a socket in them.
const socketDir = "edge-clickhouse-"

// removeLeftSockets removes those of processes that were killed. One that is younger may be
// about to listen.
func removeLeftSockets(dir string) {
	const young = time.Minute
	all, _ := filepath.Glob(filepath.Join(dir, socketDir+"*")) // the pattern is a good one
	for _, left := range all {
		info, err := os.Stat(left)
		if err != nil || time.Since(info.ModTime()) < young {
			continue
		}
		conn, err := net.DialTimeout("unix", filepath.Join(left, "native.sock"), time.Second)
		switch {
		case err == nil:
			_ = conn.Close()
		case errors.Is(err, syscall.ECONNREFUSED):
			_ = os.RemoveAll(left) // the next start tries again
		}
	}
}

// keep runs one child after another until Close. first hears how the first ended.
func (c *Child) keep(first chan<- error) {
	defer close(c.ended)
	delay := firstRestart
	for {
		started := time.Now()
		err := c.runOnce()
		c.pid.Store(0)
		select {
		case first <- err:
		default:
		}
		if c.closing.Load() {
			return
		}
		if err == nil {
			err = errors.New("exit status 0, and edge had not told it to stop")
		}
		if time.Since(started) > settled {
			delay = firstRestart
		}
		c.log.Error("embedded ClickHouse ended; starting it again", "err", err, "pause_ms", delay.Milliseconds())
		select {
		case <-c.closed:
			return
		case <-time.After(delay):
		}
		delay = min(2*delay, lastRestart)
		c.restarts.Add(1)
	}
}

// runOnce starts a child and waits for its end.
func (c *Child) runOnce() error {
	cmd := exec.Command(c.cfg.Command[0], c.cfg.Command[1:]...)
	cmd.Env = append(append(os.Environ(), c.cfg.Env...), inheritEnv+"=1")
	cmd.ExtraFiles = []*os.File{c.listener, c.lifeline}
	// A group of its own: Ctrl-C in a terminal reaches the whole group at once,
	// and the sink still needs ClickHouse while it drains.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.pid.Store(int64(cmd.Process.Pid))
	if c.closing.Load() { // Close may have missed this one
		_ = cmd.Process.Signal(syscall.SIGTERM)
	}
	c.forward(stderr)
	err = cmd.Wait()
	if line := c.lastLine.Swap(nil); line != nil && err != nil {
		err = fmt.Errorf("%w: %s", err, *line)
	}
	return err
}

// forward logs the child's standard error line by line until it closes.
func (c *Child) forward(r io.Reader) {
	lines := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := lines.ReadSlice('\n')
		if text := string(bytes.TrimRight(line, "\r\n")); text != "" {
			c.lastLine.Store(&text)
			c.log.Info("embedded ClickHouse", "line", text)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// waitReady makes a handshake. The socket listens already, so it is the answer
// that says a child is there; an Exception is an answer too, since the
// credentials are not known here.
func (c *Child) waitReady(ctx context.Context, first <-chan error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answered := make(chan error, 1)
	go func() { answered <- c.handshake(ctx) }()
	select {
	case err := <-answered:
		return err
	case err := <-first:
		if err == nil {
			err = errors.New("it ended before it answered")
		}
		return err
	}
}

func (c *Child) handshake(ctx context.Context) error {
	conn, err := c.DialContext(ctx, "", "")
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var b proto.Buffer
	proto.ClientHello{Name: "edge", ProtocolVersion: revision, User: "default"}.Encode(&b)
	if _, err := conn.Write(b.Buf); err != nil {
		return err
	}
	answer := make([]byte, 1)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return errors.Join(ctx.Err(), err)
	}
	if code := proto.ServerCode(answer[0]); code != proto.ServerCodeHello && code != proto.ServerCodeException {
		return fmt.Errorf("the answer to the handshake has code %d", code)
	}
	// Until the server hangs up, so that this connection is not one of those that
	// count. How it ends says nothing about the server.
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(lastRestart))
		_, _ = io.Copy(io.Discard, conn)
	}
	return ctx.Err()
}

// DialContext connects to the child, whatever network and address say: it is
// what ch-go and clickhouse-go take as a dialer. While a child restarts, the
// connection waits in the socket's backlog.
func (c *Child) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, c.network, c.address)
}

// Restarts counts how often a dead child was replaced.
func (c *Child) Restarts() uint64 { return c.restarts.Load() }

// Pid is the running child's process, or 0 between two.
func (c *Child) Pid() int { return int(c.pid.Load()) }

// Close ends the child: asks, waits until ctx ends, and kills. The data is safe
// either way.
func (c *Child) Close(ctx context.Context) error {
	var err error
	c.closeOne.Do(func() {
		c.closing.Store(true)
		close(c.closed)
		c.signal(syscall.SIGTERM)
		select {
		case <-c.ended:
		case <-ctx.Done():
			err = fmt.Errorf("stop embedded ClickHouse: %w; killed", ctx.Err())
			c.signal(syscall.SIGKILL)
			<-c.ended
		}
		c.release()
	})
	return err
}

func (c *Child) signal(sig syscall.Signal) {
	if pid := c.Pid(); pid > 0 {
		_ = syscall.Kill(pid, sig)
	}
}

func (c *Child) release() {
	for _, f := range []*os.File{c.listener, c.lifeline, c.hold} {
		if f != nil {
			f.Close()
		}
	}
	if c.dir != "" {
		_ = os.RemoveAll(c.dir)
	}
}

// ListenerFromParent returns the listener and the lifeline that StartChild
// handed down; ok is false in a process that was started by hand.
func ListenerFromParent() (ln net.Listener, lifeline *os.File, ok bool) {
	if os.Getenv(inheritEnv) == "" {
		return nil, nil, false
	}
	// Not for our own children.
	_ = os.Unsetenv(inheritEnv)
	syscall.CloseOnExec(listenerFD)
	syscall.CloseOnExec(lifelineFD)
	f := os.NewFile(listenerFD, "listener")
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, nil, false
	}
	return ln, os.NewFile(lifelineFD, "lifeline"), true
}
