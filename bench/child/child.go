//go:build linux

// Package child runs the programs that are measured, each a process of its own,
// so that what one costs is what the kernel says it used and not a guess.
//
// A child is ended by its pid, never by its name, and every child dies with the
// benchmark: the kernel is told so when it starts. Its processor time and
// memory come from /proc, its own children's (the embedded engine) apart.
package child

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a running child.
type Process struct {
	Name string
	Log  string // file that its stdout and stderr go to
	cmd  *exec.Cmd
	done chan struct{}
	err  error

	asked atomic.Bool // to end, while it still ran
}

// Command says what to start.
type Command struct {
	Name string
	Args []string // the program and its arguments
	Env  []string // beside PATH, HOME and TMPDIR: settings of the shell stay out
	Log  string
	Core int // 1 + the core it is kept to; 0: any
}

// Start runs c.
func Start(c Command) (*Process, error) {
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "CHDB_LIBRARY", "GOMAXPROCS", "GOGC"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.Env = append(cmd.Env, c.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &Process{Name: c.Name, Log: c.Log, cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	// The death signal is tied to the thread that started the child, so that
	// thread stays until the child has ended.
	go func() {
		runtime.LockOSThread()
		if c.Core > 0 { // a child inherits where its parent's thread may run
			var set unix.CPUSet
			set.Set(c.Core - 1)
			_ = unix.SchedSetaffinity(0, &set)
		}
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
		// Not unlocked: a thread with an affinity of its own ends with its goroutine.
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	return p, nil
}

// Pid is the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.done }

// Stop asks the process to end and waits, at most a minute; then it is killed
// and that is an error.
func (p *Process) Stop() error {
	p.ask()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s ended badly: %w: %s", p.Name, p.err, p.Tail())
		}
		return nil
	case <-time.After(time.Minute):
		p.Kill()
		return fmt.Errorf("%s did not stop within a minute: %s", p.Name, p.Tail())
	}
}

// Kill ends the process at once.
func (p *Process) Kill() {
	p.ask()
	_ = p.cmd.Process.Kill()
	<-p.done
}

// ask notes that the end of the process is wanted, unless it has come before.
func (p *Process) ask() {
	select {
	case <-p.done:
	default:
		p.asked.Store(true)
	}
}

// Asked reports whether Stop or Kill was called while the process ran: if not, and it has
// ended, it did so by itself.
func (p *Process) Asked() bool { return p.asked.Load() }

// Tail is the end of what the process has logged.
func (p *Process) Tail() string {
	text, _ := os.ReadFile(p.Log)
	return strings.TrimSpace(string(text[max(0, len(text)-2000):]))
}

// Await repeats ready until it returns nil, the process ends, or ctx does.
func (p *Process) Await(ctx context.Context, ready func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it was ready: %s: %s", p.Name, p.cmd.ProcessState, p.Tail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %s", p.Name, errors.Join(err, ctx.Err()), p.Tail())
		case <-tick.C:
		}
	}
}

// KeepTo keeps all threads of this process to one core, and so those to come: a
// thread inherits where it may run.
func KeepTo(core int) error {
	var set unix.CPUSet
	set.Set(core)
	threads, err := os.ReadDir("/proc/self/task")
	for _, t := range threads {
		tid, notNumber := strconv.Atoi(t.Name())
		err = errors.Join(err, notNumber, unix.SchedSetaffinity(tid, &set))
	}
	return err
}

// lastPort is the port handed out last. They lie below the range that the kernel
// takes the near ends of connections from: with thousands of those about, a port
// of that range that is free now may not be when its listener is opened.
var lastPort atomic.Int32

func init() { lastPort.Store(20_000 + rand.Int32N(8000)) }

// FreePort returns a port that nothing listens on, and never the same twice.
func FreePort() (string, error) {
	for range 1000 {
		port := strconv.Itoa(int(lastPort.Add(1)))
		ln, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err == nil {
			return port, ln.Close()
		}
	}
	return "", fmt.Errorf("no free port below %d", lastPort.Load())
}
