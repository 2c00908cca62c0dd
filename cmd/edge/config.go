package main

import (
	"encoding"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"edge/internal/embedded"
	"edge/internal/server"
	"edge/internal/sink"

	"github.com/caarlos0/env/v11"
)

// config is every setting. A field's tags are its name, its default and its
// line in the README, which a test compares with this struct.
type config struct {
	Roles    []string `env:"ROLES" envDefault:"ingest,sink,query" doc:"what this process does: any of ingest, sink, query"`
	Embedded bool     `env:"EMBEDDED" envDefault:"false" doc:"run the broker and the ClickHouse engine inside, on disk under DATA_DIR"`
	DataDir  string   `env:"DATA_DIR" envDefault:"./data" doc:"where embedded mode keeps everything"`

	ServerHost         string        `env:"SERVER_HOST" envDefault:"" doc:"address the public listener binds to; empty is all"`
	ServerPort         uint16        `env:"SERVER_PORT" envDefault:"8080" doc:"public HTTP port"`
	ServerReadTimeout  time.Duration `env:"SERVER_READ_TIMEOUT" envDefault:"5s" doc:"one whole request, from its first byte; also a new connection up to its first byte"`
	ServerWriteTimeout time.Duration `env:"SERVER_WRITE_TIMEOUT" envDefault:"10s" doc:"one answer"`
	ServerIdleTimeout  time.Duration `env:"SERVER_IDLE_TIMEOUT" envDefault:"2m" doc:"between two requests on a connection"`
	ServerLoops        int           `env:"SERVER_LOOPS" envDefault:"0" doc:"event loops that answer small posts; 0 is one per core, -1 none: each connection has a goroutine, as it always has over TLS"`
	ServerTLSCert      string        `env:"SERVER_TLS_CERT" envDefault:"" doc:"file of the public listener's certificate and chain, PEM; with it the listener speaks TLS only"`
	ServerTLSKey       string        `env:"SERVER_TLS_KEY" envDefault:"" doc:"file of its private key, PEM; both are read again on SIGHUP and when they change"`
	AdminHost          string        `env:"ADMIN_HOST" envDefault:"127.0.0.1" doc:"address the admin listener binds to; it has no authentication"`
	AdminPort          uint16        `env:"ADMIN_PORT" envDefault:"9091" doc:"Prometheus metrics, pprof and log level"`

	MaxEventBytes    size `env:"MAX_EVENT_BYTES" envDefault:"64KiB" doc:"one event; larger is 413"`
	MaxFieldBytes    size `env:"MAX_FIELD_BYTES" envDefault:"1KiB" doc:"event_name, user_id, campaign_id, event_id and each tag; longer is 400"`
	MaxEvents        int  `env:"MAX_EVENTS" envDefault:"10000" doc:"events in one bulk request; more is 413"`
	MaxBodyBytes     size `env:"MAX_BODY_BYTES" envDefault:"10MiB" doc:"one bulk body as sent; larger is 413"`
	MaxInflatedBytes size `env:"MAX_INFLATED_BYTES" envDefault:"32MiB" doc:"one body after decompression; larger is 413"`
	MaxInflightBytes size `env:"MAX_INFLIGHT_BYTES" envDefault:"256MiB" doc:"all request bodies and long answers in memory at once; beyond it 429"`
	MaxConns         int  `env:"MAX_CONNS" envDefault:"32768" doc:"open connections; beyond it 503"`
	MaxConnsPerIP    int  `env:"MAX_CONNS_PER_IP" envDefault:"0" doc:"open connections of one client address; 0 is no limit (right behind a proxy)"`

	MinTime  time.Time     `env:"MIN_TIME" envDefault:"2000-01-01T00:00:00Z" doc:"oldest timestamp an event may carry"`
	MaxAge   time.Duration `env:"MAX_AGE" envDefault:"0s" doc:"oldest an event may be on arrival; 0 leaves it to MIN_TIME"`
	MaxAhead time.Duration `env:"MAX_AHEAD" envDefault:"24h" doc:"how far in the future a timestamp may be"`

	WriteKeys   secrets  `env:"WRITE_KEYS" envDefault:"" doc:"keys that may POST events, each a key or sha256:<hex of it>; without any, and no KEYS_FILE, everyone may"`
	ReadKeys    secrets  `env:"READ_KEYS" envDefault:"" doc:"keys that may GET /metrics, in the same way"`
	KeysFile    string   `env:"KEYS_FILE" envDefault:"" doc:"file of more keys, made by edge key new, read again on SIGHUP and when it changes; with it POST and GET /metrics both need a key"`
	ReplayKey   secret   `env:"REPLAY_KEY" envDefault:"" doc:"key that edge replay sends; empty is the first of WRITE_KEYS that is written out"`
	KeyRate     int      `env:"KEY_RATE" envDefault:"0" doc:"events a second one write key may send; beyond it 429; 0 is no limit"`
	CORSOrigins []string `env:"CORS_ORIGINS" envDefault:"*" doc:"origins a browser may call from; * is any, none is none"`

	Ack              string        `env:"ACK" envDefault:"broker" doc:"broker: 202 means acknowledged by the broker; memory: 202 means taken into memory, which a kill loses"`
	RetryAfter       time.Duration `env:"RETRY_AFTER" envDefault:"1s" doc:"what 429 and 503 ask clients to wait, in whole seconds"`
	AckTimeout       time.Duration `env:"ACK_TIMEOUT" envDefault:"2s" doc:"how long a request waits for the broker before 503"`
	Shards           int           `env:"SHARDS" envDefault:"0" doc:"rings between HTTP and Kafka; 0 is one per core; small requests share the first while it keeps up"`
	RingRequests     int           `env:"RING_REQUESTS" envDefault:"16384" doc:"requests one ring holds; beyond it 429"`
	RingBytes        size          `env:"RING_BYTES" envDefault:"32MiB" doc:"bytes one ring holds; beyond it 429"`
	MaxInflight      int           `env:"MAX_INFLIGHT_RECORDS" envDefault:"200000" doc:"records sent to Kafka and not yet acknowledged"`
	MaxBufferedBytes size          `env:"MAX_BUFFERED_BYTES" envDefault:"64MiB" doc:"bytes of those records"`
	Linger           time.Duration `env:"LINGER" envDefault:"0s" doc:"how long to wait for a fuller Kafka batch"`

	KafkaBrokers     []string      `env:"KAFKA_BROKERS" envDefault:"localhost:19092" doc:"seed brokers, host:port"`
	KafkaTopic       string        `env:"KAFKA_TOPIC" envDefault:"events" doc:"topic of the events; its dead letters go to <topic>.dead"`
	KafkaPartitions  int32         `env:"KAFKA_PARTITIONS" envDefault:"0" doc:"partitions when the topic is created, fixed from then on; 0 is 8, and 1 embedded, where each costs two fsyncs"`
	KafkaReplication int16         `env:"KAFKA_REPLICATION" envDefault:"-1" doc:"replicas when the topic is created; -1 is the broker's default"`
	KafkaRetention   time.Duration `env:"KAFKA_RETENTION" envDefault:"168h" doc:"how long the topic keeps events, stored or not, when it is created; 0 is for ever"`
	KafkaGroup       string        `env:"KAFKA_GROUP" envDefault:"edge-sink" doc:"consumer group of the sink"`

	KafkaTLS      bool   `env:"KAFKA_TLS" envDefault:"false" doc:"speak TLS to the brokers"`
	KafkaTLSCA    string `env:"KAFKA_TLS_CA" envDefault:"" doc:"file of the CA certificates that vouch for them, PEM; empty is the system's"`
	KafkaTLSCert  string `env:"KAFKA_TLS_CERT" envDefault:"" doc:"file of a client certificate, PEM, for brokers that ask for one"`
	KafkaTLSKey   string `env:"KAFKA_TLS_KEY" envDefault:"" doc:"file of its private key, PEM; both are read again on SIGHUP and when they change"`
	SASLMechanism string `env:"KAFKA_SASL_MECHANISM" envDefault:"" doc:"PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty is none"`
	SASLUsername  string `env:"KAFKA_SASL_USERNAME" envDefault:"" doc:"user"`
	SASLPassword  secret `env:"KAFKA_SASL_PASSWORD" envDefault:"" doc:"password"`

	SessionTimeout time.Duration `env:"KAFKA_SESSION_TIMEOUT" envDefault:"10s" doc:"after how much silence a sink's partitions go to others; a killed sink's wait this long"`

	ClickHouseHost     string        `env:"CLICKHOUSE_HOST" envDefault:"localhost" doc:"ClickHouse server"`
	ClickHousePort     uint16        `env:"CLICKHOUSE_PORT" envDefault:"9000" doc:"its native protocol port"`
	ClickHouseDatabase string        `env:"CLICKHOUSE_DATABASE" envDefault:"events_db" doc:"database, created when absent"`
	ClickHouseUsername string        `env:"CLICKHOUSE_USERNAME" envDefault:"default" doc:"user"`
	ClickHousePassword secret        `env:"CLICKHOUSE_PASSWORD" envDefault:"" doc:"password"`
	ClickHouseTLS      bool          `env:"CLICKHOUSE_TLS" envDefault:"false" doc:"speak TLS to ClickHouse, whose port for it is usually 9440"`
	ClickHouseTLSCA    string        `env:"CLICKHOUSE_TLS_CA" envDefault:"" doc:"file of the CA certificates that vouch for it, PEM; empty is the system's"`
	ClickHouseTLSCert  string        `env:"CLICKHOUSE_TLS_CERT" envDefault:"" doc:"file of a client certificate, PEM"`
	ClickHouseTLSKey   string        `env:"CLICKHOUSE_TLS_KEY" envDefault:"" doc:"file of its private key, PEM; both are read again on SIGHUP and when they change"`
	ClickHouseCluster  string        `env:"CLICKHOUSE_CLUSTER" envDefault:"" doc:"cluster name: tables become Replicated, DDL runs ON CLUSTER"`
	ClickHouseConns    int           `env:"CLICKHOUSE_CONNS" envDefault:"16" doc:"connections for metrics queries; an answer takes one or two as a rule, and up to four"`
	ClickHouseCompress bool          `env:"CLICKHOUSE_COMPRESS" envDefault:"true" doc:"LZ4 on the way to ClickHouse: less network, for a third of the sink's processor time; metrics queries go without; false when both are on one machine"`
	TableTTL           time.Duration `env:"TABLE_TTL" envDefault:"0s" doc:"how long rows are kept by their timestamp; 0 is for ever"`

	FlushInterval time.Duration `env:"FLUSH_INTERVAL" envDefault:"100ms" doc:"shortest time between two inserts"`
	FlushRows     int           `env:"FLUSH_ROWS" envDefault:"100000" doc:"rows that fill a block"`
	FlushBytes    size          `env:"FLUSH_BYTES" envDefault:"64MiB" doc:"bytes that fill a block"`
	FlushInserts  int           `env:"FLUSH_INSERTS" envDefault:"2" doc:"full blocks that are inserted at the same time"`
	InsertTimeout time.Duration `env:"INSERT_TIMEOUT" envDefault:"30s" doc:"one insert"`
	DedupIDs      int64         `env:"DEDUP_MAX_IDS" envDefault:"4000000" doc:"deduplication window: records of the topic within which a repeated event_id counts once; 0 turns it off"`
	DedupWindow   time.Duration `env:"DEDUP_WINDOW" envDefault:"24h" doc:"deduplication window: time within which it does"`
	StuckAfter    time.Duration `env:"STUCK_AFTER" envDefault:"60s" doc:"a sink that has something to store and stores nothing for this long is not ready"`

	QueryTimeout time.Duration `env:"QUERY_TIMEOUT" envDefault:"10s" doc:"one metrics query"`
	QueryKeep    time.Duration `env:"QUERY_KEEP" envDefault:"0s" doc:"how old an answer may be for who asks the same again, range included, at most 1m; 0 is no older than the question"`
	QueryStates  size          `env:"QUERY_STATES" envDefault:"32MiB" doc:"what past buckets held of users, kept for queries that need them again, if their parts and counts are the same; 0 keeps none"`

	EmbeddedSync             bool          `env:"EMBEDDED_SYNC" envDefault:"true" doc:"embedded broker: fsync before acknowledging; false survives a kill but not a power cut"`
	EmbeddedRetention        time.Duration `env:"EMBEDDED_RETENTION" envDefault:"1h" doc:"embedded broker: how long it keeps events that are stored"`
	EmbeddedKafkaListen      string        `env:"EMBEDDED_KAFKA_LISTEN" envDefault:"" doc:"loopback host:port that opens the embedded broker to kcat and rpk; empty keeps it closed"`
	EmbeddedClickHouseListen string        `env:"EMBEDDED_CLICKHOUSE_LISTEN" envDefault:"" doc:"loopback host:port that opens the embedded engine to clickhouse-client; empty keeps it closed"`

	PrestopDelay    time.Duration `env:"PRESTOP_DELAY" envDefault:"0s" doc:"how long to keep serving after a stop signal, with /ready saying 503"`
	ShutdownTimeout time.Duration `env:"SHUTDOWN_TIMEOUT" envDefault:"25s" doc:"for the whole stop; what is not done by then is left to the next start"`
	LogLevel        string        `env:"LOG_LEVEL" envDefault:"info" doc:"debug, info, warn or error; changeable at run time on the admin port"`
}

