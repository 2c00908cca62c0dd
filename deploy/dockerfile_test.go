package deploy

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const dockerfile = "deploy/docker/Dockerfile"

// stage is one FROM of a Dockerfile and what follows it.
type stage struct {
	name, base string
	steps      []step
}

type step struct{ op, args string }

// stages reads as much of the Dockerfile language as the file here uses.
func stages(text string) (out []stage, problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	text = strings.ReplaceAll(text, "\\\n", " ")
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		op, args, _ := strings.Cut(line, " ")
		args = strings.TrimSpace(args)
		switch op {
		case "FROM":
			f := strings.Fields(args)
			if len(f) != 3 || f[1] != "AS" {
				bad("FROM %s: want an image and a stage's name", args)
				continue
			}
			out = append(out, stage{name: f[2], base: f[0]})
		case "WORKDIR", "SHELL", "COPY", "RUN", "ARG", "ENV", "VOLUME", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD":
			if len(out) == 0 {
				bad("%s before the first FROM", op)
				continue
			}
			last := &out[len(out)-1]
			last.steps = append(last.steps, step{op, args})
		default:
			bad("%s is no instruction this test knows", op)
		}
	}
	return out, problems
}

func (s *stage) last(op string) string {
	for _, st := range slices.Backward(s.steps) {
		if st.op == op {
			return st.args
		}
	}
	return ""
}

// fileCopy is one COPY.
type fileCopy struct {
	from    string // a stage; empty is the tree
	sources []string
	to      string
}

func (s *stage) copies() (out []fileCopy) {
	for _, st := range s.steps {
		if st.op != "COPY" {
			continue
		}
		var c fileCopy
		for _, f := range strings.Fields(st.args) {
			if from, ok := strings.CutPrefix(f, "--from="); ok {
				c.from = from
			} else if !strings.HasPrefix(f, "--") {
				c.sources = append(c.sources, f)
			}
		}
		if n := len(c.sources); n > 0 {
			c.sources, c.to = c.sources[:n-1], c.sources[n-1]
		}
		out = append(out, c)
	}
	return out
}

// imageTag is a name on the default registry and a version that says at least
// its minor: no host, no latest, and a digest if somebody has looked one up.
var imageTag = regexp.MustCompile(`^[a-z0-9-]+(/[a-z0-9-]+)?:v?[0-9]+\.[0-9]+[a-z0-9.-]*(@sha256:[0-9a-f]{64})?$`)

func checkDockerfile(t *testing.T, text string) []string {
	t.Helper()
	all, problems := stages(text)
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	ignored := ignore(read(t, ".dockerignore"))
	known := map[string]*stage{}
	for i := range all {
		s := &all[i]
		if known[s.base] == nil && s.base != "scratch" && !imageTag.MatchString(s.base) {
			bad("stage %s: image %s is not pinned to a version", s.name, s.base)
		}
		if version, ok := strings.CutPrefix(s.base, "golang:"); ok && !atLeast(version, goVersion(t)) {
			bad("stage %s: %s is older than the go line of go.mod", s.name, s.base)
		}
		for _, c := range s.copies() {
			if len(c.sources) == 0 {
				bad("stage %s: a COPY without a source", s.name)
			}
			if c.from != "" {
				if known[c.from] == nil {
					bad("stage %s: COPY from %s, which is no stage above", s.name, c.from)
				}
				continue
			}
			for _, src := range c.sources {
				if !exists(src) {
					bad("stage %s: COPY %s: not in the tree", s.name, src)
				} else if ignored(src) {
					bad("stage %s: COPY %s: .dockerignore leaves it out", s.name, src)
				}
			}
		}
		known[s.name] = s
	}
	for _, name := range []string{"slim", "embedded"} {
		s := known[name]
		if s == nil {
			bad("there is no stage %s", name)
			continue
		}
		problems = append(problems, checkImage(t, s)...)
	}
	for _, m := range regexp.MustCompile(`-X main\.(\w+)=`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(read(t, "cmd/edge/main.go"), "\nvar "+m[1]+" = ") {
			bad("the linker is told main.%s, which is no variable", m[1])
		}
	}
	if len(all) > 0 && all[len(all)-1].name != "slim" {
		bad("the last stage is %s; a build without --target should make slim", all[len(all)-1].name)
	}
	return problems
}

