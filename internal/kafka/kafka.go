// Package kafka is what the producer and the sink share about the log: how a
// client is made, which topics must exist, and how errors are counted. It holds
// no policy about records.
package kafka

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
)

// Options says which cluster and how to reach it.
type Options struct {
	Brokers []string
	TLS     *tls.Config    // nil: plain
	SASL    sasl.Mechanism // nil: none
	// Dial replaces TCP, for the embedded broker; nil otherwise.
	Dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	Logger *slog.Logger
	Errors *Errors
}

// Client returns a client with o's connection settings and opts.
func (o Options) Client(opts ...kgo.Opt) (*kgo.Client, error) {
	base := []kgo.Opt{
		kgo.SeedBrokers(o.Brokers...),
		kgo.ClientID("edge"),
		kgo.WithLogger(logger{o.Logger}),
		kgo.DialTimeout(5 * time.Second),
		// A broker that is gone is asked again soon: the caller's own deadline
		// says how long that may go on.
		kgo.RetryBackoffFn(Backoff),
		// A leader that moved is found again within this, not within seconds.
		kgo.MetadataMinAge(250 * time.Millisecond),
		// A batch that inflates to more than this is an attack, not events.
		kgo.MaxDecompressBatchBytes(64 << 20),
	}
	switch {
	case o.Dial != nil:
		base = append(base, kgo.Dialer(o.Dial))
	case o.TLS != nil:
		base = append(base, kgo.DialTLSConfig(o.TLS))
	}
	if o.SASL != nil {
		base = append(base, kgo.SASL(o.SASL))
	}
	if o.Errors != nil {
		base = append(base, kgo.WithHooks(o.Errors))
	}
	cl, err := kgo.NewClient(append(base, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	return cl, nil
}

// Explain adds to err what only o can tell: many brokers refuse a login by
// closing the connection, and an end of file is no reason anybody can act on.
func (o Options) Explain(err error) error {
	if o.SASL == nil || !errors.Is(err, io.EOF) {
		return err
	}
	return fmt.Errorf("%w: the broker closed the connection, as some do when user, password or mechanism (%s) is wrong", err, o.SASL.Name())
}

// Backoff is how long to wait before another try. It grows from 100 ms at the first retry to 2 s at the sixth: a broker
// restart is noticed within the two seconds a request waits, and a dead one is
// not hammered.
func Backoff(tries int) time.Duration {
	return min(50*time.Millisecond<<min(max(tries, 0), 6), 2*time.Second)
}

// AssignedID are the headers of a record whose event_id the server made. Such
// an event cannot be sent again under the same id, so no deduplication window
// needs to remember it. Shared by all records: never changed.
var AssignedID = []kgo.RecordHeader{{Key: "edge-id", Value: []byte("assigned")}}

// HasAssignedID reports whether r carries AssignedID.
func HasAssignedID(r *kgo.Record) bool {
	for i := range r.Headers {
		if r.Headers[i].Key == AssignedID[0].Key {
			return string(r.Headers[i].Value) == string(AssignedID[0].Value)
		}
	}
	return false
}

// Topic is a topic that must exist.
type Topic struct {
	Name       string
	Partitions int32
	Replicas   int16             // -1: the broker's default
	Config     map[string]string // applied only when the topic is created
}

// EnsureTopics creates what is missing. An existing topic is left as it is, whatever
// its partition count, and needs no right to create one. May be called by many
// processes at once.
func EnsureTopics(ctx context.Context, cl *kgo.Client, topics ...Topic) error {
	adm := kadm.NewClient(cl)
	names := make([]string, len(topics))
	for i, t := range topics {
		names[i] = t.Name
	}
	details, err := adm.ListTopics(ctx, names...)
	if err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	created := false
	for _, t := range topics {
		if details.Has(t.Name) {
			continue
		}
		created = true
		config := make(map[string]*string, len(t.Config))
		for k, v := range t.Config {
			config[k] = &v
		}
		resp, err := adm.CreateTopic(ctx, t.Partitions, t.Replicas, config, t.Name)
		if err == nil {
			err = resp.Err
		}
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("create topic %s: %w", t.Name, err)
		}
	}
	// A new topic reaches every broker, and the client's cache, a moment later.
	for tries := 1; ; tries++ {
		err := CheckTopics(ctx, cl, names...)
		if err == nil || !created || tries > 5 {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(Backoff(tries)):
		}
	}
}

// CheckTopics asks the cluster: a topic that is not there, or has no leader to write
// to, is an error.
func CheckTopics(ctx context.Context, cl *kgo.Client, topics ...string) error {
	details, err := kadm.NewClient(cl).ListTopics(ctx, topics...)
	if err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	for _, name := range topics {
		d := details[name]
		if d.Err != nil {
			return fmt.Errorf("topic %s: %w", name, d.Err)
		}
		if len(d.Partitions) == 0 {
			return fmt.Errorf("topic %s: %w", name, kerr.UnknownTopicOrPartition)
		}
		for _, p := range d.Partitions.Sorted() {
			if p.Err != nil || p.Leader < 0 {
				return fmt.Errorf("topic %s, partition %d: %w", name, p.Partition, cmp.Or(p.Err, errNoLeader))
			}
		}
	}
	return nil
}

var errNoLeader = errors.New("has no leader")

// logger hands kgo's log to slog. Its INFO is per-connection chatter, hence
// one level down.
type logger struct{ l *slog.Logger }

func (l logger) Level() kgo.LogLevel {
	switch ctx := context.Background(); {
	case l.l.Enabled(ctx, slog.LevelDebug):
		return kgo.LogLevelInfo
	default:
		return kgo.LogLevelWarn
	}
}

func (l logger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	to := slog.LevelDebug
	switch level {
	case kgo.LogLevelError:
		to = slog.LevelError
	case kgo.LogLevelWarn:
		to = slog.LevelWarn
	}
	for i, v := range keyvals { // JSON would have nanoseconds without a unit
		if d, ok := v.(time.Duration); ok {
			keyvals[i] = d.String()
		}
	}
	l.l.Log(context.Background(), to, msg, keyvals...)
}
