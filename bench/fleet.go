//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"edge/bench/child"
	"edge/internal/clickhouse"
)

const (
	topic = "events"
	host  = "127.0.0.1"
)

// fleet is everything a stage has started, ended in reverse.
type fleet struct {
	o     *options
	ctx   context.Context
	dir   string
	stops []func() error
	n     int // children so far, for names of files
}

// end ends all children; what they say at the end belongs to the stage.
func (f *fleet) end() (err error) {
	for i := len(f.stops) - 1; i >= 0; i-- {
		err = errors.Join(err, f.stops[i]())
	}
	f.stops = nil
	return err
}

// stop ends the fleet and what it has written.
func (f *fleet) stop() error { return errors.Join(f.end(), os.RemoveAll(f.dir)) }

func (f *fleet) atEnd(stop func() error) { f.stops = append(f.stops, stop) }

// start runs a child, waits until ready says so, and has it ended with the stage.
func (f *fleet) start(name string, args, env []string, ready func() error) (*child.Process, error) {
	f.n++
	p, err := child.Start(child.Command{
		Name: name, Args: args, Env: append([]string{"LOG_LEVEL=warn"}, env...), Core: f.o.serverCore(),
		Log: filepath.Join(f.dir, fmt.Sprintf("%d-%s.log", f.n, name)),
	})
	if err != nil {
		return nil, err
	}
	f.atEnd(func() error {
		select {
		case <-p.Ended():
			if p.Asked() || f.ctx.Err() != nil { // ^C reaches the children, too
				return nil
			}
			return fmt.Errorf("%s ended by itself: %s", name, p.Tail())
		default:
			return p.Stop()
		}
	})
	ctx, cancel := context.WithTimeout(f.ctx, time.Minute)
	defer cancel()
	return p, p.Await(ctx, ready)
}

// dataDir is a new directory for name.
func (f *fleet) dataDir(name string) string {
	f.n++
	return filepath.Join(f.dir, fmt.Sprintf("%d-%s", f.n, name))
}

// broker is the embedded broker as a process of its own: kfake on disk, each
// batch fsynced, as edge runs it inside.
type broker struct {
	*child.Process
	addr  string
	dir   string
	admin *kadm.Client
}

func (f *fleet) broker(partitions int) (*broker, error) {
	port, err := child.FreePort()
	if err != nil {
		return nil, err
	}
	b := &broker{addr: host + ":" + port, dir: f.dataDir("broker")}
	client, err := kgo.NewClient(kgo.SeedBrokers(b.addr), kgo.RetryTimeout(2*time.Second))
	if err != nil {
		return nil, err
	}
	f.atEnd(func() error { client.Close(); return nil })
	b.admin = kadm.NewClient(client)
	return b, f.startBroker(b, partitions)
}

// startBroker starts b, also for a second time.
func (f *fleet) startBroker(b *broker, partitions int) (err error) {
	b.Process, err = f.start("broker", []string{f.o.edge, "kafka"},
		[]string{"EMBEDDED_KAFKA_LISTEN=" + b.addr, "DATA_DIR=" + b.dir, "KAFKA_PARTITIONS=" + strconv.Itoa(partitions)},
		func() error {
			if err := dialable(b.addr); err != nil {
				return err
			}
			_, err := b.count()
			return err
		})
	return err
}

func dialable(addr string) error {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err == nil {
		err = c.Close()
	}
	return err
}

// count is how many records the topic has taken.
func (b *broker) count() (n int64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ends, err := b.admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	ends.Each(func(o kadm.ListedOffset) { n += o.Offset })
	if err == nil && len(ends) == 0 {
		err = errors.New("the topic is not there")
	}
	return n, err
}

// engine is libchdb behind ClickHouse's protocol, as a process of its own.
type engine struct {
	*child.Process
	addr string
}

func (f *fleet) engine() (*engine, error) {
	port, err := child.FreePort()
	if err != nil {
		return nil, err
	}
	e := &engine{addr: host + ":" + port}
	e.Process, err = f.start("engine", []string{f.o.edge, "clickhouse"},
		[]string{"EMBEDDED_CLICKHOUSE_LISTEN=" + e.addr, "DATA_DIR=" + f.dataDir("engine")},
		func() error { return dialable(e.addr) })
	return e, err
}

