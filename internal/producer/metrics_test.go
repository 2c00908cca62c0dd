package producer

import (
	"bytes"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/logging"
	"edge/internal/stat"
)

func TestMetricsAddUp(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		set := new(stat.Set)
		s.p.Describe(set)
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(set)

		s.expect(nil, ids("a", 10)...)
		refusing := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.InvalidRecord, Count: -1})
		s.expect(kerr.InvalidRecord, ids("b", 20)...)
		refusing.Remove()
		late := s.stall()
		s.expect(ErrTimeout, ids("c", 30)...)
		late()
		s.pass(s.p.cfg.AckTimeout)

		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		problems, err := promlint.NewWithMetricFamilies(families).Lint()
		if err != nil || len(problems) > 0 {
			t.Errorf("promlint: %v %v", problems, err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.Metric {
				name := f.GetName()
				for _, l := range m.Label {
					name += " " + l.GetValue()
				}
				switch {
				case m.Counter != nil:
					got[name] = m.Counter.GetValue()
				case m.Gauge != nil:
					got[name] = m.Gauge.GetValue()
				case m.Histogram != nil:
					got[name] = float64(m.Histogram.GetSampleCount())
				}
			}
		}
		for name, want := range map[string]float64{
			"edge_produce_records_total ok":       40,
			"edge_produce_records_total error":    20,
			"edge_produce_records_total orphaned": 30, // of those above
			"edge_produce_seconds":                3,
			"edge_produce_inflight_records":       0,
			"edge_produce_buffered_bytes":         0,
			"edge_produce_held_bytes":             0,
			"edge_ring_capacity 0":                16,
			"edge_ring_capacity 1":                16,
			"edge_ring_used 0":                    0,
			"edge_ring_used 1":                    0,
			"edge_ring_full_total 0":              0,
			"edge_ring_full_total 1":              0,
		} {
			if v, ok := got[name]; !ok || v != want {
				t.Errorf("%s: got %v (exported: %t); want %v", name, v, ok, want)
			}
			delete(got, name)
		}
		if len(got) > 0 {
			t.Errorf("not expected: %v", got)
		}
	})
}

// Requests that time out because the broker turns their batch away time and again get no
// reason; the log and the metrics have it.
func TestReasonOfATimeout(t *testing.T) {
	f := func(key kmsg.Key, op string, code *kerr.Error) {
		t.Helper()
		var log bytes.Buffer
		simulate(t, func(c *Config) { c.Kafka.Logger = slog.New(slog.NewTextHandler(&log, nil)) }, func(s *sim) {
			if key != kmsg.InitProducerID {
				s.expect(nil, "warm")
			}
			refusing := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{key}, Err: code, Count: -1})
			s.expect(ErrTimeout, "event")
			synctest.Wait()
			if said := log.String(); !strings.Contains(said, "level=WARN") || !strings.Contains(said, code.Message) {
				t.Errorf("%s: the log says %q", code.Message, said)
			}
			set, counted := new(stat.Set), 0.0
			s.errs.Describe(set)
			registry := prometheus.NewPedanticRegistry()
			registry.MustRegister(set)
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range families[0].Metric {
				if m.Label[0].GetValue() == code.Message && m.Label[1].GetValue() == op {
					counted = m.Counter.GetValue()
				}
			}
			if tries := float64(refusing.Hits()); counted != tries {
				t.Errorf("%s: %v of %v answers to %s were counted", code.Message, counted, tries, op)
			}
			refusing.Remove()
			s.pass(time.Minute)
			log.Reset()
			if s.expect(nil, "after"); log.Len() > 0 {
				t.Errorf("%s: it is over, and the log says %q", code.Message, log.String())
			}
		})
	}
	f(kmsg.Produce, "produce", kerr.NotEnoughReplicas)
	f(kmsg.Produce, "produce", kerr.NotEnoughReplicasAfterAppend)
	f(kmsg.Produce, "produce", kerr.KafkaStorageError)
	f(kmsg.InitProducerID, "InitProducerID", kerr.ClusterAuthorizationFailed)
}

// With AckMemory the log is the only one to hear that events are lost after a 202, and how
// many.
func TestLossAfterAcceptedIsSaid(t *testing.T) {
	var log bytes.Buffer
	simulate(t, func(c *Config) {
		c.Ack, c.Kafka.Logger = AckMemory, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))
	}, func(s *sim) {
		kept := s.expect(nil, "warm")
		s.pass(time.Second)
		denied := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.TopicAuthorizationFailed, Count: -1})
		s.expect(nil, ids("event", 300)...) // more than batches hold
		s.pass(time.Minute)
		denied.Remove()
		kept = append(kept, s.expect(nil, "after")...)
		s.pass(time.Second)
		s.wantLog(kept)
		said := 0
		for line := range strings.Lines(log.String()) {
			_, n, _ := strings.Cut(line, " events=")
			n, _, _ = strings.Cut(n, " ")
			events, err := strconv.Atoi(n)
			if err != nil || !strings.Contains(line, kerr.TopicAuthorizationFailed.Message) {
				t.Errorf("not expected: %s", line)
			}
			said += events
		}
		if said != 300 {
			t.Errorf("300 events were lost, the log says %d", said)
		}
	})
}

// Equal lines are held back, each with its number: the next that is written has all of them, and
// so has the one that says that it is over.
func TestLossesHeldBackAreCounted(t *testing.T) {
	var log bytes.Buffer
	simulate(t, func(c *Config) {
		c.Ack, c.Kafka.Logger = AckMemory, slog.New(logging.New(slog.NewTextHandler(&log, nil), logging.Period))
	}, func(s *sim) {
		s.expect(nil, "warm")
		s.pass(time.Second)
		denied := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.TopicAuthorizationFailed, Count: -1})
		s.expect(nil, ids("event", 300)...)
		s.pass(time.Minute)
		last := func() string {
			lines := strings.Split(strings.TrimSpace(log.String()), "\n")
			return lines[len(lines)-1] + "\n"
		}
		if !strings.Contains(last(), " total=300 ") {
			t.Errorf("300 events were lost, the log says\n%s", log.String())
		}
		s.expect(nil, "last")
		s.pass(time.Second)
		denied.Remove()
		if !strings.Contains(last(), " events=1 total=301 ") {
			t.Errorf("301 events were lost, the log says\n%s", log.String())
		}
	})
}