// roles a process can have.
const (
	roleIngest = "ingest"
	roleSink   = "sink"
	roleQuery  = "query"
)

func (c *config) has(role string) bool { return slices.Contains(c.Roles, role) }

// origins are the CORS origins; the parser reads an empty variable as its
// default, so no origin at all needs a word.
func (c *config) origins() []string {
	if slices.Equal(c.CORSOrigins, []string{"none"}) {
		return nil
	}
	return c.CORSOrigins
}

// partitions is how many the topic gets when it is created.
func (c *config) partitions() int32 {
	switch {
	case c.KafkaPartitions > 0:
		return c.KafkaPartitions
	case c.Embedded:
		return 1
	}
	return 8
}

// topicRetention is KAFKA_RETENTION as a topic has it, where 0 would be no time.
func (c *config) topicRetention() string {
	if c.KafkaRetention == 0 {
		return "-1"
	}
	return strconv.FormatInt(c.KafkaRetention.Milliseconds(), 10)
}

// sinkRetention is how long an event waits in the log for the sink, 0 for ever: the
// embedded broker keeps it until it is stored.
func (c *config) sinkRetention() time.Duration {
	if c.Embedded {
		return 0
	}
	return c.KafkaRetention
}

func (c *config) deadLetterTopic() string { return c.KafkaTopic + ".dead" }

