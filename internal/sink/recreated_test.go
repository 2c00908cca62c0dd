package sink

import (
	"fmt"
	"testing"
	"time"
)

// The topic is deleted and created again under a running sink: what is stored of
// the old one stays, the new one is another log, and nothing needs a restart.
func TestTopicRecreated(t *testing.T) {
	t.Parallel() // it waits more than it works
	l := newLab(t, 1)
	l.start()
	l.produce(100)
	l.settled()
	if err := l.cluster.DeleteTopic(topic); err != nil {
		t.Fatal(err)
	}
	if err := l.cluster.CreateTopic(topic, 1, nil); err != nil {
		t.Fatal(err)
	}
	l.producer.PurgeTopicsFromProducing(topic)
	records := l.records(50)
	if err := l.producer.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	const want = "150 events of 2 logs, 150 counted"
	for {
		got := fmt.Sprintf("%s events of %s logs, %s counted",
			l.value("SELECT toString(count()) FROM events"), l.value("SELECT toString(uniqExact(_src)) FROM events"),
			l.value("SELECT toString(sum(n)) FROM events_1d"))
		if got == want {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("got %s; want %s", got, want)
		case <-tick.C:
		}
	}
}
