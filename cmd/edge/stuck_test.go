package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestNobodyReadsTheLog gives edge a stderr that is full from the start: a
// collector that hangs must not take what it collects from down with it.
func TestNobodyReadsTheLog(t *testing.T) {
	needEngine(t)
	t.Parallel()
	path := filepath.Join(t.TempDir(), "stderr")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := syscall.Open(path, syscall.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(pipe) }()
	for err == nil {
		_, err = syscall.Write(pipe, make([]byte, 4096))
	}
	if !errors.Is(err, syscall.EAGAIN) {
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
	p.terminate()
	if status := p.cmd.ProcessState.ExitCode(); status != 0 {
		t.Errorf("edge ended with %d", status)
	}
}
