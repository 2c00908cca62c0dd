package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestNobodyReadsTheLog gives edge a stderr that is full from the start, and one whose
// reader goes away: a collector that hangs or ends must not take what it collects from
// down with it.
func TestNobodyReadsTheLog(t *testing.T) {
	needEngine(t)
	for _, gone := range []bool{false, true} {
		t.Run(fmt.Sprintf("gone=%t", gone), func(t *testing.T) { nobodyReads(t, gone) })
	}
}

func nobodyReads(t *testing.T, gone bool) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "stderr")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := syscall.Open(path, syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	closePipe := sync.OnceFunc(func() { _ = syscall.Close(pipe) })
	defer closePipe()
	for !gone && err == nil {
		_, err = syscall.Write(pipe, make([]byte, 4096))
	}
	if !gone && !errors.Is(err, syscall.EAGAIN) {
		t.Fatal(err)
	}
	port := freePort(t)
	p := spawn(t, "edge", []string{"EMBEDDED", "true", "DATA_DIR", t.TempDir(), "SERVER_HOST", "127.0.0.1", "SERVER_PORT", port, "ADMIN_PORT", freePort(t), "LOG_LEVEL", "debug"},
		"sh", "-c", `exec "$0" serve 2>"$1"`, os.Args[0], path)
	client := http.Client{Timeout: time.Second}
	post := func() error {
		const event = `{"event_name":"a","user_id":"u","timestamp":1708732800000}`
		answer, err := client.Post("http://127.0.0.1:"+port+"/events", "application/json", strings.NewReader(event))
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusAccepted {
			return fmt.Errorf("status %d", answer.StatusCode)
		}
		return nil
	}
	within(t, time.Minute, "edge takes an event", post, p)
	if gone {
		closePipe()
	}
	p.terminate() // and has something to say
	if status := p.cmd.ProcessState.ExitCode(); status != 0 {
		t.Errorf("edge ended with %d", status)
	}
}
