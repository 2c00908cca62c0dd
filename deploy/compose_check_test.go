package deploy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// composeFile is as much of the compose language as docker-compose.yml uses. It
// is decoded strictly: a key that is not here is a misspelling, or something
// nobody has thought of checking.
type composeFile struct {
	Name     string
	Services map[string]*composeService
	Networks map[string]struct{}
	Volumes  map[string]struct{}
	Service  any `yaml:"x-service"`
	Edge     any `yaml:"x-edge"`
}

type composeService struct {
	Image string
	Build *struct {
		Context, Dockerfile, Target string
		Args                        map[string]string
	}
	Command     any // a line or a list of words
	Environment map[string]string
	Ports       []string
	Volumes     []string
	Tmpfs       []string
	Networks    []string
	Profiles    []string
	User        string
	Restart     string
	Init        bool
	ReadOnly    bool           `yaml:"read_only"`
	CapDrop     []string       `yaml:"cap_drop"`
	SecurityOpt []string       `yaml:"security_opt"`
	StopGrace   string         `yaml:"stop_grace_period"`
	Ulimits     map[string]int `yaml:"ulimits"`
	DependsOn   map[string]struct {
		Condition string
	} `yaml:"depends_on"`
	Healthcheck struct {
		Test              []string
		Interval, Timeout string
		StartPeriod       string `yaml:"start_period"`
		Retries           int
	}
	Deploy struct {
		Resources struct {
			Limits struct{ CPUs, Memory string } `yaml:"limits"`
		}
	}
}

func (s *composeService) command() string { return fmt.Sprint(s.Command) }

// image is what a published image offers: the ports it listens on and the
// variables its documentation names. Both are from there, and cannot be checked
// here.
type image struct {
	ports     []string
	variables string // a regular expression
}

var images = map[string]image{
	"redpandadata/redpanda":        {[]string{"9644"}, `^$`}, // its other ports are on its command line
	"redpandadata/console":         {[]string{"8080"}, `^(KAFKA_BROKERS|REDPANDA_ADMINAPI_(ENABLED|URLS))$`},
	"clickhouse/clickhouse-server": {[]string{"9000", "8123"}, `^CLICKHOUSE_(USER|PASSWORD)$`},
	"prom/prometheus":              {[]string{"9090"}, `^$`},
	"grafana/grafana":              {[]string{"3000"}, `^GF_(SECURITY_ADMIN_PASSWORD|USERS_ALLOW_SIGN_UP|ANALYTICS_[A-Z_]+|PLUGINS_PREINSTALL_SYNC)$`},
	"grafana/k6":                   {nil, `^K6_[A-Z_]+$`},
}

// runtimeVariables are Go's own.
var runtimeVariables = []string{"GOMEMLIMIT", "GOMAXPROCS"}

// composeCheck is one run over one file.
type composeCheck struct {
	t        *testing.T
	file     *composeFile
	settings map[string]string
	problems []string
}

