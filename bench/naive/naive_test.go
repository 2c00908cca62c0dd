package naive

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

const sample = `{"event_name":"product_view","channel":"web","user_id":"user_12345","timestamp":1708732800000,"tags":["a","b"],"metadata":{"k":1}}`

// A rival that loses events would be fast for the wrong reason: what it says 202
// to is in the topic when it has stopped, in both of its modes.
func TestServeKeepsWhatItAccepts(t *testing.T) {
	f := func(sync bool) {
		t.Helper()
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "events"))
		if err != nil {
			t.Fatal(err)
		}
		defer cluster.Close()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- Serve(ctx, ln, Config{Brokers: cluster.ListenAddrs(), Topic: "events", Sync: sync})
		}()
		url := "http://" + ln.Addr().String()
		post(t, url+"/events", "application/json", sample, 202, "accepted")
		post(t, url+"/events/bulk", "application/x-ndjson", sample+"\n"+sample+"\n", 202, `"accepted":2,"rejected":0`)
		post(t, url+"/events/bulk", "application/json", "["+sample+","+sample+","+sample+"]", 202, `"accepted":3,"rejected":0`)
		post(t, url+"/events", "application/json", `{"event_name":"x"}`, 400, "required")
		post(t, url+"/events", "application/json", `{`, 400, "")
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := len(records(t, cluster.ListenAddrs(), 6)); got != 6 {
			t.Errorf("sync=%v: %d records in the topic; want 6", sync, got)
		}
	}
	f(false)
	f(true)
}

func post(t *testing.T, url, contentType, body string, status int, want string) {
	t.Helper()
	resp, err := http.Post(url, contentType, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != status || !strings.Contains(string(text), want) {
		t.Errorf("%s %s: got %d %s, %v; want %d %s", url, body, resp.StatusCode, text, err, status, want)
	}
}

// records reads want records of the topic, and whatever else is there with them.
func records(t *testing.T, brokers []string, want int) (out []event) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics("events"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for len(out) < want {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(fmt.Errorf("after %d records: %w", len(out), err))
		}
		for _, r := range fetches.Records() {
			var e event
			if err := json.Unmarshal(r.Value, &e); err != nil || e.UserID != "user_12345" || e.ReceivedAt == 0 {
				t.Errorf("record %s: %v", r.Value, err)
			}
			out = append(out, e)
		}
	}
	return out
}
