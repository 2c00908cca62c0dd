//go:build linux

package deploy

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The images start from scratch, and what they copy there is found by a line of
// shell. Where nobody can build an image the line is run here, and the program
// in what it collects: as the image's user, in the image's root, read-only.

// rootfs runs the RUN lines of a stage on binary, and lib if there is one, and
// returns the root they made.
func rootfs(t *testing.T, stageName, binary, lib string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a root file system needs root to be entered")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "out"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]string{"edge": binary, "libchdb.so": lib} {
		if from == "" {
			continue
		}
		if err := os.Symlink(from, filepath.Join(dir, "out", name)); err != nil {
			t.Fatal(err)
		}
	}
	all, _ := stages(read(t, dockerfile))
	for _, s := range all {
		if s.name != stageName {
			continue
		}
		for _, st := range s.steps {
			if st.op != "RUN" {
				continue
			}
			line := regexp.MustCompile(`/(out|rootfs)\b`).ReplaceAllString(st.args, dir+"/$1")
			if out, err := exec.Command("/bin/bash", "-o", "pipefail", "-c", line).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", line, err, out)
			}
		}
	}
	// Of the image itself, and of what a container runtime mounts.
	top := filepath.Join(dir, "rootfs")
	for _, name := range []string{"edge", "libchdb.so"} {
		if err := os.WriteFile(filepath.Join(top, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"dev", "proc", "tmp", "data"} {
		if err := os.MkdirAll(filepath.Join(top, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return top
}

// container is a command that runs the image's program as the image's user.
// Mounts are in a namespace of their own and end with it.
func container(t *testing.T, top, binary, lib string, args ...string) *exec.Cmd {
	t.Helper()
	script := fmt.Sprintf(`
mount --bind %[1]s %[1]s
mount --bind %[2]s %[1]s/edge
[ -z "%[3]s" ] || mount --bind "%[3]s" %[1]s/libchdb.so
mount -t tmpfs -o mode=1777 tmpfs %[1]s/tmp
mount -t tmpfs -o uid=65532,gid=65532,mode=0700 tmpfs %[1]s/data
mount --rbind /dev %[1]s/dev
mount -t proc proc %[1]s/proc
mount -o remount,ro,bind %[1]s
! touch %[1]s/x 2>/dev/null || { echo 'the root is writable'; exit 1; }
exec chroot --userspec=65532:65532 %[1]s "$@"
`, top, binary, lib)
	cmd := exec.Command("unshare", append([]string{"--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", script, "sh"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd
}

// end kills a container: all of its group, since who changes its user is no longer killed
// with its parent.
func end(cmd *exec.Cmd) {
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	_ = cmd.Wait()
}

// needNamespaces skips where this process may not mount, as in most containers.
func needNamespaces(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("unshare", "--mount", "--pid", "--fork", "mount", "-t", "proc", "proc", "/proc").CombinedOutput(); err != nil {
		t.Skipf("mounts are not allowed here: %s", out)
	}
}

func TestSlimImageRuns(t *testing.T) {
	needNamespaces(t)
	binary := edge(t)
	top := rootfs(t, "rootfs-slim", binary, "")
	out, err := container(t, top, binary, "", "/edge", "version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "edge ") {
		t.Errorf("edge version in the slim image: %v\n%s", err, out)
	}
	// The probe must run and say that nobody is serving.
	out, err = container(t, top, binary, "", "/edge", "health").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "connection refused") {
		t.Errorf("edge health in the slim image: %v\n%s", err, out)
	}
	// Without its libraries it must not start, or this test shows nothing.
	if err := os.RemoveAll(filepath.Join(top, "lib64")); err != nil {
		t.Fatal(err)
	}
	if out, err := container(t, top, binary, "", "/edge", "version").CombinedOutput(); err == nil {
		t.Errorf("edge starts without a loader: %s", out)
	}
}

func TestEmbeddedImageRuns(t *testing.T) {
	needNamespaces(t)
	lib := needEngine(t)
	binary := edge(t)
	top := rootfs(t, "rootfs-embedded", binary, lib)
	cmd := container(t, top, binary, lib, "/edge", "serve")
	cmd.Env = append(cmd.Env, "EMBEDDED=true", "DATA_DIR=/data", "SERVER_HOST=127.0.0.1", "SERVER_PORT="+freePort(t), "ADMIN_PORT="+freePort(t))
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer end(cmd)
	// It says that it serves once the engine has laid down the schema.
	serving := make(chan string, 1)
	go func() {
		var lines []string
		for s := bufio.NewScanner(log); s.Scan(); {
			lines = append(lines, s.Text())
			if strings.Contains(s.Text(), `"msg":"serving"`) {
				serving <- ""
				return
			}
		}
		serving <- strings.Join(lines, "\n")
	}()
	select {
	case failed := <-serving:
		if failed != "" {
			t.Errorf("the embedded image does not serve:\n%s", failed)
		}
	case <-time.After(time.Minute):
		t.Error("the embedded image does not serve within a minute")
	}
}