func (c *config) clickHouseAddr() string {
	return net.JoinHostPort(c.ClickHouseHost, strconv.Itoa(int(c.ClickHousePort)))
}

// loadConfig reads the environment and the files it names. The error names every
// bad setting in a sentence of its own.
func loadConfig(environ map[string]string) (config, error) {
	environ, err := withSecretFiles(environ)
	if err != nil {
		return config{}, err
	}
	c, err := parseConfig(environ)
	if err != nil {
		return c, err
	}
	return c, c.validate()
}

// parseConfig reads the environment alone.
func parseConfig(environ map[string]string) (config, error) {
	var c config
	err := env.ParseWithOptions(&c, env.Options{Environment: environ})
	var several env.AggregateError
	if errors.As(err, &several) {
		var errs []error
		for _, e := range several.Errors {
			errs = append(errs, explain(e, environ))
		}
		return c, errors.Join(errs...)
	}
	if err != nil {
		return c, err
	}
	for _, list := range [][]string{c.Roles, c.KafkaBrokers, c.CORSOrigins} {
		for i, item := range list {
			list[i] = strings.TrimSpace(item)
		}
	}
	if c.DataDir, err = filepath.Abs(c.DataDir); err != nil {
		return c, fmt.Errorf("DATA_DIR: %w", err)
	}
	return c, nil
}

