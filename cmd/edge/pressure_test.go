//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// resident returns a process's memory in MiB: VmRSS now, VmHWM at most so far.
func (p *process) resident(which string) int {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	m := regexp.MustCompile(which + `:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		p.t.Fatalf("no %s in %s", which, status)
	}
	kb, err := strconv.Atoi(string(m[1]))
	if err != nil {
		p.t.Fatal(err)
	}
	return kb >> 10
}

// noRace skips a test of memory under the race detector, whose own drowns it.
func noRace(t *testing.T) {
	t.Helper()
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "-race" && s.Value == "true" {
				t.Skip("the race detector's own memory drowns the figure")
			}
		}
	}
}

// TestOOMPressure runs edge with GOMEMLIMIT=256MiB and bounds that fit it, on a
// broker that stands still while more clients than it can serve send as large
// bodies as they may. Its memory stays below the limit of the container that
// the documentation gives such a process; it refuses, and keeps every promise.
func TestOOMPressure(t *testing.T) {
	noRace(t)
	t.Setenv("GOMEMLIMIT", "256MiB")
	// On a busy machine a body of such a crowd takes longer than the 5 s it may, and
	// what the client sees of that is a connection cut off.
	f, p := spawnFront(t, "MAX_BODY_BYTES", "1MiB", "MAX_INFLATED_BYTES", "1MiB", "MAX_INFLIGHT_BYTES", "48MiB", "RING_BYTES", "16MiB",
		"MAX_BUFFERED_BYTES", "32MiB", "ACK_TIMEOUT", "1s", "SHARDS", "2", "SERVER_READ_TIMEOUT", "1m")
	f.pad = strings.Repeat("x", 4000)
	f.accepting()
	before := p.resident("RssAnon")
	thaw := f.weather[0].freeze()
	defer thaw()
	answers := make(map[int]int)
	for _, requests := range []int{200, 80, 80} {
		for status, got := range f.burst(requests, 200) { // 0.8 MB each
			answers[status] += len(got)
		}
		thaw()
	}
	// Pages of the program's file are the system's to take back at any time.
	peak := p.resident("VmHWM") - p.resident("RssFile")
	t.Logf("answers %v; %d MiB before, %d MiB at most", answers, before, peak)
	if answers[http.StatusTooManyRequests] == 0 || answers[http.StatusAccepted] == 0 {
		t.Errorf("answers %v; want refusals while the broker stands still, and promises again when it does not", answers)
	}
	if peak > 284 { // GOMEMLIMIT is nine tenths of it
		t.Errorf("%d MiB; want at most 284", peak)
	}
	if took := f.accepting(); took > 5*time.Second {
		t.Errorf("accepting again after %s", took)
	}
	clients.CloseIdleConnections()
	p.terminate()
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit status %d; want 0", code)
	}
	f.logIsLedger()
}

// Test10kIdleConnections keeps ten thousand connections open that have sent one
// event each: the process takes less than 200 MB, with a GOMEMLIMIT of nine
// tenths of that, and serves the next client.
func Test10kIdleConnections(t *testing.T) {
	noRace(t)
	const n = 10_000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Max < n+1000 {
		t.Skipf("the test needs %d descriptors and may have %d: %v", n+1000, limit.Max, err)
	}
	t.Setenv("GOMEMLIMIT", "170MiB")
	f, p := spawnFront(t)
	conns := make([]net.Conn, n)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	const event = `{"event_name":"a","user_id":"u","timestamp":1708732800000}`
	request := fmt.Sprintf("POST /events HTTP/1.1\r\nHost: edge\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(event), event)
	var wg sync.WaitGroup
	const dialers = 20
	for d := range dialers {
		wg.Go(func() {
			for i := d; i < n; i += dialers {
				if err := oneEvent(&conns[i], f.public, request); err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if open := p.metric("edge_http_open_connections"); open < n {
		t.Errorf("%.0f connections are open; want %d", open, n)
	}
	resident := p.resident("VmRSS")
	t.Logf("%d MiB with %d connections", resident, n)
	if resident > 200_000_000>>20 {
		t.Errorf("%d MiB; want less than 200 MB", resident)
	}
	if a := f.send(1); a.status != http.StatusAccepted {
		t.Errorf("the next client is answered %d", a.status)
	}
	for _, c := range conns {
		c.Close()
	}
	within(t, 30*time.Second, "they are gone", func() error { return atLeast(-int(p.metric("edge_http_open_connections")), -20) }, p.process)
}

// oneEvent dials, sends the request and reads its answer.
func oneEvent(to *net.Conn, addr, request string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	*to = c
	if _, err := io.WriteString(c, request); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 512), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}
