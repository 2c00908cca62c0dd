package embedded

import (
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// BrokerConfig describes an embedded broker. Only Dir is required; the zero
// value of every other field is the safe choice.
type BrokerConfig struct {
	// Dir is the absolute data directory, which no other process may have while the broker
	// runs. The broker itself keeps to Dir/kafka.
	Dir string
	// Listen opens a TCP port on a loopback IP, for kcat and rpk.
	Listen string
	// Topics are created at start with this many partitions when missing. An
	// existing topic keeps its count: a key must not move.
	Topics map[string]int32
	// Retention says per topic what Trim may remove; topics without an entry
	// are kept whole.
	Retention map[string]Retention

	// LookOnly keeps the record of how the previous run ended, so that the next process to
	// serve the log still finds it. It is for a process that only reads the log and then
	// closes the broker (edge verify).
	LookOnly bool

	// NoSync acknowledges records before they are on disk: a process kill
	// loses nothing, a power cut may lose acknowledged records.
	NoSync bool
	// MinFree is the free space in bytes below which producers are turned away;
	// commits still have an eighth of it, and who else is on the disk may need it to
	// store what is in the log. 0 means 64 MiB, negative none.
	MinFree int64
	// SegmentBytes is the grain of Trim: only whole segment files go away.
	// A start reads a segment at a time, so it bounds memory as well. 0 means 32 MiB.
	SegmentBytes int64
	// MaxMessageBytes bounds one record batch. 0 means 16 MiB.
	MaxMessageBytes int
	// MaxRequestBytes bounds one request. 0 means 100 MiB, the most a franz-go
	// client sends unless told otherwise.
	MaxRequestBytes int

	Logger *slog.Logger
}

// trimEvery is how often the janitor looks. Trimming frees whole segments, so
// looking more often would find nothing more.
const trimEvery = time.Minute

func (c BrokerConfig) withDefaults() (BrokerConfig, error) {
	if !filepath.IsAbs(c.Dir) {
		return c, fmt.Errorf("data directory %q must be an absolute path", c.Dir)
	}
	for topic, n := range c.Topics {
		if n < 1 || n > MaxPartitions {
			return c, fmt.Errorf("topic %q: %d partitions, need 1 to %d", topic, n, MaxPartitions)
		}
	}
	for topic, r := range c.Retention {
		if r.Age < 0 {
			return c, fmt.Errorf("topic %q: retention %v must not be negative", topic, r.Age)
		}
	}
	if c.MinFree == 0 {
		c.MinFree = 64 << 20
	}
	if c.SegmentBytes == 0 {
		c.SegmentBytes = 32 << 20
	}
	if c.MaxMessageBytes == 0 {
		c.MaxMessageBytes = 16 << 20
	}
	if c.MaxRequestBytes == 0 {
		c.MaxRequestBytes = 100 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

func (b *Broker) clusterOpts() []kfake.Opt {
	opts := []kfake.Opt{
		kfake.NumBrokers(1), // one goroutine serves them all: more would add nothing
		kfake.ClusterID(b.id.ClusterID),
		kfake.DataDir(b.dir),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return b.door, nil }),
		kfake.WithLogger(b.log),
		kfake.MaxVersions(versions()),
		kfake.GroupMinSessionTimeout(time.Second),
		kfake.BrokerConfigs(map[string]string{
			"message.max.bytes": strconv.Itoa(b.cfg.MaxMessageBytes),
			"log.segment.bytes": strconv.FormatInt(b.cfg.SegmentBytes, 10),
			// The default forgets a group's commits after a week without a
			// member, and a box may be off for longer. A century in
			// nanoseconds still fits the 64 bits kfake multiplies it into.
			"offsets.retention.minutes": strconv.Itoa(100 * 365 * 24 * 60),
		}),
	}
	if !b.cfg.NoSync {
		opts = append(opts, kfake.SyncWrites())
	}
	return opts
}
