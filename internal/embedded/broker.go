package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Broker is a running embedded broker.
type Broker struct {
	cfg    BrokerConfig
	dir    string   // Dir/kafka
	lock   *os.File // of Dir
	door   *door
	log    *kfakeLog
	disk   *diskWatch
	client *kgo.Client
	admin  *kadm.Client
	stats  stats

	uncleanStart bool // the previous run ended without Close

	// mu guards cluster's lifetime and id: kfake blocks for ever when it is
	// asked anything after Close.
	mu      sync.RWMutex
	closed  bool
	cluster *kfake.Cluster
	id      identity
	foundID identity // as the run before left it

	stop       context.CancelFunc
	background sync.WaitGroup
	closeOnce  sync.Once
	closeDone  chan struct{}
	closeErr   error
}

// StartBroker opens the log in cfg.Dir and serves it to Dial. Call Check before
// anything produces or consumes, then Open if cfg.Listen is set.
func StartBroker(ctx context.Context, cfg BrokerConfig) (_ *Broker, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, fmt.Errorf("start the embedded broker: %w", err)
	}
	b := &Broker{cfg: cfg, dir: filepath.Join(cfg.Dir, "kafka"), closeDone: make(chan struct{})}
	b.log = &kfakeLog{log: cfg.Logger, dir: b.dir, stats: &b.stats}
	if err := b.open(ctx); err != nil {
		b.abandon()
		return nil, fmt.Errorf("start the embedded broker: %w", err)
	}
	return b, nil
}

// open is the start in order; each step relies on the ones before.
func (b *Broker) open(ctx context.Context) (err error) {
	if b.lock, err = lockDir(b.cfg.Dir, lockWait); err != nil {
		return err
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return fmt.Errorf("create the log directory: %w", err)
	}
	if err := b.loadIdentity(); err != nil {
		return err
	}
	if err := prepareDir(b.dir); err != nil {
		return err
	}
	if err := b.recover(); err != nil {
		return err
	}
	if b.door, err = openDoor(b.cfg.Listen, b.cfg.MaxRequestBytes, b.cfg.Logger); err != nil {
		return err
	}
	if b.cluster, err = kfake.NewCluster(b.clusterOpts()...); err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	b.disk = newDiskWatch(b)
	b.log.disk.Store(b.disk)
	b.cluster.Fault(badTopics())
	if err := b.openTopics(); err != nil {
		return err
	}
	if err := syncDir(b.dir); err != nil {
		return fmt.Errorf("sync the log directory: %w", err)
	}
	b.client, err = kgo.NewClient(kgo.SeedBrokers(b.Seeds()...), kgo.Dialer(b.Dial), kgo.ClientID("edge-embedded"))
	if err != nil {
		return fmt.Errorf("make the broker's own client: %w", err)
	}
	b.admin = kadm.NewClient(b.client)
	if err := ctx.Err(); err != nil {
		return err
	}
	b.startBackground()
	return nil
}

// loadIdentity reads how the last run ended and marks this one as running: a
// process that dies from here on leaves Clean false behind.
func (b *Broker) loadIdentity() error {
	id, found, err := loadIdentity(b.dir)
	if err != nil {
		return err
	}
	b.foundID = id
	boot := bootID()
	b.uncleanStart = found && !id.Clean
	newBoot := b.uncleanStart && id.BootID != boot
	if newBoot {
		b.stats.uncleanHostBoots.Inc()
	}
	if b.uncleanStart {
		b.stats.uncleanStarts.Inc()
		b.cfg.Logger.Warn("the run before this one was not stopped in order", "machine_restarted", newBoot)
	}
	id.Unscanned = id.Unscanned || newBoot
	id.Clean, id.BootID = false, boot
	b.id = id
	return id.save(b.dir)
}

func (b *Broker) recover() error {
	r, err := recoverLog(b.dir)
	if err != nil {
		return err
	}
	b.stats.cutBytes.Add(uint64(r.cut))
	b.stats.holes.Add(uint64(len(r.holes)))
	if r.cut > 0 {
		b.cfg.Logger.Warn("cut torn batches off the embedded log", "bytes", r.cut, "after_unclean_run", b.uncleanStart)
	}
	for _, h := range r.holes {
		b.cfg.Logger.Error("offsets are missing inside the embedded log", "topic", h.topic, "partition", h.partition, "first", h.first, "last", h.last)
	}
	return nil
}

