package deploy

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

type dashboard struct {
	UID, Title string
	Panels     []panel
	Templating struct {
		List []struct {
			Name       string
			Datasource source
			Query      struct{ Query, RawSQL string }
		}
	}
	Annotations struct {
		List []struct {
			Datasource source
			Expr       string
		}
	}
	file string
}

type source struct{ Type, UID string }

type panel struct {
	ID          int
	Type, Title string
	Datasource  source
	GridPos     struct{ H, W, X, Y int }
	Targets     []target
}

type target struct {
	RefID        string
	Datasource   source
	Expr, RawSQL string
	Format       int
}

func dashboards(t testing.TB) (out []dashboard) {
	t.Helper()
	for _, name := range files(t, "deploy/grafana/dashboards", ".json") {
		d := dashboard{file: name}
		if err := json.Unmarshal([]byte(read(t, name)), &d); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out = append(out, d)
	}
	return out
}

type provisioned struct {
	Datasources []struct {
		Name, UID, Type, URL string
		JSONData             map[string]any `yaml:"jsonData"`
		SecureJSONData       map[string]any `yaml:"secureJsonData"`
	}
	Providers []struct {
		AllowUIUpdates bool `yaml:"allowUiUpdates"`
		Options        struct{ Path string }
	}
}

func provisioning(t testing.TB, name string) (p provisioned) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, "deploy/grafana/provisioning/"+name)), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// Every query asks a data source that is provisioned, and PromQL names what is
// exported. TestDashboardsSQL runs the rest.
func TestDashboards(t *testing.T) {
	known := make(map[source]bool)
	for _, d := range provisioning(t, "datasources/edge.yml").Datasources {
		known[source{d.Type, d.UID}] = true
	}
	n := allNames(t)
	uids := make(map[string]string)
	variables := regexp.MustCompile(`\$(\{?)([a-z]\w*)`)
	for _, d := range dashboards(t) {
		if other := uids[d.UID]; d.UID == "" || other != "" {
			t.Errorf("%s: uid %q is empty or that of %s", d.file, d.UID, other)
		}
		uids[d.UID] = d.file
		var own []string
		for _, v := range d.Templating.List {
			own = append(own, v.Name)
			if !known[v.Datasource] {
				t.Errorf("%s: variable %s asks %v, which is not provisioned", d.file, v.Name, v.Datasource)
			}
		}
		check := func(where string, from source, expr string) {
			if !known[from] {
				t.Errorf("%s, %s: asks %v, which is not provisioned", d.file, where, from)
			}
			for _, m := range variables.FindAllStringSubmatch(expr, -1) {
				if !slices.Contains(own, m[2]) {
					t.Errorf("%s, %s: there is no variable %s", d.file, where, m[2])
				}
			}
			if from.Type == "prometheus" {
				for _, p := range n.checkExpression(strings.ReplaceAll(expr, "$__rate_interval", "5m")) {
					t.Errorf("%s, %s: %s", d.file, where, p)
				}
			}
		}
		ids, queries := make(map[int]bool), 0
		for i, p := range d.Panels {
			if ids[p.ID] {
				t.Errorf("%s: two panels have the id %d", d.file, p.ID)
			}
			ids[p.ID] = true
			if p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W == 0 || p.GridPos.H == 0 {
				t.Errorf("%s, %s: is outside the grid", d.file, p.Title)
			}
			for _, q := range d.Panels[:i] {
				if a, b := p.GridPos, q.GridPos; a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
					t.Errorf("%s: %s lies over %s", d.file, p.Title, q.Title)
				}
			}
			for _, q := range p.Targets {
				queries++
				if q.Expr == "" && q.RawSQL == "" {
					t.Errorf("%s, %s: target %s asks nothing", d.file, p.Title, q.RefID)
				}
				check(p.Title, q.Datasource, q.Expr+q.RawSQL)
			}
		}
		for _, a := range d.Annotations.List {
			check("annotation", a.Datasource, a.Expr)
		}
		if queries < 8 {
			t.Errorf("%s asks %d queries; it had more", d.file, queries)
		}
	}
	if !maps.Equal(uids, map[string]string{"edge-pipeline": "deploy/grafana/dashboards/pipeline.json", "edge-product": "deploy/grafana/dashboards/product.json"}) {
		t.Errorf("the dashboards are %v; links name edge-pipeline and edge-product", uids)
	}
}

