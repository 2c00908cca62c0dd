package main

import (
	"encoding"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// config is every setting. A field's tags are its name, its default, its line in the
// README, which a test compares with this struct, and perhaps min: 1 if it must be positive,
// 0 if it must not be negative.
type config struct {
	Roles    []string `env:"ROLES" envDefault:"ingest,sink,query" doc:"what this process does: any of ingest, sink, query"`
	Embedded bool     `env:"EMBEDDED" envDefault:"false" doc:"run the broker and the ClickHouse engine inside, on disk under DATA_DIR"`
	DataDir  string   `env:"DATA_DIR" envDefault:"./data" doc:"where embedded mode keeps everything"`

	ServerHost         string        `env:"SERVER_HOST" envDefault:"" doc:"address the public listener binds to; empty is all"`
	ServerPort         uint16        `env:"SERVER_PORT" envDefault:"8080" doc:"public HTTP port"`
	ServerReadTimeout  time.Duration `env:"SERVER_READ_TIMEOUT" envDefault:"5s" min:"1" doc:"one whole request, from its first byte; also a new connection up to its first byte"`
	ServerWriteTimeout time.Duration `env:"SERVER_WRITE_TIMEOUT" envDefault:"10s" min:"1" doc:"one answer"`
	ServerIdleTimeout  time.Duration `env:"SERVER_IDLE_TIMEOUT" envDefault:"2m" min:"1" doc:"between two requests on a connection"`
	ServerLoops        int           `env:"SERVER_LOOPS" envDefault:"0" doc:"event loops that answer small posts; 0 is one per core, -1 none: each connection has a goroutine, as it always has over TLS"`
	ServerTLSCert      string        `env:"SERVER_TLS_CERT" envDefault:"" doc:"file of the public listener's certificate and chain, PEM; with it the listener speaks TLS only"`
	ServerTLSKey       string        `env:"SERVER_TLS_KEY" envDefault:"" doc:"file of its private key, PEM; both are read again on SIGHUP and when they change"`
	AdminHost          string        `env:"ADMIN_HOST" envDefault:"127.0.0.1" doc:"address the admin listener binds to; it has no authentication"`
	AdminPort          uint16        `env:"ADMIN_PORT" envDefault:"9091" doc:"Prometheus metrics, pprof and log level"`

	MaxEventBytes    size `env:"MAX_EVENT_BYTES" envDefault:"64KiB" min:"1" doc:"one event; larger is 413, and in bulk an error of that event"`
	MaxFieldBytes    size `env:"MAX_FIELD_BYTES" envDefault:"1KiB" min:"1" doc:"event_name, user_id, campaign_id, event_id and each tag; longer is 400"`
	MaxEvents        int  `env:"MAX_EVENTS" envDefault:"10000" min:"1" doc:"events in one bulk request; more is 413"`
	MaxBodyBytes     size `env:"MAX_BODY_BYTES" envDefault:"10MiB" min:"1" doc:"one bulk body as sent; larger is 413"`
	MaxInflatedBytes size `env:"MAX_INFLATED_BYTES" envDefault:"32MiB" min:"1" doc:"one body after decompression; larger is 413"`
	MaxInflightBytes size `env:"MAX_INFLIGHT_BYTES" envDefault:"256MiB" min:"1" doc:"all request bodies and long answers in memory at once; beyond it 429"`
	MaxConns         int  `env:"MAX_CONNS" envDefault:"32768" min:"1" doc:"open connections; beyond it 503"`
	MaxConnsPerIP    int  `env:"MAX_CONNS_PER_IP" envDefault:"0" min:"0" doc:"open connections of one client address; 0 is no limit (right behind a proxy)"`

	MinTime  time.Time     `env:"MIN_TIME" envDefault:"2000-01-01T00:00:00Z" doc:"oldest timestamp an event may carry; it lies before now + MAX_AHEAD"`
	MaxAge   time.Duration `env:"MAX_AGE" envDefault:"0s" min:"0" doc:"oldest an event may be on arrival; 0 leaves it to MIN_TIME"`
	MaxAhead time.Duration `env:"MAX_AHEAD" envDefault:"24h" min:"1" doc:"how far in the future a timestamp may be"`

	WriteKeys   secrets  `env:"WRITE_KEYS" envDefault:"" doc:"keys that may POST events, each a key or sha256:<hex of it>; without any, and no KEYS_FILE, everyone may"`
	ReadKeys    secrets  `env:"READ_KEYS" envDefault:"" doc:"keys that may GET /metrics, in the same way"`
	KeysFile    string   `env:"KEYS_FILE" envDefault:"" doc:"file of more keys, made by edge key new, read again on SIGHUP and when it changes; with it POST and GET /metrics both need a key"`
	ReplayKey   secret   `env:"REPLAY_KEY" envDefault:"" doc:"key that edge replay sends; empty is the first of WRITE_KEYS that is written out"`
	KeyRate     int      `env:"KEY_RATE" envDefault:"0" min:"0" doc:"events a second one write key may send; beyond it 429; 0 is no limit"`
	CORSOrigins []string `env:"CORS_ORIGINS" envDefault:"*" doc:"origins a browser may call from; * is any, none is none"`

	Ack              string        `env:"ACK" envDefault:"broker" doc:"broker: 202 means acknowledged by the broker; memory: 202 means taken into memory, which a kill loses"`
	RetryAfter       time.Duration `env:"RETRY_AFTER" envDefault:"1s" min:"1" doc:"what 429 and 503 ask clients to wait, in whole seconds"`
	AckTimeout       time.Duration `env:"ACK_TIMEOUT" envDefault:"2s" min:"1" doc:"how long a request waits for the broker before 503"`
	Shards           int           `env:"SHARDS" envDefault:"0" min:"0" doc:"rings between HTTP and Kafka; 0 is one per core; small requests share the first while it keeps up"`
	RingRequests     int           `env:"RING_REQUESTS" envDefault:"16384" min:"1" doc:"requests one ring holds; beyond it 429"`
	RingBytes        size          `env:"RING_BYTES" envDefault:"32MiB" min:"1" doc:"bytes one ring holds; beyond it 429"`
	MaxInflight      int           `env:"MAX_INFLIGHT_RECORDS" envDefault:"200000" min:"1" doc:"records in Kafka batches, sent or not, that are not acknowledged; each shard has an equal part"`
	MaxBufferedBytes size          `env:"MAX_BUFFERED_BYTES" envDefault:"64MiB" min:"1" doc:"bytes of those records; each shard has an equal part"`
	Linger           time.Duration `env:"LINGER" envDefault:"0s" min:"0" doc:"how long to wait for a fuller Kafka batch"`

	KafkaBrokers     []string      `env:"KAFKA_BROKERS" envDefault:"localhost:19092" doc:"seed brokers, host:port"`
	KafkaTopic       string        `env:"KAFKA_TOPIC" envDefault:"events" doc:"topic of the events; its dead letters go to <topic>.dead"`
	KafkaPartitions  int32         `env:"KAFKA_PARTITIONS" envDefault:"0" min:"0" doc:"partitions when the topic is created, fixed from then on; 0 is 8, and 1 embedded, where each costs two fsyncs"`
	KafkaReplication int16         `env:"KAFKA_REPLICATION" envDefault:"-1" doc:"replicas when the topic is created; -1 is the broker's default"`
	KafkaRetention   time.Duration `env:"KAFKA_RETENTION" envDefault:"168h" min:"0" doc:"how long the topic keeps events, stored or not, when it is created; 0 is for ever"`
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
	ClickHouseConns    int           `env:"CLICKHOUSE_CONNS" envDefault:"16" min:"1" doc:"connections for metrics queries; an answer takes one or two as a rule, and up to four"`
	ClickHouseCompress bool          `env:"CLICKHOUSE_COMPRESS" envDefault:"true" doc:"LZ4 on the way to ClickHouse: less network, for a third of the sink's processor time; metrics queries go without; false when both are on one machine"`
	TableTTL           time.Duration `env:"TABLE_TTL" envDefault:"0s" min:"0" doc:"how long rows are kept by their timestamp; 0 is for ever"`

	FlushInterval time.Duration `env:"FLUSH_INTERVAL" envDefault:"100ms" min:"1" doc:"shortest time between inserts of blocks that are not full; four times that if a block fills meanwhile"`
	FlushRows     int           `env:"FLUSH_ROWS" envDefault:"100000" min:"1" doc:"rows that fill a block"`
	FlushBytes    size          `env:"FLUSH_BYTES" envDefault:"64MiB" min:"1" doc:"bytes that fill a block"`
	FlushInserts  int           `env:"FLUSH_INSERTS" envDefault:"2" min:"1" doc:"full blocks that are inserted at the same time"`
	InsertTimeout time.Duration `env:"INSERT_TIMEOUT" envDefault:"30s" doc:"one insert"`
	DedupIDs      int64         `env:"DEDUP_MAX_IDS" envDefault:"4000000" min:"0" doc:"deduplication window: records of the topic within which a repeated event_id counts once; 0 turns it off"`
	DedupWindow   time.Duration `env:"DEDUP_WINDOW" envDefault:"24h" min:"0" doc:"deduplication window: time within which it does"`
	StuckAfter    time.Duration `env:"STUCK_AFTER" envDefault:"60s" min:"1" doc:"a sink that has something to store and stores nothing for this long is not ready"`

	QueryTimeout time.Duration `env:"QUERY_TIMEOUT" envDefault:"10s" doc:"one metrics query"`
	QueryKeep    time.Duration `env:"QUERY_KEEP" envDefault:"0s" min:"0" doc:"how old an answer may be for who asks the same again, range included, at most 1m; 0 is no older than the question"`
	QueryStates  size          `env:"QUERY_STATES" envDefault:"32MiB" doc:"what past buckets held of users, kept for queries that need them again, if their parts and counts are the same; 0 keeps none"`

	EmbeddedSync             bool          `env:"EMBEDDED_SYNC" envDefault:"true" doc:"embedded broker: fsync before acknowledging; false survives a kill but not a power cut"`
	EmbeddedRetention        time.Duration `env:"EMBEDDED_RETENTION" envDefault:"1h" min:"0" doc:"embedded broker: how long it keeps events that are stored"`
	EmbeddedKafkaListen      string        `env:"EMBEDDED_KAFKA_LISTEN" envDefault:"" doc:"loopback host:port that opens the embedded broker to kcat and rpk; empty keeps it closed"`
	EmbeddedClickHouseListen string        `env:"EMBEDDED_CLICKHOUSE_LISTEN" envDefault:"" doc:"loopback host:port that opens the embedded engine to clickhouse-client; empty keeps it closed"`

	PrestopDelay    time.Duration `env:"PRESTOP_DELAY" envDefault:"0s" min:"0" doc:"how long to keep serving after a stop signal, with /ready saying 503 and every answer ending its connection"`
	ShutdownTimeout time.Duration `env:"SHUTDOWN_TIMEOUT" envDefault:"25s" min:"1" doc:"for the whole stop; what is not done by then is left to the next start"`
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

// overruled names the settings of other machines that somebody has given and that EMBEDDED
// makes nothing of.
func (c *config) overruled() []string {
	standard, err := parseConfig(map[string]string{})
	if err != nil {
		panic("BUG: a default does not parse: " + err.Error())
	}
	var names []string
	if !slices.Equal(c.KafkaBrokers, standard.KafkaBrokers) {
		names = append(names, "KAFKA_BROKERS")
	}
	if c.ClickHouseHost != standard.ClickHouseHost {
		names = append(names, "CLICKHOUSE_HOST")
	}
	return names
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
	for _, list := range [][]string{c.Roles, c.KafkaBrokers, c.CORSOrigins, c.WriteKeys, c.ReadKeys} {
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
	if what := whatItMustBe(f.Type); what != "" {
		return fmt.Errorf("%s is %q; it must be %s", name, environ[name], what)
	}
	return fmt.Errorf("%s=%q: %w", name, environ[name], parse.Err)
}

// whatItMustBe is what the parser of a setting takes, which its errors say in Go's words;
// empty for what has words of its own.
func whatItMustBe(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "a duration such as 500ms, 10s or 24h"
	case reflect.TypeFor[time.Time]():
		return "a time such as 2000-01-01T00:00:00Z"
	case reflect.TypeFor[size]():
		return ""
	}
	switch z := reflect.Zero(t); {
	case z.Kind() == reflect.Bool:
		return "true or false"
	case z.CanUint():
		return fmt.Sprintf("a whole number from 0 to %d", uint64(1)<<t.Bits()-1)
	case z.CanInt():
		return fmt.Sprintf("a whole number, at most %d", uint64(1)<<(t.Bits()-1)-1)
	}
	return ""
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
