package producer

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Somebody deletes the topic and creates it again: requests fail, readiness says
// why, and the new topic is taken on without a restart.
func TestTopicRecreated(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		s.expect(nil, "before")
		if err := s.cluster.DeleteTopic(topic); err != nil {
			t.Fatal(err)
		}
		if err := s.cluster.CreateTopic(topic, partitions, nil); err != nil {
			t.Fatal(err)
		}
		var publish, ping error
		for i := range 60 { // as the probe of readiness does it, once a second
			if _, publish = s.publish(fmt.Sprint("after-", i)); publish == nil {
				break
			}
			if err := s.p.Ping(t.Context()); err != nil {
				ping = err
			}
			s.pass(time.Second)
		}
		if publish != nil {
			t.Errorf("the new topic is not taken on: %v", publish)
		}
		if ping == nil || !strings.Contains(ping.Error(), "created again") {
			t.Errorf("readiness said %v; want that the topic was created again", ping)
		}
		if len(s.log()) == 0 {
			t.Error("the new topic is empty")
		}
	})
}

// A batch without an answer when its topic was replaced: it may have been in the
// old log, so it must not get into the new one.
func TestNothingMovesToTheNewTopic(t *testing.T) {
	simulate(t, nil, func(s *sim) {
		s.expect(nil, "warm")
		release := s.block()
		r := s.request(ids("event", 40)...) // also to partitions that have had nothing yet
		synctest.Wait()
		if err := s.cluster.DeleteTopic(topic); err != nil {
			t.Fatal(err)
		}
		if err := s.cluster.CreateTopic(topic, partitions, nil); err != nil {
			t.Fatal(err)
		}
		s.p.metadata.refresh()
		s.pass(time.Second)
		release()
		s.net.cut()
		s.net.mend()
		r.expect(ErrTimeout)
		s.wantLog(s.expect(nil, "event"))
	})
}