// checkImage holds what is shipped to the program inside it.
func checkImage(t *testing.T, s *stage) (problems []string) {
	bad := func(format string, args ...any) {
		problems = append(problems, "image "+s.name+": "+fmt.Sprintf(format, args...))
	}
	if s.base != "scratch" {
		bad("starts from %s; scratch has no shell to break into", s.base)
	}
	if user := s.last("USER"); !regexp.MustCompile(`^[1-9][0-9]*:[1-9][0-9]*$`).MatchString(user) {
		bad("USER is %q; want numbers that are not root's", user)
	}
	var entry, cmd, probe []string
	for _, p := range []struct {
		name, text string
		into       *[]string
	}{{"ENTRYPOINT", s.last("ENTRYPOINT"), &entry}, {"CMD", s.last("CMD"), &cmd},
		{"HEALTHCHECK", regexp.MustCompile(`^.*CMD `).ReplaceAllString(s.last("HEALTHCHECK"), ""), &probe}} {
		if err := json.Unmarshal([]byte(p.text), p.into); err != nil {
			bad("%s %s is not a list, and there is no shell to read anything else", p.name, p.text)
		}
	}
	binary := ""
	for _, c := range s.copies() {
		if len(c.sources) == 1 && path.Base(c.sources[0]) == "edge" {
			binary = c.to
		}
	}
	if len(entry) != 1 || entry[0] != binary {
		bad("ENTRYPOINT is %v; the binary is %s", entry, binary)
	}
	if len(probe) != 2 || probe[0] != binary || probe[1] != "health" {
		bad("HEALTHCHECK is %v; want %s health", probe, binary)
	}
	for _, list := range [][]string{cmd, probe[min(1, len(probe)):]} {
		if len(list) != 1 || !slices.Contains(commands(t), list[0]) {
			bad("%v is no command of edge", list)
		}
	}
	defaults := settings(t)
	if want := defaults["SERVER_PORT"] + " " + defaults["ADMIN_PORT"]; s.last("EXPOSE") != want {
		bad("EXPOSE %s; edge listens on %s", s.last("EXPOSE"), want)
	}
	for _, kv := range strings.Fields(s.last("ENV")) {
		name, value, _ := strings.Cut(kv, "=")
		if _, ok := defaults[name]; !ok {
			bad("ENV %s is no setting of edge", name)
		}
		if name == "DATA_DIR" && s.last("VOLUME") != value {
			bad("DATA_DIR is %s and the volume %s", value, s.last("VOLUME"))
		}
		if name == "DATA_DIR" && !slices.ContainsFunc(s.steps, func(st step) bool {
			return st.op == "COPY" && strings.Contains(st.args, "--chown="+s.last("USER")+" ")
		}) {
			bad("the owner of %s is not its user", value)
		}
	}
	return problems
}

func TestDockerfile(t *testing.T) {
	for _, p := range checkDockerfile(t, read(t, dockerfile)) {
		t.Error(p)
	}
}