func (b *Broker) openTopics() error {
	for topic, n := range b.cfg.Topics {
		info := b.cluster.TopicInfo(topic)
		if info == nil {
			err := b.makePartitionDirs(topic, n)
			if err == nil {
				err = b.cluster.CreateTopic(topic, n, nil)
			}
			if err != nil {
				return fmt.Errorf("create topic %s: %w", topic, err)
			}
			continue
		}
		for _, name := range []string{"retention.ms", "retention.bytes"} {
			if v := info.Configs[name]; v != nil {
				return fmt.Errorf("topic %s has %s=%s: the log would forget its offsets when it empties a partition; use the broker's Retention", topic, name, *v)
			}
		}
		if have := len(b.cluster.PartitionInfos(topic)); have != int(n) {
			b.cfg.Logger.Warn("topic keeps its partition count", "topic", topic, "partitions", have, "configured", n)
		}
	}
	return nil
}

// makePartitionDirs makes the directories that kfake would make at the first
// record, so that their names are on disk before a record can be.
func (b *Broker) makePartitionDirs(topic string, n int32) error {
	for p := range n {
		if err := os.MkdirAll(b.partitionDir(topic, p), 0o700); err != nil {
			return err
		}
	}
	return syncDir(filepath.Join(b.dir, "partitions"))
}

func (b *Broker) partitionDir(topic string, partition int32) string {
	return filepath.Join(b.dir, "partitions", fmt.Sprintf("%s-%d", url.PathEscape(topic), partition))
}

func (b *Broker) startBackground() {
	ctx, stop := context.WithCancel(context.Background())
	b.stop = stop
	b.background.Go(func() { every(ctx, diskEvery, b.disk.look) })
	// On its own goroutine: an fsync on a dying disk can take minutes.
	b.background.Go(func() { every(ctx, verifyEvery, b.disk.verify) })
	if len(b.cfg.Retention) > 0 {
		b.background.Go(func() {
			every(ctx, trimEvery, func() {
				if err := b.Trim(ctx); err != nil && ctx.Err() == nil {
					b.cfg.Logger.Error("trim the embedded log", "err", err)
				}
			})
		})
	}
}

func every(ctx context.Context, d time.Duration, f func()) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			f()
		}
	}
}

// Dial connects to the broker from inside the process, for kgo.Dialer. It
// ignores network and addr: there is one broker and no address to it.
func (b *Broker) Dial(ctx context.Context, _, _ string) (net.Conn, error) { return b.door.dial(ctx) }

// Open lets clients of the TCP port in. The port is bound by StartBroker, so
// that a conflict shows early, but a record produced before Check has run could
// hide a lost tail from it: until Open, connections wait in the backlog.
func (b *Broker) Open() { b.door.open() }

// Seeds returns the advertised address, for kgo.SeedBrokers. It can be
// reached from outside the process only when Listen was set.
func (b *Broker) Seeds() []string { return []string{b.door.Addr().String()} }

// Close writes the broker's state, marks the shutdown as clean and gives the
// lock back. When ctx ends first the work goes on under the lock, and the next start
// counts as unclean if it does not finish. Clients that still dial get net.ErrClosed.
func (b *Broker) Close(ctx context.Context) error {
	b.closeOnce.Do(func() {
		go func() {
			defer close(b.closeDone)
			b.closeErr = b.shutDown()
		}()
	})
	select {
	case <-b.closeDone:
		return b.closeErr
	case <-ctx.Done():
		return fmt.Errorf("close the embedded broker: %w", ctx.Err())
	}
}

func (b *Broker) shutDown() error {
	b.stop()
	b.background.Wait()
	b.client.Close()

	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.cluster.Close()
	b.disk.close()

	err := b.log.saveError()
	if failed := b.disk.broken.Load(); err == nil && failed != nil {
		err = *failed
	}
	if err == nil {
		err = syncDir(b.dir)
	}
	if err == nil {
		if b.id.Clean = true; b.cfg.LookOnly {
			b.id = b.foundID
		}
		err = b.id.save(b.dir)
	}
	if err = errors.Join(err, b.lock.Close()); err != nil {
		return fmt.Errorf("close the embedded broker: %w", err)
	}
	return nil
}

// abandon undoes a start that failed half-way; the state on disk stays as a
// crash would leave it.
func (b *Broker) abandon() {
	if b.client != nil {
		b.client.Close()
	}
	if b.cluster != nil {
		b.cluster.Close()
	}
	if b.door != nil {
		b.door.Close()
	}
	if b.lock != nil {
		b.lock.Close()
	}
}
