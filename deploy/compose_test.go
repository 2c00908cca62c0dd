package deploy

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestCompose(t *testing.T) {
	for _, p := range checkCompose(t, read(t, "docker-compose.yml")) {
		t.Error(p)
	}
}

func TestComposeIsRefused(t *testing.T) {
	text := read(t, "docker-compose.yml")
	f := func(old, new, want string) {
		t.Helper()
		oneProblem(t, checkCompose(t, mutate(t, text, old, new)), want)
	}
	f("image: prom/prometheus:v3.13.1", "image: prom/prometheus:latest", "not pinned")
	f("image: prom/prometheus:v3.13.1", "image: prom/prometheus", "not pinned")
	f("image: prom/prometheus:v3.13.1", "image: registry.example/prom/prometheus:v3.13.1", "not pinned")
	f("image: prom/prometheus:v3.13.1", "image: bitnami/prometheus:v3.13.1", "nothing is known")
	f("image: grafana/grafana:13.1.2", "image: grafana/grafana:13.1.2@sha256:beef", "not pinned")
	f("target: slim", "target: slimmer", "from the stage slimmer")
	f("dockerfile: deploy/docker/Dockerfile", "dockerfile: Dockerfile", "is built from Dockerfile")
	f("KAFKA_BROKERS: redpanda:9092\n      CLICKHOUSE_HOST", "KAFKA_BROKER: redpanda:9092\n      CLICKHOUSE_HOST", "KAFKA_BROKER is no setting")
	f("KAFKA_BROKERS: redpanda:9092", "KAFKA_BROKERS: redpanda:19093", "where nobody listens")
	f("CLICKHOUSE_USER: edge", "CLICKHOUSE_USERNAME: edge", "nothing reads CLICKHOUSE_USERNAME")
	f("CLICKHOUSE_USERNAME: edge", "CLICKHOUSE_USERNAME: default", "do not agree")
	f("GRAFANA_CLICKHOUSE_PASSWORD: ${", "GRAFANA_PASSWORD: ${", "nothing reads GRAFANA_PASSWORD")
	f("127.0.0.1:8080:8080", "8080:8080", "not published on loopback")
	f("127.0.0.1:8080:8080", "127.0.0.1:8080:80", "nobody listens on 80")
	f("127.0.0.1:19092:19092", "127.0.0.1:9092:9092", "redpanda does not publish 19092")
	f("external://localhost:19092", "external://redpanda:19092", "does not tell clients outside")
	f("127.0.0.1:8090:8080", "127.0.0.1:9090:8080", "both publish 9090")
	f("./deploy/prometheus/rules:", "./deploy/prometheus/rule:", "not in the tree")
	f("rules:/etc/prometheus/rules:ro", "rules:/etc/prometheus/rules", "not mounted read-only")
	f("clickhouse-data:/var", "clickhouse-store:/var", "not declared")
	f("redpanda: {condition: service_healthy}", "redpanda: {condition: service_started}", "want service_healthy")
	f("      redpanda: {condition: service_healthy}\n      clickhouse", "      clickhouse", "does not wait")
	f("prometheus: {condition", "prom: {condition", "which is no service")
	f(`test: ["CMD", "/edge", "health"]`, `test: ["CMD", "curl", "localhost:8080"]`, "want CMD /edge health")
	f("    healthcheck:\n      test: [\"CMD\", \"promtool\"", "    health_check:\n      test: [\"CMD\", \"promtool\"", "health_check")
	f("limits: {cpus: \"2\", memory: 2G}", "limits: {cpus: \"2\"}", "no limit")
	f("GOMEMLIMIT: 1800MiB", "GOMEMLIMIT: 2400MiB", "below the memory limit")
	f("--unsafe-bypass-fsync=false", "--mode=dev-container", "would not be on disk")
	f("stop_grace_period: 30s", "stop_grace_period: 10s", "a stop may take 25s")
	f("read_only: true", "read_only: false", "read-only root")
	f("nofile: 65536", "nofile: 1024", "MAX_CONNS is 32768")
	f("ADMIN_HOST: 0.0.0.0", "ADMIN_HOST: 127.0.0.1", "cannot reach ADMIN_HOST")
	f("${CLICKHOUSE_PASSWORD:-edge}", "${CLICKHOUSE_PASSWORD}", "has no default")
	f("restart: unless-stopped", "restart: on-failure", "want unless-stopped")
	f("BASE_URL: http://edge:8080", "BASE_URL: http://edge:8081", "where nobody listens")
	f("RESULTS: stdout", "OUTPUT: stdout", "nothing reads OUTPUT")
	f("./loadtest:/loadtest:ro", "./load:/loadtest:ro", "not in the tree")
	f("  console:\n", "  kafka-ui:\n", "no service console")
}

// edge takes what the file tells it.
func TestComposeSettingsAreTaken(t *testing.T) {
	var file composeFile
	if err := yaml.Unmarshal([]byte(read(t, "docker-compose.yml")), &file); err != nil {
		t.Fatal(err)
	}
	substitute := regexp.MustCompile(`\$\{\w+:-([^}]*)\}`)
	for name, s := range file.Services {
		if !isEdge(s) {
			continue
		}
		cmd := exec.Command(edge(t), "config")
		for v, value := range s.Environment {
			cmd.Env = append(cmd.Env, v+"="+substitute.ReplaceAllString(value, "$1"))
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		} else if !strings.Contains(string(out), "\nADMIN_HOST=0.0.0.0\n") {
			t.Errorf("%s: edge did not take ADMIN_HOST:\n%s", name, out)
		}
	}
}