func TestDockerfileIsRefused(t *testing.T) {
	text := read(t, dockerfile)
	f := func(old, new, want string) {
		t.Helper()
		oneProblem(t, checkDockerfile(t, mutate(t, text, old, new)), want)
	}
	f("golang:1.26.8-bookworm AS", "golang:latest AS", "not pinned")
	f("golang:1.26.8-bookworm AS", "golang AS", "not pinned")
	f("golang:1.26.8-bookworm AS", "golang:1-bookworm AS", "not pinned")
	f("golang:1.26.8-bookworm AS", "registry.example/golang:1.26.8 AS", "not pinned")
	f("golang:1.26.8-bookworm AS", "golang:1.25.9-bookworm AS", "older than the go line")
	f("COPY go.mod go.sum", "COPY go.mod go.lock", "go.lock: not in the tree")
	f("COPY go.mod", "COPY deploy/README.md go.mod", "leaves it out")
	f("--from=engine /engine/libchdb.so /libchdb.so", "--from=chdb /engine/libchdb.so /libchdb.so", "no stage above")
	f("USER 65532:65532", "USER 0:0", "not root's")
	f("--chown=65532:65532", "--chown=0:0", "is not its user")
	f("USER 65532:65532", "USER edge", "not root's")
	f("ENTRYPOINT [\"/edge\"]", "ENTRYPOINT /edge", "not a list")
	f("ENTRYPOINT [\"/edge\"]", "ENTRYPOINT [\"/bin/edge\"]", "the binary is /edge")
	f("CMD [\"/edge\", \"health\"]", "CMD [\"/edge\", \"healthy\"]", "want /edge health")
	f("CMD [\"serve\"]", "CMD [\"start\"]", "no command of edge")
	f("EXPOSE 8080 9091", "EXPOSE 8080 9090", "edge listens on")
	f("ENV EMBEDDED=true", "ENV EMBED=true", "EMBED is no setting")
	f("VOLUME /data", "VOLUME /var/lib/edge", "the volume /var/lib/edge")
	f("FROM scratch AS embedded", "FROM build AS embedded", "no shell to break into")
	f("main.version=", "main.release=", "main.release, which is no variable")
	f("AS slim", "AS tiny", "no stage slim")
}

// The build's context has every Go package of the program and every file those
// packages embed.
func TestDockerContextHasThePackages(t *testing.T) {
	ignored := ignore(read(t, ".dockerignore"))
	cmd := exec.Command("go", "list", "-deps", "-f",
		`{{$d := .Dir}}{{if not .Standard}}{{range .GoFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}{{range .EmbedFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}{{end}}`, "./cmd/edge")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for name := range strings.Lines(string(out)) {
		rel, ok := strings.CutPrefix(strings.TrimSpace(name), top+"/")
		if !ok {
			continue // a module of somebody else's
		}
		n++
		if ignored(rel) {
			t.Errorf("%s is part of edge and .dockerignore leaves it out", rel)
		}
	}
	if n < 50 {
		t.Errorf("looked at %d files; edge has more", n)
	}
	for _, secret := range []string{".git/config", "data/kafka/x", "bin/edge", "internal/embedded/clickhouse/engine/node_modules/@chdb/x"} {
		if !ignored(secret) {
			t.Errorf("%s would be sent to the builder", secret)
		}
	}
}

// ignore is .dockerignore's rules, of which the file uses two: a path, and a
// pattern in any directory.
func ignore(text string) func(string) bool {
	var rules []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			rules = append(rules, line)
		}
	}
	return func(name string) bool {
		parts := strings.Split(name, "/")
		for _, rule := range rules {
			if anywhere, ok := strings.CutPrefix(rule, "**/"); ok {
				for _, p := range parts {
					if ok, _ := path.Match(anywhere, p); ok {
						return true
					}
				}
			} else if name == rule || strings.HasPrefix(name, rule+"/") {
				return true
			}
		}
		return false
	}
}

func goVersion(t *testing.T) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^go ([0-9.]+)$`).FindStringSubmatch(read(t, "go.mod"))
	if m == nil {
		t.Fatal("go.mod has no go line")
	}
	return m[1]
}

// atLeast compares the numbers of two versions; what follows them is a flavour.
func atLeast(have, want string) bool {
	numbers := func(s string) (n [3]int) {
		_, _ = fmt.Sscanf(s, "%d.%d.%d", &n[0], &n[1], &n[2])
		return n
	}
	h, w := numbers(have), numbers(want)
	return slices.Compare(h[:], w[:]) >= 0
}