// pool opens connections to one database of an engine at addr.
func (f *fleet) pool(addr, database string) (*clickhouse.Pool, error) {
	pool, err := clickhouse.Open(clickhouse.Options{Addr: addr, Database: database, Username: "default"})
	if err == nil {
		f.atEnd(func() error { pool.Close(); return nil })
	}
	return pool, err
}

// settings are what makes edge use e's database.
func (e *engine) settings(database string) []string {
	_, port, _ := net.SplitHostPort(e.addr)
	return []string{"CLICKHOUSE_HOST=" + host, "CLICKHOUSE_PORT=" + port, "CLICKHOUSE_DATABASE=" + database, "CLICKHOUSE_COMPRESS=false"}
}

// migrate lays down the schema in a database of e.
func (f *fleet) migrate(e *engine, database string) error {
	f.n++
	p, err := child.Start(child.Command{Name: "migrate", Args: []string{f.o.edge, "migrate"}, Env: e.settings(database),
		Log: filepath.Join(f.dir, fmt.Sprintf("%d-migrate.log", f.n))})
	if err != nil {
		return err
	}
	<-p.Ended()
	return p.Stop() // says how it ended
}

// server is a program that takes events: edge or a rival.
type server struct {
	*child.Process
	addr  string // HTTP
	admin string // of edge; a rival has only its allocations there
	sql   string // of an edge with the engine inside
	kafka string // of an edge with the broker inside
}

// edge starts edge with settings on ports of its own.
func (f *fleet) edge(name string, settings ...string) (*server, error) {
	public, err1 := child.FreePort()
	admin, err2 := child.FreePort()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	s := &server{addr: host + ":" + public, admin: host + ":" + admin}
	var err error
	s.Process, err = f.start(name, []string{f.o.edge, "serve"},
		append([]string{"SERVER_HOST=" + host, "SERVER_PORT=" + public, "ADMIN_PORT=" + admin}, settings...),
		func() error { _, err := get("http://" + s.addr + "/ready"); return err })
	return s, err
}

// whole is edge with everything inside, its broker and engine reachable.
func (f *fleet) whole(settings ...string) (*server, error) {
	sql, err1 := child.FreePort()
	kafka, err2 := child.FreePort()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	s, err := f.edge("edge", append(settings, "EMBEDDED=true", "DATA_DIR="+f.dataDir("edge"),
		"EMBEDDED_CLICKHOUSE_LISTEN="+host+":"+sql, "EMBEDDED_KAFKA_LISTEN="+host+":"+kafka)...)
	if s != nil {
		s.sql, s.kafka = host+":"+sql, host+":"+kafka
	}
	return s, err
}

// ingest is edge with only its HTTP side, in front of b.
func (f *fleet) ingest(b *broker, settings ...string) (*server, error) {
	return f.edge("edge", append([]string{"ROLES=ingest", "KAFKA_BROKERS=" + b.addr}, settings...)...)
}

// rival starts a server of this program.
func (f *fleet) rival(name string, args ...string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	port, err1 := child.FreePort()
	admin, err2 := child.FreePort()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	s := &server{addr: host + ":" + port, admin: host + ":" + admin}
	s.Process, err = f.start(name, append([]string{self, "serve-" + name, s.addr}, args...), []string{adminOfRival + "=" + s.admin}, func() error {
		return errors.Join(dialable(s.addr), dialable(s.admin))
	})
	return s, err
}

// get is the body of a 200 answer.
func get(url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s: %s", url, resp.Status, text)
	}
	return text, err
}

// metrics is what edge exports, each name summed over its labels.
func (s *server) metrics() (map[string]float64, error) {
	text, err := get("http://" + s.admin + "/metrics")
	if err != nil {
		return nil, err
	}
	out := make(map[string]float64)
	sc := bufio.NewScanner(strings.NewReader(string(text)))
	for sc.Scan() {
		line := sc.Text()
		name, value, ok := cutLast(line, " ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		name, _, _ = strings.Cut(name, "{")
		v, err := strconv.ParseFloat(value, 64)
		if err == nil {
			out[name] += v
		}
	}
	return out, sc.Err()
}

// mallocs is how many objects it has allocated so far; 0 when it does not say.
func (s *server) mallocs() float64 {
	if s.admin == "" {
		return 0
	}
	m, err := s.metrics()
	if err != nil {
		return 0
	}
	return m[mallocsTotal]
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
