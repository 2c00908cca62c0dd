package main

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"edge/internal/embedded"
	"edge/internal/server"
	"edge/internal/sink"
)

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
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		switch least := tag.Get("min"); {
		case least == "1" && v.Field(i).Int() < 1:
			bad("%s must be positive", tag.Get("env"))
		case least == "0" && v.Field(i).Int() < 0:
			bad("%s must not be negative", tag.Get("env"))
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
	if c.Ack == "broker" && c.Linger >= c.AckTimeout {
		bad("LINGER is %s; every request would be answered 503: it must be less than ACK_TIMEOUT, %s", c.Linger, c.AckTimeout)
	}
	if c.FlushInterval > c.StuckAfter/4 {
		bad("FLUSH_INTERVAL is %s; a sink that waits for a block would not be ready: four times that may be at most STUCK_AFTER, %s", c.FlushInterval, c.StuckAfter)
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
	if newest := time.Now().Add(c.MaxAhead); !c.MinTime.Before(newest) {
		bad("MIN_TIME is %s; every event would be refused: it must lie before now + MAX_AHEAD, %s", c.MinTime.Format(time.RFC3339), newest.UTC().Format(time.RFC3339))
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
		_, wrong := strconv.ParseUint(port, 10, 16)
		if ip := net.ParseIP(host); err != nil || wrong != nil || ip == nil || !ip.IsLoopback() {
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

// connects tells whether there may be something to connect to at a broker's address: a
// host, for which the client takes port 9092, or host:port.
func connects(addr string) bool {
	if addr != "" && !strings.Contains(addr, ":") {
		return true
	}
	host, port, err := net.SplitHostPort(addr)
	n, wrong := strconv.ParseUint(port, 10, 16)
	return err == nil && wrong == nil && n > 0 && host != ""
}

// topicName is what Kafka takes, with room for ".dead" behind it.
var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,244}$`)

func (c *config) validateKafka() (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, b := range c.KafkaBrokers {
		if !connects(b) {
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
	if _, err := netip.ParseAddr(c.ClickHouseHost); err != nil && strings.ContainsAny(c.ClickHouseHost, ":/ ") {
		errs = append(errs, fmt.Errorf("CLICKHOUSE_HOST is %q; it must be a host alone: the port is CLICKHOUSE_PORT", c.ClickHouseHost))
	}
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
	need := c.MaxAge + wait + 48*time.Hour
	if need < c.MaxAge { // more than a Duration holds
		need = math.MaxInt64
	}
	if c.TableTTL < need {
		errs = append(errs, fmt.Errorf("TABLE_TTL is %s; it must be at least MAX_AGE + %s + 48h = %s", c.TableTTL, name, need))
	}
	return errs
}