func (c *composeCheck) bad(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

func checkCompose(t *testing.T, text string) []string {
	t.Helper()
	c := &composeCheck{t: t, file: new(composeFile), settings: settings(t)}
	d := yaml.NewDecoder(strings.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(c.file); err != nil {
		return []string{err.Error()}
	}
	for _, want := range []string{"edge", "redpanda", "console", "clickhouse", "prometheus", "grafana", "k6"} {
		if c.file.Services[want] == nil {
			c.bad("there is no service %s", want)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.file.Services)) {
		s := c.file.Services[name]
		c.image(name, s)
		c.environment(name, s)
		c.publishes(name, s)
		c.mounts(name, s)
		c.waits(name, s)
		c.limits(name, s)
		if isEdge(s) {
			c.edge(name, s)
		}
	}
	c.addresses()
	for _, m := range regexp.MustCompile(`\$\{(\w+)([^}]*)\}`).FindAllStringSubmatch(text, -1) {
		if !strings.HasPrefix(m[2], ":-") {
			c.bad("${%s} has no default: the file does not start without a .env", m[1])
		}
	}
	return c.problems
}

func isEdge(s *composeService) bool { return s.Build != nil }

func (c *composeCheck) image(name string, s *composeService) {
	if isEdge(s) {
		all, _ := stages(read(c.t, dockerfile))
		if s.Build.Context != "." || s.Build.Dockerfile != dockerfile {
			c.bad("%s is built from %s in %s; want %s in .", name, s.Build.Dockerfile, s.Build.Context, dockerfile)
		}
		if !slices.ContainsFunc(all, func(st stage) bool { return st.name == s.Build.Target }) || s.Image != "edge:"+s.Build.Target {
			c.bad("%s is built as %s from the stage %s, which has another name or is none", name, s.Image, s.Build.Target)
		}
		for arg := range s.Build.Args {
			if !strings.Contains(read(c.t, dockerfile), "\nARG "+arg+"=") {
				c.bad("%s: the Dockerfile has no ARG %s", name, arg)
			}
		}
		return
	}
	if !imageTag.MatchString(s.Image) {
		c.bad("%s: image %s is not pinned to a version", name, s.Image)
	}
	if _, ok := images[repository(s)]; !ok {
		c.bad("%s: nothing is known of image %s", name, repository(s))
	}
}

func repository(s *composeService) string { r, _, _ := strings.Cut(s.Image, ":"); return r }

// environment holds names to whoever reads them: edge's settings, a published
// image's documented variables, or else some file that is mounted.
func (c *composeCheck) environment(name string, s *composeService) {
	for _, v := range slices.Sorted(maps.Keys(s.Environment)) {
		if isEdge(s) {
			if _, ok := c.settings[v]; !ok && !slices.Contains(runtimeVariables, v) {
				c.bad("%s: %s is no setting of edge", name, v)
			}
			continue
		}
		if regexp.MustCompile(images[repository(s)].variables).MatchString(v) {
			continue
		}
		found := false
		for _, m := range s.Volumes {
			if src, _, _ := strings.Cut(m, ":"); strings.HasPrefix(src, "./") && exists(src) {
				found = found || mentions(c.t, src, v)
			}
		}
		if !found {
			c.bad("%s: nothing reads %s", name, v)
		}
	}
}

// mentions reports whether some file at or under name has the word.
func mentions(t *testing.T, name, word string) bool {
	re := regexp.MustCompile(`\b` + word + `\b`)
	for _, f := range files(t, name, ".yml", ".yaml", ".xml", ".js", ".json") {
		if re.MatchString(read(t, f)) {
			return true
		}
	}
	return false
}

// listens are the ports a service has inside its network.
func (c *composeCheck) listens(s *composeService) []string {
	if isEdge(s) {
		return []string{c.settings["SERVER_PORT"], c.settings["ADMIN_PORT"]}
	}
	ports := slices.Clone(images[repository(s)].ports)
	for _, m := range regexp.MustCompile(`://0\.0\.0\.0:(\d+)`).FindAllStringSubmatch(s.command(), -1) {
		ports = append(ports, m[1])
	}
	if repository(s) == "clickhouse/clickhouse-server" {
		for _, m := range regexp.MustCompile(`<port>(\d+)</port>`).FindAllStringSubmatch(read(c.t, "deploy/clickhouse/config.xml"), -1) {
			ports = append(ports, m[1])
		}
	}
	return ports
}

var publish = regexp.MustCompile(`^127\.0\.0\.1:(\d+):(\d+)$`)

func (c *composeCheck) publishes(name string, s *composeService) {
	for _, p := range s.Ports {
		m := publish.FindStringSubmatch(p)
		if m == nil {
			c.bad("%s: port %s is not published on loopback", name, p)
			continue
		}
		if !slices.Contains(c.listens(s), m[2]) {
			c.bad("%s: nobody listens on %s in the container", name, m[2])
		}
		for other, o := range c.file.Services {
			// The two ways to run edge take each other's place.
			if other != name && slices.ContainsFunc(o.Ports, func(q string) bool { return strings.HasPrefix(q, "127.0.0.1:"+m[1]+":") }) && !(isEdge(s) && isEdge(o)) {
				c.bad("%s and %s both publish %s", name, other, m[1])
			}
		}
	}
}

// addresses are what an edge outside, with no settings, would look for.
func (c *composeCheck) addresses() {
	_, kafka, _ := strings.Cut(c.settings["KAFKA_BROKERS"], ":")
	for service, port := range map[string]string{"edge": c.settings["SERVER_PORT"], "redpanda": kafka, "clickhouse": c.settings["CLICKHOUSE_PORT"]} {
		s := c.file.Services[service]
		if s == nil || !slices.ContainsFunc(s.Ports, func(p string) bool { return strings.HasPrefix(p, "127.0.0.1:"+port+":") }) {
			c.bad("%s does not publish %s", service, port)
		}
		if service == "redpanda" && s != nil && (strings.Contains(s.command(), "dev-container") || !strings.Contains(s.command(), "--unsafe-bypass-fsync=false")) {
			c.bad("redpanda: what it acknowledges would not be on disk")
		}
		if service == "redpanda" && s != nil && !strings.Contains(s.command(), "external://localhost:"+port) {
			c.bad("redpanda does not tell clients outside about localhost:%s", port)
		}
	}
}

func (c *composeCheck) mounts(name string, s *composeService) {
	for _, v := range s.Volumes {
		src, rest, _ := strings.Cut(v, ":")
		if !strings.HasPrefix(src, ".") {
			if _, ok := c.file.Volumes[src]; !ok {
				c.bad("%s: volume %s is not declared", name, src)
			}
			continue
		}
		if !exists(src) {
			c.bad("%s: %s is not in the tree; docker would make a directory of it", name, src)
		}
		if !strings.HasSuffix(rest, ":ro") {
			c.bad("%s: %s is not mounted read-only", name, src)
		}
		if strings.Contains(rest, "initdb") {
			c.bad("%s: %s: the schema is edge's to lay down", name, v)
		}
	}
}

// waits holds that a service starts after what it needs is healthy.
func (c *composeCheck) waits(name string, s *composeService) {
	if len(s.Healthcheck.Test) == 0 && !slices.Contains(s.Profiles, "bench") {
		c.bad("%s has no healthcheck", name)
	}
	for dep, how := range s.DependsOn {
		d := c.file.Services[dep]
		switch {
		case d == nil:
			c.bad("%s depends on %s, which is no service", name, dep)
		case how.Condition != "service_healthy":
			c.bad("%s waits for %s to be %q; want service_healthy", name, dep, how.Condition)
		case len(d.Profiles) > 0:
			c.bad("%s depends on %s, which runs only in a profile", name, dep)
		}
	}
	for v, value := range s.Environment {
		for _, m := range regexp.MustCompile(`\b([a-z][a-z-]*):(\d{4,5})\b`).FindAllStringSubmatch(value, -1) {
			d := c.file.Services[m[1]]
			if d == nil || !slices.Contains(c.listens(d), m[2]) {
				c.bad("%s: %s is %s, where nobody listens", name, v, value)
			} else if _, ok := s.DependsOn[m[1]]; !ok {
				c.bad("%s talks to %s and does not wait for it", name, m[1])
			}
		}
	}
}

func (c *composeCheck) limits(name string, s *composeService) {
	l := s.Deploy.Resources.Limits
	if l.CPUs == "" || memory(l.Memory) == 0 {
		c.bad("%s has no limit of cpus or memory", name)
	}
	if !slices.Equal(s.Networks, []string{"edge"}) {
		c.bad("%s is in the networks %v", name, s.Networks)
	}
	if want := "unless-stopped"; s.Restart != want && !slices.Contains(s.Profiles, "bench") {
		c.bad("%s restarts %q; want %s", name, s.Restart, want)
	}
	if !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
		c.bad("%s may gain privileges", name)
	}
}

// edge holds for both images of edge.
func (c *composeCheck) edge(name string, s *composeService) {
	if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || len(s.Tmpfs) == 0 {
		c.bad("%s: want a read-only root, a tmpfs for /tmp and no capabilities", name)
	}
	if len(s.Healthcheck.Test) != 3 || s.Healthcheck.Test[1] != "/edge" || s.Healthcheck.Test[2] != "health" {
		c.bad("%s: healthcheck %v; want CMD /edge health", name, s.Healthcheck.Test)
	}
	if stop := duration(c.t, c.settings["SHUTDOWN_TIMEOUT"]) + duration(c.t, c.settings["PRESTOP_DELAY"]); duration(c.t, s.StopGrace) <= stop {
		c.bad("%s is killed after %s; a stop may take %s", name, s.StopGrace, stop)
	}
	if lim := memory(s.Environment["GOMEMLIMIT"]); lim == 0 || lim >= memory(s.Deploy.Resources.Limits.Memory) {
		c.bad("%s: GOMEMLIMIT %s must be below the memory limit %s", name, s.Environment["GOMEMLIMIT"], s.Deploy.Resources.Limits.Memory)
	}
	if conns, _ := strconv.Atoi(c.settings["MAX_CONNS"]); s.Ulimits["nofile"] <= conns {
		c.bad("%s may open %d files; MAX_CONNS is %d", name, s.Ulimits["nofile"], conns)
	}
	if s.Environment["ADMIN_HOST"] != "0.0.0.0" {
		c.bad("%s: Prometheus cannot reach ADMIN_HOST %q", name, s.Environment["ADMIN_HOST"])
	}
	if ch := c.file.Services["clickhouse"]; name == "edge" && ch != nil &&
		(s.Environment["CLICKHOUSE_USERNAME"] != ch.Environment["CLICKHOUSE_USER"] || s.Environment["CLICKHOUSE_PASSWORD"] != ch.Environment["CLICKHOUSE_PASSWORD"]) {
		c.bad("edge and clickhouse do not agree on the user or the password")
	}
}

// memory reads 1G, 1536M and 900MiB; 0 is none of them.
func memory(s string) int64 {
	n := strings.TrimRight(s, "GMiB")
	v, err := strconv.ParseInt(n, 10, 64)
	if err != nil {
		return 0
	}
	switch strings.TrimSuffix(s[len(n):], "iB") {
	case "G":
		return v << 30
	case "M":
		return v << 20
	}
	return 0
}
