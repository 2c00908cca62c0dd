//go:build linux

package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/chaos"
)

// TestKafka holds edge to a real Apache Kafka: in every other test the embedded
// broker stands in for it. edge, Kafka and ClickHouse are processes here, so
// that what is killed is really gone.
func TestKafka(t *testing.T) {
	c := startCluster(t)
	t.Run("end to end", func(t *testing.T) { endToEnd(c.tenant(t, "endtoend")) })
	t.Run("edge is killed", func(t *testing.T) { edgeKilled(c.tenant(t, "killed")) })
	t.Run("sinks come and go", func(t *testing.T) { sinksComeAndGo(c.tenant(t, "rebalance")) })
	t.Run("group is forgotten", func(t *testing.T) { groupForgotten(c.tenant(t, "forgotten")) })
	t.Run("broker restarts", func(t *testing.T) { brokerRestarts(c.tenant(t, "restart")) })
}

const everything = "ingest,sink,query"

// restless makes the sink insert all the time, so that most kills meet an
// insert under way.
var restless = []string{"FLUSH_INTERVAL", "10ms"}

func endToEnd(n *tenant) {
	t := n.t
	p := n.start("edge", everything)
	post := func(path, contentType, body string, want int) {
		t.Helper()
		if text, err := request(http.MethodPost, "http://"+p.public+path, contentType, []byte(body), want); err != nil {
			t.Errorf("%v: %s", err, text)
		}
	}
	at := time.Now().UnixMilli()
	event := func(user, id string) string {
		return fmt.Sprintf(`{"event_name":"signup","user_id":%q,"event_id":%q,"timestamp":%d,"channel":"web"}`, user, id, at)
	}
	post("/events", "application/json", event("u1", "a-1"), http.StatusAccepted)
	post("/events/bulk", "application/json", "["+event("u1", "a-1")+","+event("u2", "a-2")+`,{"event_name":"signup"},`+event("u3", "a-3")+"]", http.StatusAccepted)
	post("/events/bulk", "application/x-ndjson", event("u2", "a-2")+"\n"+event("u4", "a-4")+"\n", http.StatusAccepted)
	post("/events", "application/json", `{"event_name":"signup"}`, http.StatusBadRequest)

	in := &instance{t: t, public: p.public}
	in.total("signup", 4)
	if a := in.metrics("signup", 0, 4e9, "channel"); a.UniqueUsers != 4 || len(a.Data) != 1 || a.Data[0].TotalEvents != 4 {
		t.Errorf("got %+v; want 4 events of 4 users, all web", a)
	}

	garbage := map[string]bool{"no event": true, `{"event_name":"signup"}`: true, "": true}
	for value := range garbage {
		r := &kgo.Record{Topic: n.name, Value: []byte(value)}
		if err := n.client.ProduceSync(context.Background(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	letters, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:"+n.brokerPort), kgo.ConsumeTopics(n.name+".dead"),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer letters.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for len(garbage) > 0 && ctx.Err() == nil {
		letters.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			if !garbage[string(r.Value)] {
				t.Errorf("dead letter %q was not sent, or comes twice", r.Value)
			}
			delete(garbage, string(r.Value))
			headers := map[string]string{}
			for _, h := range r.Headers {
				headers[h.Key] = string(h.Value)
			}
			if headers["edge-topic"] != n.name || headers["edge-reason"] == "" || headers["edge-error"] == "" || headers["edge-partition"] == "" || headers["edge-offset"] == "" {
				t.Errorf("dead letter %q has headers %v", r.Value, headers)
			}
		})
	}
	if len(garbage) > 0 {
		t.Errorf("dead letters %v did not arrive", garbage)
	}

	p.terminate()
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("edge ended with %d after SIGTERM; want 0", code)
	}
	n.again(p)
	t.Logf("ready %s after an orderly restart", short(p.awaitReady()))
	in.total("signup", 4)
	post("/events", "application/json", event("u1", "a-1"), http.StatusAccepted) // known from before the restart
	post("/events", "application/json", event("u5", "a-5"), http.StatusAccepted)
	in.total("signup", 5)
	n.settled()
	in.total("signup", 5)
	n.checkRollups()
}