// explain names the variable where the parser names the struct field.
func explain(err error, environ map[string]string) error {
	var parse env.ParseError
	if !errors.As(err, &parse) {
		return err
	}
	f, ok := reflect.TypeFor[config]().FieldByName(parse.Name)
	if !ok {
		return err
	}
	name := f.Tag.Get("env")
	if isSecret(f.Type) {
		return fmt.Errorf("%s: %w", name, parse.Err)
	}
	return fmt.Errorf("%s=%q: %w", name, environ[name], parse.Err)
}

func (c *config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Roles) == 0 {
		bad("ROLES is empty; name any of ingest, sink, query")
	}
	for _, r := range c.Roles {
		if r != roleIngest && r != roleSink && r != roleQuery {
			bad("ROLES has %q; it may have ingest, sink, query", r)
		}
	}
	if c.Ack != "broker" && c.Ack != "memory" {
		bad("ACK is %q; it may be broker or memory", c.Ack)
	}
	for _, p := range []struct {
		name string
		n    int64
	}{
		{"MAX_EVENT_BYTES", int64(c.MaxEventBytes)}, {"MAX_FIELD_BYTES", int64(c.MaxFieldBytes)}, {"MAX_EVENTS", int64(c.MaxEvents)},
		{"MAX_BODY_BYTES", int64(c.MaxBodyBytes)}, {"MAX_INFLATED_BYTES", int64(c.MaxInflatedBytes)}, {"MAX_INFLIGHT_BYTES", int64(c.MaxInflightBytes)},
		{"MAX_CONNS", int64(c.MaxConns)}, {"RING_REQUESTS", int64(c.RingRequests)}, {"RING_BYTES", int64(c.RingBytes)},
		{"MAX_INFLIGHT_RECORDS", int64(c.MaxInflight)}, {"MAX_BUFFERED_BYTES", int64(c.MaxBufferedBytes)},
		{"CLICKHOUSE_CONNS", int64(c.ClickHouseConns)},
		{"FLUSH_ROWS", int64(c.FlushRows)}, {"FLUSH_BYTES", int64(c.FlushBytes)}, {"FLUSH_INSERTS", int64(c.FlushInserts)},
		{"SERVER_READ_TIMEOUT", int64(c.ServerReadTimeout)}, {"SERVER_WRITE_TIMEOUT", int64(c.ServerWriteTimeout)},
		{"SERVER_IDLE_TIMEOUT", int64(c.ServerIdleTimeout)}, {"ACK_TIMEOUT", int64(c.AckTimeout)}, {"FLUSH_INTERVAL", int64(c.FlushInterval)},
		{"MAX_AHEAD", int64(c.MaxAhead)}, {"STUCK_AFTER", int64(c.StuckAfter)}, {"RETRY_AFTER", int64(c.RetryAfter)}, {"SHUTDOWN_TIMEOUT", int64(c.ShutdownTimeout)},
	} {
		if p.n <= 0 {
			bad("%s must be positive", p.name)
		}
	}
	for _, p := range []struct {
		name string
		d    time.Duration
	}{{"MAX_AGE", c.MaxAge}, {"LINGER", c.Linger}, {"TABLE_TTL", c.TableTTL}, {"QUERY_KEEP", c.QueryKeep}, {"KAFKA_RETENTION", c.KafkaRetention}, {"EMBEDDED_RETENTION", c.EmbeddedRetention}, {"KAFKA_PARTITIONS", time.Duration(c.KafkaPartitions)}, {"PRESTOP_DELAY", c.PrestopDelay}, {"KEY_RATE", time.Duration(c.KeyRate)}, {"MAX_CONNS_PER_IP", time.Duration(c.MaxConnsPerIP)}, {"SHARDS", time.Duration(c.Shards)}, {"DEDUP_MAX_IDS", time.Duration(c.DedupIDs)}, {"DEDUP_WINDOW", c.DedupWindow}} {
		if p.d < 0 {
			bad("%s must not be negative", p.name)
		}
	}
	if c.SessionTimeout < 6*time.Second || c.SessionTimeout > 30*time.Minute {
		bad("KAFKA_SESSION_TIMEOUT is %s; brokers take 6s to 30m unless configured otherwise", c.SessionTimeout)
	}
	if c.QueryKeep > time.Minute {
		bad("QUERY_KEEP is %s; it may be at most 1m: what is kept has a bound, and old answers would keep new ones out", c.QueryKeep)
	}
	for _, p := range []struct {
		name string
		d    time.Duration
	}{{"INSERT_TIMEOUT", c.InsertTimeout}, {"QUERY_TIMEOUT", c.QueryTimeout}} {
		if p.d < time.Second {
			bad("%s is %s; ClickHouse counts whole seconds, so it needs at least 1s", p.name, p.d)
		}
	}
	if c.KafkaRetention > 0 && c.KafkaRetention < time.Second {
		bad("KAFKA_RETENTION is %s; it needs at least 1s, or 0 to keep events for ever", c.KafkaRetention)
	}
	if c.FlushRows > sink.MaxFlushRows {
		bad("FLUSH_ROWS is %d; more than %d rows would no longer be one block, which recovery relies on", c.FlushRows, sink.MaxFlushRows)
	}
	if c.FlushInserts > sink.MaxInserts {
		bad("FLUSH_INSERTS is %d; %d is the most", c.FlushInserts, sink.MaxInserts)
	}
	if c.FlushBytes > sink.MaxFlushBytes {
		bad("FLUSH_BYTES is %s; more than %s might no longer be one block, which recovery relies on", c.FlushBytes, size(sink.MaxFlushBytes))
	}
	if int64(c.MaxEventBytes) > 1<<19 {
		bad("MAX_EVENT_BYTES is %s; a Kafka batch of this client holds at most 512KiB of one event", c.MaxEventBytes)
	}
	if int64(c.RingBytes) > 1<<30 || int64(c.MaxBufferedBytes) > 1<<31-1 {
		bad("RING_BYTES may be at most 1GiB and MAX_BUFFERED_BYTES just under 2GiB")
	}
	if c.ServerLoops < -1 || c.ServerLoops > maxLoops {
		bad("SERVER_LOOPS is %d; it must lie between -1 and %d", c.ServerLoops, maxLoops)
	}
	if c.Shards > maxShards {
		bad("SHARDS is %d; more than %d only take memory", c.Shards, maxShards)
	}
	if c.RingRequests > maxRingRequests {
		bad("RING_REQUESTS is %d; it may be at most %d", c.RingRequests, maxRingRequests)
	}
	if c.KeyRate > int(time.Second) {
		bad("KEY_RATE is %d; it may be at most %d", c.KeyRate, int(time.Second))
	}
	if c.MinTime.UnixMilli() <= 0 {
		bad("MIN_TIME is %s; it must lie after 1970-01-01T00:00:00Z", c.MinTime.Format(time.RFC3339))
	}
	if need := server.MinInflightBytes(int(c.MaxBodyBytes), int(c.MaxInflatedBytes)) + server.MaxAnswerBytes(c.MaxEvents); int64(c.MaxInflightBytes) < need {
		bad("MAX_INFLIGHT_BYTES is %s; MAX_BODY_BYTES, MAX_INFLATED_BYTES and MAX_EVENTS need at least %s", c.MaxInflightBytes, size(need))
	}
	errs = append(errs, c.validateKafka()...)
	errs = append(errs, c.validateClickHouse()...)
	errs = append(errs, c.validateAges()...)
	errs = append(errs, c.validateKeys()...)
	errs = append(errs, c.validateTLS()...)
	if c.DedupIDs > 1<<31 {
		bad("DEDUP_MAX_IDS is %d; it must be at most %d", c.DedupIDs, 1<<31)
	}
	for _, l := range []struct{ name, addr string }{{"EMBEDDED_KAFKA_LISTEN", c.EmbeddedKafkaListen}, {"EMBEDDED_CLICKHOUSE_LISTEN", c.EmbeddedClickHouseListen}} {
		if l.addr == "" {
			continue
		}
		host, port, err := net.SplitHostPort(l.addr)
		if _, bad := strconv.ParseUint(port, 10, 16); bad != nil {
			err = bad
		}
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			bad("%s is %q; it must be a loopback IP and port, such as 127.0.0.1:19092", l.name, l.addr)
		}
	}
	for _, o := range c.origins() {
		if u, err := url.Parse(o); o != "*" && (err != nil || u.Scheme == "" || u.Host == "" || u.Path != "") {
			bad("CORS_ORIGINS has %q; an origin is scheme://host[:port]", o)
		}
	}
	return errors.Join(errs...)
}

