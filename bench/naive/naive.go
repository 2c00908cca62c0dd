// Package naive is the peer: the ingestion service an average team writes in an
// afternoon. net/http, encoding/json into a struct, a few checks, and franz-go.
// There is nothing wrong with it; it is what the rest of this repository has to
// be worth.
//
// Asynchronous, it puts the event into a channel and says 202, and goroutines
// produce from the channel. Synchronous, it says 202 when Kafka has the event.
//
// The client is told where the broker is and which topic, and otherwise has the defaults
// of franz-go 1.22: acks=all, an idempotent producer, snappy, 50,000 records buffered at
// most, records without a key to one partition until that has got 64 KiB, and a linger
// of 10 ms. Synchronous, the linger is not waited for: ProduceSync ends it as soon as the
// records of the request are buffered, with whatever others wait for those partitions.
package naive

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Config says where to, and when to answer.
type Config struct {
	Brokers []string
	Topic   string
	Sync    bool
}

type event struct {
	EventName  string         `json:"event_name"`
	Channel    string         `json:"channel,omitempty"`
	CampaignID string         `json:"campaign_id,omitempty"`
	UserID     string         `json:"user_id"`
	Timestamp  int64          `json:"timestamp"`
	Tags       []string       `json:"tags,omitempty"`
	Metadata   map[string]any `json:"metadata,omitempty"`
	ReceivedAt int64          `json:"received_at"`
}

func (e *event) check() error {
	if e.EventName == "" || e.UserID == "" || e.Timestamp <= 0 {
		return errors.New("event_name, user_id and timestamp are required")
	}
	return nil
}

type service struct {
	cfg    Config
	client *kgo.Client
	queue  chan []byte
	lost   atomic.Int64 // events said 202 to that Kafka then refused
}

// Serve runs until ctx ends, then produces what is queued.
func Serve(ctx context.Context, ln net.Listener, cfg Config) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.DefaultProduceTopic(cfg.Topic))
	if err != nil {
		return err
	}
	defer client.Close()
	s := &service{cfg: cfg, client: client, queue: make(chan []byte, 100_000)}
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(s.work)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /events", s.one)
	mux.HandleFunc("POST /events/bulk", s.bulk)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx)
	})
	err = srv.Serve(ln)
	<-ctx.Done()
	close(s.queue)
	workers.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return errors.Join(err, client.Flush(context.WithoutCancel(ctx)))
}

func (s *service) work() {
	for value := range s.queue {
		s.client.Produce(context.Background(), kgo.SliceRecord(value), func(_ *kgo.Record, err error) {
			if err != nil {
				s.lost.Add(1)
			}
		})
	}
}

func (s *service) one(w http.ResponseWriter, r *http.Request) {
	var e event
	if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.take(w, r, []event{e}, map[string]any{"status": "accepted"})
}

func (s *service) bulk(w http.ResponseWriter, r *http.Request) {
	var events []event
	dec := json.NewDecoder(r.Body)
	var err error
	if r.Header.Get("Content-Type") == "application/x-ndjson" {
		for dec.More() && err == nil {
			var e event
			err = dec.Decode(&e)
			events = append(events, e)
		}
	} else {
		err = dec.Decode(&events)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.take(w, r, events, map[string]any{"status": "accepted", "accepted": len(events), "rejected": 0})
}

func (s *service) take(w http.ResponseWriter, r *http.Request, events []event, answer any) {
	var records []*kgo.Record
	for i := range events {
		e := &events[i]
		if err := e.check(); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		e.ReceivedAt = time.Now().UnixMilli()
		value, err := json.Marshal(e)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		records = append(records, kgo.SliceRecord(value))
	}
	if s.cfg.Sync {
		if err := s.client.ProduceSync(r.Context(), records...).FirstErr(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
	} else {
		for _, record := range records {
			s.queue <- record.Value
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	_ = json.NewEncoder(w).Encode(answer)
}
