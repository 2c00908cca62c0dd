package clickhouse

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestFindLibrary(t *testing.T) {
	root := t.TempDir()
	deep := filepath.Join(root, "a", "b")
	installed := filepath.Join(root, "internal", "embedded", "clickhouse", "engine", "node_modules", "@chdb", "lib-any-thing", libraryName)
	for _, dir := range []string{deep, filepath.Dir(installed), filepath.Join(root, "bin")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("CHDB_LIBRARY", "")
	t.Chdir(deep)
	f := func(want string) {
		t.Helper()
		got, err := FindLibrary()
		if want == "" {
			if !errors.Is(err, ErrNoLibrary) || !strings.Contains(err.Error(), "make setup") {
				t.Errorf("got %q, %v; want the advice to run make setup", got, err)
			}
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		want, _ = filepath.EvalSymlinks(want)
		if got, _ = filepath.EvalSymlinks(got); got != want {
			t.Errorf("got %s; want %s", got, want)
		}
	}
	touch := func(p string) string {
		t.Helper()
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	f("")
	f(touch(installed))
	f(touch(filepath.Join(root, "bin", libraryName)))
	if os.Geteuid() == 0 {
		if err := os.Chown(filepath.Join(root, "bin", libraryName), 12345, 12345); err != nil {
			t.Fatal(err)
		}
		f(installed)
		if err := os.Chown(installed, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if got, err := FindLibrary(); !errors.Is(err, ErrNoLibrary) || !strings.Contains(err.Error(), "another user") {
			t.Errorf("got %q, %v; want an error that says whose the libraries are", got, err)
		}
	}
	named := touch(filepath.Join(root, "other.so"))
	t.Setenv("CHDB_LIBRARY", named)
	f(named)
	t.Setenv("CHDB_LIBRARY", named+".missing")
	if _, err := FindLibrary(); err == nil || !strings.Contains(err.Error(), "CHDB_LIBRARY") {
		t.Errorf("got %v; want an error that names CHDB_LIBRARY", err)
	}
}

// panicEnv makes the test binary load the library and dereference nil, in a
// process of its own: the library cannot be unloaded from this one.
const panicEnv = "EDGE_TEST_CLICKHOUSE_PANIC"

func panicMain(lib string) int {
	l, err := loadLibrary(lib)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for range 3 {
		conn, err := l.open([]string{"clickhouse"})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer l.close(conn)
		fmt.Println(dereferenceNil())
	}
	return 0
}

func dereferenceNil() (what any) {
	defer func() {
		_, isRuntime := recover().(runtime.Error)
		what = isRuntime
	}()
	var p *walker
	return len(p.columns)
}

func TestNilDereferenceIsStillAPanic(t *testing.T) {
	lib := needLibrary(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), panicEnv+"="+lib)
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "true\ntrue\ntrue\n" {
		t.Errorf("got %q, %v; want three recovered panics", out, err)
	}
}
