package main

import (
	"io"
	"log/slog"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"edge/internal/kafka"
)

// TestTopicRetention: what KAFKA_RETENTION means to the topic is what it means to
// the sink, to which 0 is for ever. To Kafka 0 is no time at all.
func TestTopicRetention(t *testing.T) {
	f := func(retention, want string) {
		t.Helper()
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
		if err != nil {
			t.Fatal(err)
		}
		defer cluster.Close()
		a := &app{kafka: kafka.Options{Brokers: cluster.ListenAddrs(), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}}
		if a.cfg, err = loadConfig(map[string]string{"KAFKA_RETENTION": retention}); err != nil {
			t.Fatal(err)
		}
		if err := a.ensureTopics(t.Context()); err != nil {
			t.Fatal(err)
		}
		for topic, want := range map[string]string{a.cfg.KafkaTopic: want, a.cfg.deadLetterTopic(): "-1"} {
			got := cluster.TopicInfo(topic).Configs["retention.ms"]
			if got == nil {
				t.Fatalf("KAFKA_RETENTION=%s: topic %s has no retention.ms", retention, topic)
			}
			if *got != want {
				t.Errorf("KAFKA_RETENTION=%s: topic %s has retention.ms=%s; want %s", retention, topic, *got, want)
			}
		}
	}
	f("0s", "-1")
	f("168h", "604800000")
}
