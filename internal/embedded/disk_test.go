package embedded

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"
)

// smallDisk mounts a tmpfs of size bytes.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("mounting a small tmpfs needs root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// ballast leaves about free bytes on the disk of dir.
func ballast(t *testing.T, dir string, free int64) (release func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	have, _, err := space(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, have-free), 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// fillUp produces until the broker refuses, and returns how many records were
// acknowledged and the refusal.
func fillUp(t *testing.T, b *Broker, cl *kgo.Client) (acked int, err error) {
	t.Helper()
	value := []byte(strings.Repeat("x", 16<<10))
	for range 10_000 {
		b.disk.look()
		if err := cl.ProduceSync(testContext(t), kgo.SliceRecord(value)).FirstErr(); err != nil {
			return acked, err
		}
		acked++
	}
	t.Fatal("the disk never filled up")
	return 0, nil
}

func TestDiskReserve(t *testing.T) {
	dir := smallDisk(t, "16m")
	b := start(t, BrokerConfig{Dir: dir, MinFree: 4 << 20})
	cl := newClient(t, b, kgo.ProducerBatchCompression(kgo.NoCompression()))
	release := ballast(t, dir, 6<<20)

	acked, err := fillUp(t, b, cl)
	if acked == 0 || !errors.Is(err, kerr.UnknownServerError) || b.Ready() == nil {
		t.Fatalf("%d acknowledged, then %v; want some, then UNKNOWN_SERVER_ERROR", acked, err)
	}
	// The sink can still drain and commit from the reserve.
	reader := newClient(t, b, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	consume(t, reader, acked)
	commit(t, b, int64(acked), "")
	if n := b.stats.diskErrors.Load(); n != 0 {
		t.Errorf("the disk failed %d times; want refusals before it does", n)
	}

	release()
	b.disk.look()
	if err := b.Ready(); err != nil {
		t.Errorf("not ready with room again: %v", err)
	}
	produce(t, cl, 0, 10, 1)
	if p := b.Partitions(topic)[0]; p.HighWatermark != int64(acked+10) {
		t.Errorf("high watermark %d; want %d", p.HighWatermark, acked+10)
	}
}

// TestEdgeDiskFull takes the reserve away, so that the write itself fails.
func TestEdgeDiskFull(t *testing.T) {
	dir := smallDisk(t, "8m")
	b := start(t, BrokerConfig{Dir: dir, MinFree: -1})
	cl := newClient(t, b, kgo.ProducerBatchCompression(kgo.NoCompression()))
	commit(t, b, 0, "before")
	release := ballast(t, dir, 1<<20)

	acked, err := fillUp(t, b, cl)
	if acked == 0 || !errors.Is(err, kerr.UnknownServerError) {
		t.Fatalf("%d acknowledged, then %v; want some, then UNKNOWN_SERVER_ERROR", acked, err)
	}
	if b.stats.diskErrors.Load() == 0 {
		t.Error("the failed write was not counted")
	}

	release()
	// One record a batch, as before: a client that reused the sequence number of
	// the refused batch would be told "duplicate", an acknowledgement of nothing.
	produce(t, cl, 0, 10, 10)
	commit(t, b, 5, "after")
	killed := crash(t, b)
	b = start(t, BrokerConfig{Dir: killed})
	if p := b.Partitions(topic)[0]; p.HighWatermark != int64(acked+10) {
		t.Errorf("high watermark %d after a kill; want %d", p.HighWatermark, acked+10)
	}
	if got := b.commits(group)[topic][0]; got.Metadata != "after" {
		t.Errorf("commit %q after a kill; want the last one", got.Metadata)
	}
}

// TestFsyncEIO fails every fsync of a producing process
// from its fortieth on, which kfake alone would go on acknowledging.
func TestFsyncEIO(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("failing an fsync needs strace: ", err)
	}
	child := exec.Command(strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=40+", os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+t.TempDir())
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a killed strace would let go of the child
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { syscall.Kill(-child.Process.Pid, syscall.SIGKILL) }
	watchdog := time.AfterFunc(20*time.Second, kill)
	refused := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "refused") && !refused {
			refused = true
			kill()
		}
	}
	child.Wait()
	if !watchdog.Stop() || !refused {
		t.Error("records were acknowledged to the end although no fsync succeeded")
	}
}