// What Grafana is told about the other services is what the compose file says.
func TestGrafanaFindsItsSources(t *testing.T) {
	c := &composeCheck{t: t, file: new(composeFile), settings: settings(t)}
	if err := yaml.Unmarshal([]byte(read(t, "docker-compose.yml")), c.file); err != nil {
		t.Fatal(err)
	}
	grafana := c.file.Services["grafana"]
	for _, d := range provisioning(t, "datasources/edge.yml").Datasources {
		switch d.Type {
		case "prometheus":
			if d.URL != "http://prometheus:9090" || !slices.Contains(c.listens(c.file.Services["prometheus"]), "9090") {
				t.Errorf("Prometheus is at %s, where nobody listens", d.URL)
			}
		case "grafana-clickhouse-datasource":
			if d.JSONData["host"] != "clickhouse" || d.JSONData["port"] != 9000 || d.JSONData["defaultDatabase"] != c.settings["CLICKHOUSE_DATABASE"] {
				t.Errorf("ClickHouse is %v; want clickhouse:9000 and edge's database", d.JSONData)
			}
			users := read(t, "deploy/clickhouse/users.xml")
			if user := d.JSONData["username"].(string); !strings.Contains(users, "<"+user+">") || !strings.Contains(users, "GRANT SELECT ON "+c.settings["CLICKHOUSE_DATABASE"]+".*") {
				t.Errorf("users.xml does not let %s read the database", user)
			}
			if !strings.HasPrefix(grafana.Environment["GF_PLUGINS_PREINSTALL_SYNC"], d.Type+"@") {
				t.Errorf("Grafana is not told to install %s", d.Type)
			}
			variable := strings.Trim(d.SecureJSONData["password"].(string), "${}")
			if a, b := grafana.Environment[variable], c.file.Services["clickhouse"].Environment[variable]; a == "" || a != b {
				t.Errorf("grafana and clickhouse do not agree on %s: %q and %q", variable, a, b)
			}
		default:
			t.Errorf("data source %s has type %s, of which this test knows nothing", d.Name, d.Type)
		}
	}
	for _, p := range provisioning(t, "dashboards/edge.yml").Providers {
		if p.AllowUIUpdates || !slices.Contains(grafana.Volumes, "./deploy/grafana/dashboards:"+p.Options.Path+":ro") {
			t.Errorf("dashboards are read from %s, which is not the repository's directory", p.Options.Path)
		}
	}
}

// queriesSQL is every statement of the dashboards, with where it is.
func queriesSQL(t testing.TB) map[string]target {
	out := make(map[string]target)
	for _, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				if q.RawSQL != "" {
					out[filepath.Base(d.file)+", "+p.Title] = q
				}
			}
		}
		for _, v := range d.Templating.List {
			if v.Query.RawSQL != "" {
				out[filepath.Base(d.file)+", variable "+v.Name] = target{RawSQL: v.Query.RawSQL, Format: 1}
			}
		}
	}
	return out
}

func needEngine(t testing.TB) string {
	t.Helper()
	lib, err := filepath.EvalSymlinks(filepath.Join(root, "bin", "libchdb.so"))
	if err == nil {
		lib, err = filepath.Abs(lib)
	}
	if err != nil {
		if os.Getenv("EDGE_REQUIRE_ENGINE") == "1" {
			t.Fatal(err)
		}
		t.Skip("no embedded engine: make setup")
	}
	return lib
}
