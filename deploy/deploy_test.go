// Package deploy is the files that run edge elsewhere: images, the compose file,
// Prometheus's rules, Grafana's dashboards. Nothing here is compiled into edge;
// the tests hold every name in those files to the code, the tree and each other,
// because the first to notice a wrong one would otherwise be whoever starts it.
package deploy

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// root is the repository, as this package's tests see it.
const root = ".."

func read(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// exists reports whether the tree has name, a slash-separated path from its root.
func exists(name string) bool {
	_, err := os.Stat(filepath.Join(root, filepath.FromSlash(name)))
	return err == nil
}

// settings are edge's: every name with its default, as cmd/edge's config has them.
func settings(t testing.TB) map[string]string {
	t.Helper()
	out := make(map[string]string)
	file := parse(t, "cmd/edge/config.go")
	ast.Inspect(file, func(n ast.Node) bool {
		field, ok := n.(*ast.Field)
		if !ok || field.Tag == nil {
			return true
		}
		text, err := strconv.Unquote(field.Tag.Value)
		if err != nil {
			t.Fatal(err)
		}
		tag := reflect.StructTag(text)
		if name, ok := tag.Lookup("env"); ok {
			out[name] = tag.Get("envDefault")
		}
		return true
	})
	if len(out) < 30 {
		t.Fatalf("found %d settings in cmd/edge/config.go; there are more", len(out))
	}
	return out
}

// commands are edge's subcommands, the keys of the map in cmd/edge's command.
func commands(t testing.TB) []string {
	t.Helper()
	var out []string
	ast.Inspect(parse(t, "cmd/edge/main.go"), func(n ast.Node) bool {
		if lit, ok := n.(*ast.CompositeLit); ok {
			if _, ok := lit.Type.(*ast.MapType); ok {
				for _, e := range lit.Elts {
					if key, ok := e.(*ast.KeyValueExpr).Key.(*ast.BasicLit); ok {
						out = append(out, strings.Trim(key.Value, `"`))
					}
				}
			}
		}
		return true
	})
	if !slices.Contains(out, "serve") {
		t.Fatalf("found the commands %v in cmd/edge/main.go; serve is missing", out)
	}
	return out
}

func parse(t testing.TB, name string) *ast.File {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, name), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func duration(t testing.TB, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// built is the directory of the program, once a test has asked for it.
var built string

// build compiles edge once for all tests that need the program itself.
var build = sync.OnceValues(func() (binary string, err error) {
	if built, err = os.MkdirTemp("", "edge-deploy-"); err != nil {
		return "", err
	}
	binary = filepath.Join(built, "edge")
	cmd := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/edge")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", errors.New(string(text))
	}
	return binary, nil
})

func edge(t testing.TB) string {
	t.Helper()
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	os.Exit(code)
}

// mutate applies old → new to text once and fails when old is not there: a
// mutation that changes nothing would prove nothing.
func mutate(t testing.TB, text, old, new string) string {
	t.Helper()
	if !strings.Contains(text, old) {
		t.Fatalf("nothing to break: %q is not in the file", old)
	}
	return strings.Replace(text, old, new, 1)
}

// oneProblem fails unless some problem says want.
func oneProblem(t testing.TB, problems []string, want string) {
	t.Helper()
	for _, p := range problems {
		if strings.Contains(p, want) {
			return
		}
	}
	t.Errorf("got the problems %q; want one that says %q", problems, want)
}

// files lists what is under dir with one of the extensions.
func files(t testing.TB, dir string, extensions ...string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(root, dir), func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && slices.Contains(extensions, path.Ext(name)) {
			rel, _ := filepath.Rel(root, name)
			names = append(names, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(names) == 0 {
		t.Fatalf("no %v under %s", extensions, dir)
	}
	return names
}