// A ring's slots are allocated at the start: 64 bytes each, of every shard.
const (
	maxShards       = 256
	maxLoops        = 256
	maxRingRequests = 1 << 20
)

// splitHostPort returns the host of an address with a port to connect to.
func splitHostPort(addr string) (host string, ok bool) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return host, err == nil && n > 0 && host != ""
}

// topicName is what Kafka takes, with room for ".dead" behind it.
var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,244}$`)

func (c *config) validateKafka() (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, b := range c.KafkaBrokers {
		if _, ok := splitHostPort(b); !ok && (b == "" || strings.Contains(b, ":")) { // the client takes 9092
			bad("KAFKA_BROKERS has %q; a broker is host:port", b)
			break
		}
	}
	if !topicName.MatchString(c.KafkaTopic) {
		bad("KAFKA_TOPIC is %q; a topic has up to 244 letters, digits, dots, underscores and hyphens", c.KafkaTopic)
	}
	if c.KafkaTopic == "." || c.KafkaTopic == ".." {
		bad("KAFKA_TOPIC is %q; that is a directory to Kafka, and no topic", c.KafkaTopic)
	}
	if c.KafkaReplication != -1 && c.KafkaReplication < 1 {
		bad("KAFKA_REPLICATION is %d; it must be at least 1, or -1 for the broker's default", c.KafkaReplication)
	}
	if c.Embedded && c.KafkaPartitions > embedded.MaxPartitions {
		bad("KAFKA_PARTITIONS is %d; the embedded broker takes at most %d", c.KafkaPartitions, embedded.MaxPartitions)
	}
	return errs
}

// databaseName is less than ClickHouse takes: each byte that is no letter, digit or
// underscore is three in the names of its files.
var databaseName = regexp.MustCompile(`^[a-zA-Z0-9_. -]{1,64}$`)

// notOurs are databases of ClickHouse's own.
var notOurs = []string{"system", "information_schema", "_temporary_and_external_tables"}

func (c *config) validateClickHouse() (errs []error) {
	if c.ClickHousePort == 0 {
		errs = append(errs, errors.New("CLICKHOUSE_PORT is 0; it must be a port to connect to"))
	}
	if !databaseName.MatchString(c.ClickHouseDatabase) {
		errs = append(errs, fmt.Errorf("CLICKHOUSE_DATABASE is %q; it has up to 64 letters, digits, underscores, dots, hyphens and spaces", c.ClickHouseDatabase))
	}
	if slices.Contains(notOurs, strings.ToLower(c.ClickHouseDatabase)) {
		errs = append(errs, fmt.Errorf("CLICKHOUSE_DATABASE is %q; that database is ClickHouse's own", c.ClickHouseDatabase))
	}
	return errs
}

// validateAges checks the settings that depend on each other: a row older than
// the table's TTL vanishes when it is inserted while the rollups count it, so
// the oldest event that can reach the insert must be younger, with two days to
// spare. And the deduplication window is rebuilt from the rows: one that expires
// within it would count again after a restart, and not before.
func (c *config) validateAges() (errs []error) {
	if c.TableTTL <= 0 {
		return nil
	}
	if c.MaxAge == 0 {
		return append(errs, errors.New("TABLE_TTL needs MAX_AGE: an event older than the TTL would be counted and not kept"))
	}
	if c.KafkaRetention == 0 && !c.Embedded {
		return append(errs, errors.New("TABLE_TTL needs a KAFKA_RETENTION: an event that waits for ever in Kafka could be counted and not kept"))
	}
	wait, name := c.KafkaRetention, "KAFKA_RETENTION"
	if c.DedupIDs > 0 && c.DedupWindow > wait {
		wait, name = c.DedupWindow, "DEDUP_WINDOW"
	}
	if need := c.MaxAge + wait + 48*time.Hour; c.TableTTL < need {
		errs = append(errs, fmt.Errorf("TABLE_TTL is %s; it must be at least MAX_AGE + %s + 48h = %s", c.TableTTL, name, need))
	}
	return errs
}

// String is the effective settings, one NAME=value a line, secrets masked.
func (c config) String() string {
	var b strings.Builder
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		fmt.Fprintf(&b, "%s=%s\n", v.Type().Field(i).Tag.Get("env"), display(v.Field(i)))
	}
	return b.String()
}

func display(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case []string:
		return strings.Join(x, ",")
	case encoding.TextMarshaler:
		text, err := x.MarshalText()
		if err == nil {
			return string(text)
		}
	}
	return fmt.Sprint(v.Interface())
}
