//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// process is a child of the test: it is signalled by its own id and dies with
// the test, however that ends.
type process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed once it has ended
}

// spawn starts program with settings (name, value, …) on top of the environment.
func spawn(t testing.TB, name string, settings []string, program ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, log: filepath.Join(t.TempDir(), "log"), done: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p.cmd = exec.Command(program[0], program[1:]...)
	p.cmd.Env = os.Environ()
	for i := 0; i < len(settings); i += 2 {
		p.cmd.Env = append(p.cmd.Env, settings[i]+"="+settings[i+1])
	}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("the last of %s's log:\n%s", name, p.tail(60))
		}
	})
	return p
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("send %v to %s: %v", s, p.name, err)
	}
}

// kill ends the process without a chance to say goodbye.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// terminate asks the process to stop and waits until it has.
func (p *process) terminate() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		p.t.Fatalf("%s did not stop within a minute", p.name)
	}
}

func (p *process) tail(lines int) string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(string(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// within repeats f until it is content. A process that ends meanwhile fails the
// test at once.
func within(t testing.TB, limit time.Duration, what string, f func() error, needs ...*process) time.Duration {
	t.Helper()
	began := time.Now()
	deadline := time.After(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return time.Since(began)
		}
		for _, p := range needs {
			select {
			case <-p.done:
				t.Fatalf("%s: %s ended", what, p.name)
			default:
			}
		}
		select {
		case <-deadline:
			t.Fatalf("%s: still not so after %s: %v", what, limit, err)
		case <-tick.C:
		}
	}
}

// lastPort is the port handed out last.
var lastPort atomic.Int32

func init() { lastPort.Store(15_000 + rand.Int32N(14_000)) }

// freePort returns a port that no connection is given by chance, below the range the
// kernel takes the near end of a connection from, and never the same twice.
func freePort(t testing.TB) string {
	t.Helper()
	for range 1000 {
		port := strconv.Itoa(int(lastPort.Add(1)))
		if ln, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			_ = ln.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

// cluster is a Kafka broker and a ClickHouse server for edge processes to use,
// processes themselves. The server is the embedded engine alone, reached as any
// other over TCP.
type cluster struct {
	t          testing.TB
	broker     *process
	engine     *process
	brokerPort string
	enginePort string
	engineDir  string
	client     *kgo.Client
	admin      *kadm.Client

	brokerEnv  []string // settings and
	brokerProg []string // program that start the broker
}

// startCluster runs a real Apache Kafka.
func startCluster(t *testing.T) *cluster {
	t.Helper()
	if os.Getenv("EDGE_KAFKA") != "1" {
		t.Skip("this test runs a real Kafka: make test-kafka")
	}
	c := &cluster{t: t, brokerPort: freePort(t), brokerProg: []string{filepath.Join("..", "..", "deploy", "kafka", "run")}}
	c.brokerEnv = []string{"KAFKA_PORT", c.brokerPort, "KAFKA_CONTROLLER_PORT", freePort(t), "KAFKA_DIR", t.TempDir()}
	c.start()
	return c
}

// startOwnCluster runs edge kafka in Kafka's place, with topic in it.
func startOwnCluster(t *testing.T, topic string, settings ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, brokerPort: freePort(t), brokerProg: []string{os.Args[0], "kafka"}}
	c.brokerEnv = append([]string{
		"DATA_DIR", t.TempDir(), "EMBEDDED_KAFKA_LISTEN", "127.0.0.1:" + c.brokerPort,
		"KAFKA_TOPIC", topic, "KAFKA_GROUP", topic + "-sink", "KAFKA_PARTITIONS", strconv.Itoa(partitions),
	}, settings...)
	c.start(settings...)
	return c
}

func (c *cluster) start(settings ...string) {
	c.t.Helper()
	needEngine(c.t)
	c.enginePort, c.engineDir = freePort(c.t), c.t.TempDir()
	c.spawnEngine(settings...)
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:" + c.brokerPort))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(client.Close)
	c.client, c.admin = client, kadm.NewClient(client)
	took := c.startBroker()
	c.t.Logf("Kafka answers %s after its start", short(took))
	c.awaitEngine()
}

// spawnEngine starts the ClickHouse server on its directory.
func (c *cluster) spawnEngine(settings ...string) {
	c.t.Helper()
	c.engine = spawn(c.t, "clickhouse", append([]string{
		"DATA_DIR", c.engineDir, "LOG_LEVEL", "info", "EMBEDDED_CLICKHOUSE_LISTEN", "127.0.0.1:" + c.enginePort,
	}, settings...), os.Args[0], "clickhouse")
}

func (c *cluster) awaitEngine() {
	c.t.Helper()
	within(c.t, time.Minute, "ClickHouse answers", func() error {
		_, err := c.query("default", "SELECT 1 AS s")
		return err
	}, c.engine)
}

// startBroker starts Kafka on its directory and returns how long it took to
// answer.
func (c *cluster) startBroker() time.Duration {
	c.t.Helper()
	c.broker = spawn(c.t, "kafka", c.brokerEnv, c.brokerProg...)
	return within(c.t, time.Minute, "Kafka answers", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := c.admin.ListTopics(ctx)
		return err
	}, c.broker)
}

// tenant is a topic, group and database of its own in a cluster.
type tenant struct {
	*cluster
	t    testing.TB
	name string
	// For the report: how often the fault struck, and how long it took at worst
	// until rows were stored again.
	rounds int
	worst  time.Duration
}

func (c *cluster) tenant(t testing.TB, name string) *tenant {
	return &tenant{cluster: c, t: t, name: name}
}

// edgeProcess is edge serve as a child.
type edgeProcess struct {
	*process
	settings []string
	public   string
	admin    string
}

// start runs edge with roles and waits until it is ready.
func (n *tenant) start(name, roles string, settings ...string) *edgeProcess {
	n.t.Helper()
	public, admin := freePort(n.t), freePort(n.t)
	p := &edgeProcess{public: "127.0.0.1:" + public, admin: "127.0.0.1:" + admin}
	p.settings = append([]string{
		"ROLES", roles, "EMBEDDED", "false", "SERVER_HOST", "127.0.0.1", "SERVER_PORT", public, "ADMIN_PORT", admin,
		"KAFKA_BROKERS", "127.0.0.1:" + n.brokerPort, "KAFKA_TOPIC", n.name, "KAFKA_PARTITIONS", strconv.Itoa(partitions), "KAFKA_SESSION_TIMEOUT", "6s", "KAFKA_GROUP", n.name + "-sink",
		"CLICKHOUSE_HOST", "127.0.0.1", "CLICKHOUSE_PORT", n.enginePort, "CLICKHOUSE_DATABASE", n.name,
		"SHUTDOWN_TIMEOUT", "20s", "LOG_LEVEL", "info",
	}, settings...)
	p.process = n.spawnEdge(name, p)
	p.awaitReady()
	return p
}

// again starts a process that has ended, on the ports it had.
func (n *tenant) again(p *edgeProcess) {
	n.t.Helper()
	p.process = n.spawnEdge(p.name, p)
}

func (n *tenant) spawnEdge(name string, p *edgeProcess) *process {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	return spawn(n.t, name, p.settings, self, "serve")
}

func (p *edgeProcess) awaitReady() time.Duration {
	p.t.Helper()
	return within(p.t, time.Minute, p.name+" is ready", func() error {
		_, err := request(http.MethodGet, "http://"+p.public+"/ready", "", nil, http.StatusOK)
		return err
	}, p.process)
}

// clients talks to edge as SDKs do; a request that no answer ends is broken off.
var clients = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 16}}

