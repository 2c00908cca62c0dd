package sink

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/codec"
	"edge/internal/embedded"
)

var netDial = (&net.Dialer{Timeout: 5 * time.Second}).DialContext

func TestEveryRecordIsStoredOnce(t *testing.T) {
	l := newLab(t, 3)
	s := l.start()
	for range 20 {
		l.produce(137)
	}
	l.settled()
	l.exact()
	s.stop()
	if s.err != nil {
		t.Errorf("Run returned %v; want nil", s.err)
	}
	// A second sink goes on where the first stopped.
	l.start()
	l.produce(100)
	l.settled()
	l.exact()
}

// TestFewRecordsAreFewFetches sends records one after the other, each as soon as the
// log has the one before.
func TestFewRecordsAreFewFetches(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	var fetches atomic.Int64
	l.cluster.ControlKey(kmsg.Fetch.Int16(), func(kmsg.Request) (kmsg.Response, error, bool) {
		fetches.Add(1)
		return nil, nil, false
	})
	const interval = 300 * time.Millisecond
	l.start(func(c *Config) { c.FlushInterval = interval })
	l.produce(1)
	l.settled() // the next flight is due in 300 ms
	const records = 100
	before, began := fetches.Load(), time.Now()
	for range records {
		l.produce(1)
	}
	l.settled()
	l.exact()
	took := time.Since(began)
	if n, most := fetches.Load()-before, 6*int64(took/interval+2); n > most {
		t.Errorf("%d records in %s were fetched in %d requests; want at most %d, six a flight", records, took, n, most)
	}
}

// TestInsertsShareAConnection breaks the connection that waits for the next
// insert, then one of which the server has read the INSERT and answers no more.
// No row was sent, so the insert goes out on another at once.
func TestInsertsShareAConnection(t *testing.T) {
	l := newLab(t, 1)
	s := l.prepare()
	var mu sync.Mutex
	inserts := make(map[*wireConn]int)
	unanswered := 0
	s.click.watch = func(c *wireConn, p []byte, sent bool) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case sent && bytes.Contains(p, []byte(needle)):
			inserts[c]++
		case sent && unanswered > 0 && bytes.Contains(p, []byte("INSERT INTO")):
			unanswered--
			c.deaf = true
		}
	}
	s.run()
	store := func() {
		l.produce(10, func(_ int, ev *codec.Event) { ev.Metadata = []byte(`{"x":"` + needle + `"}`) })
		l.settled()
	}
	store()
	store()
	s.click.drop()
	store()
	store()
	mu.Lock()
	unanswered = 1
	mu.Unlock()
	store()
	store()
	l.exact()
	mu.Lock()
	defer mu.Unlock()
	if len(inserts) != 3 || unanswered != 0 || s.sink.stats.retried.Load() != 0 {
		t.Errorf("inserts went out on %d connections, %s; want three connections and no retry", len(inserts), s.sink.outcomes())
	}
}

// TestEmbeddedBroker runs the sink on the broker of a single-machine edge, with
// its restart in between: offsets and plans come back from its disk.
func TestEmbeddedBroker(t *testing.T) {
	l := newLab(t, 2)
	dir := t.TempDir()
	for range 2 {
		broker, err := embedded.StartBroker(t.Context(), embedded.BrokerConfig{Dir: dir, Topics: map[string]int32{topic: 2, letter: 1}, Logger: l.log("broker")})
		if err != nil {
			t.Fatal(err)
		}
		opts := l.kafka
		opts.Brokers, opts.Dial = broker.Seeds(), broker.Dial
		l.producer.Close()
		if l.producer, err = opts.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DefaultProduceTopic(topic)); err != nil {
			t.Fatal(err)
		}
		s := l.start(func(c *Config) { c.Kafka = opts })
		l.produce(200, twoMonths)
		eventually(t, "everything is committed", func() error {
			got, err := kadm.NewClient(l.producer).FetchOffsets(t.Context(), group)
			if err != nil {
				return err
			}
			for _, p := range broker.Partitions(topic) {
				if o, ok := got.Lookup(topic, p.ID); !ok || o.At != p.HighWatermark || o.Metadata != "" {
					return fmt.Errorf("partition %d at %+v, log ends at %d", p.ID, o, p.HighWatermark)
				}
			}
			return nil
		})
		l.exact()
		s.stop()
		l.producer.Close()
		if err := broker.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}