// edgeKilled kills the whole of edge again and again while clients send.
func edgeKilled(n *tenant) {
	t := n.t
	rounds := chaos.Rounds(8, 20)
	n.rounds = rounds
	p := n.start("edge", everything, restless...)
	l := startLoad(t, p.public)
	n.progress()
	var ready, accepting, storing []time.Duration
	var recovered float64
	for round := range rounds {
		// Anywhere between two inserts and within one.
		l.more(200 + rand.IntN(1000))
		ids := n.memberOf(p)
		recovered += p.metric(`edge_sink_batches_total\{outcome="recovered"\}`)
		killed := time.Now()
		p.kill()
		if round > 0 { // once, let the dead member's session time out
			n.evict(ids)
		}
		n.again(p)
		l.more(1)
		accepting = append(accepting, time.Since(killed))
		p.awaitReady()
		ready = append(ready, time.Since(killed))
		n.progress()
		storing = append(storing, time.Since(killed))
	}
	n.worst = slices.Max(storing)
	t.Logf("%d kills: accepting after %s, ready after %s, storing after %s; ready after %s, storing after %s when the session had to time out", rounds,
		span(accepting), span(ready[1:]), span(storing[1:]), short(ready[0]), short(storing[0]))
	n.balance(l)
	recovered += p.metric(`edge_sink_batches_total\{outcome="recovered"\}`)
	t.Logf("%g batches were found declared and recovered", recovered)
}

// sinksComeAndGo moves partitions between sinks in every way there is.
func sinksComeAndGo(n *tenant) {
	t := n.t
	a, b := n.start("sink a", "sink", restless...), n.start("sink b", "sink", restless...)
	front := n.start("front", "ingest,query")
	l := startLoad(t, front.public)
	sinks := []*edgeProcess{a, b}
	n.joined(sinks...)
	n.progress()
	c := n.start("sink c", "sink", restless...)
	sinks = append(sinks, c)
	n.joined(sinks...)
	var killed, stopped, left []time.Duration
	n.rounds = 4 * chaos.Rounds(2, 5)
	for range n.rounds / 4 {
		l.more(500)
		victim := n.memberOf(a)
		a.kill()
		n.evict(victim)
		killed = append(killed, n.joined(b, c)+n.progress())
		n.again(a)
		n.joined(sinks...)

		l.more(500)
		// b sleeps in the middle of whatever it does, loses its partitions, and
		// wakes up when others have stored its records.
		victim = n.memberOf(b)
		b.signal(syscall.SIGSTOP)
		n.evict(victim)
		stopped = append(stopped, n.joined(a, c)+n.progress())
		l.more(500)
		b.signal(syscall.SIGCONT)
		n.joined(sinks...)

		l.more(500)
		c.terminate()
		left = append(left, n.joined(a, b))
		n.again(c)
		n.joined(sinks...)

		// The coordinator forgets everybody.
		l.more(500)
		n.evict(slices.Collect(maps.Keys(n.group()))...)
		n.joined(sinks...)
	}
	n.worst = max(slices.Max(killed), slices.Max(stopped), slices.Max(left))
	n.balance(l)
	for _, p := range sinks {
		t.Logf("%s: %s", p.name, p.samplesLine(`(edge_sink_(?:batches|recoveries|rebalances)_total\S*)`))
	}
	t.Logf("others store after a kill: %s, after a stop: %s; own the partitions after an orderly leave: %s", span(killed), span(stopped), span(left))
}

// groupForgotten deletes the group's offsets, as a broker does when no sink ran
// for longer than it keeps them: the sink meets the whole log again.
func groupForgotten(n *tenant) {
	t := n.t
	p := n.start("edge", everything)
	l := startLoad(t, p.public)
	l.more(2000)
	l.stop()
	n.settled()
	p.terminate()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	forgotten, err := n.admin.DeleteGroups(ctx, n.name+"-sink")
	if err == nil {
		err = forgotten.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	n.rounds++
	started := time.Now()
	n.again(p)
	p.awaitReady()
	n.worst = time.Since(started)
	n.balance(l)
}

// brokerRestarts stops and kills Kafka while clients send; edge stays up.
func brokerRestarts(n *tenant) {
	t := n.t
	p := n.start("edge", everything)
	l := startLoad(t, p.public)
	n.progress()
	var up, accepting, storing []time.Duration
	n.rounds = chaos.Rounds(2, 20)
	for i := range n.rounds {
		how := []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[i%2]
		l.more(1000)
		n.broker.signal(how)
		<-n.broker.done
		// Some requests must have met the broker's absence.
		before := l.retried()
		within(t, time.Minute, "a client is told to try again", func() error { return atLeast(l.retried(), before+1) }, p.process)
		up = append(up, n.startBroker())
		again := time.Now()
		accepting = append(accepting, l.more(1))
		storing = append(storing, n.progress())
		n.worst = max(n.worst, time.Since(again))
	}
	select {
	case <-p.done:
		t.Fatal("edge ended")
	default:
	}
	t.Logf("Kafka up %s after its start; then accepting after %s more, storing after %s more", span(up), span(accepting), span(storing))
	within(t, time.Minute, "no record is on its way", func() error { return atLeast(-int(p.metric(`edge_produce_inflight_records`)), 0) })
	n.balance(l)
}