// request wants one status and returns an error for every other.
func request(method, url, contentType string, body []byte, want int) ([]byte, error) {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := clients.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("%s %s: status %d, want %d: %s", method, url, resp.StatusCode, want, text)
	}
	return text, err
}

// metric adds up the samples of a metric whose line matches pattern.
func (p *edgeProcess) metric(pattern string) (sum float64) {
	for _, m := range p.samples(pattern) {
		v, err := strconv.ParseFloat(m[len(m)-1], 64)
		if err != nil {
			p.t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// samples finds the metrics of pattern; the last submatch is the value.
func (p *edgeProcess) samples(pattern string) [][]string {
	text, err := request(http.MethodGet, "http://"+p.admin+"/metrics", "", nil, http.StatusOK)
	if err != nil {
		p.t.Fatal(err)
	}
	return regexp.MustCompile(`(?m)^`+pattern+` (\S+)$`).FindAllStringSubmatch(string(text), -1)
}

// partitions lists what the process's sink owns.
func (p *edgeProcess) partitions() map[int32]bool {
	owned := make(map[int32]bool)
	for _, m := range p.samples(`edge_sink_lag_records\{partition="(\d+)"\}`) {
		id, err := strconv.Atoi(m[1])
		if err != nil {
			p.t.Fatal(err)
		}
		owned[int32(id)] = true
	}
	return owned
}

// samplesLine is those metrics on one line, for a test's log; zeros left out.
func (p *edgeProcess) samplesLine(pattern string) string {
	var out []string
	for _, m := range p.samples(pattern) {
		if m[2] != "0" {
			out = append(out, m[0])
		}
	}
	return strings.Join(out, ", ")
}
