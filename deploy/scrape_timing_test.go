package deploy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"edge/internal/codec"
	"edge/internal/producer"
	"edge/internal/server"
	"edge/internal/stat"
)

// What a scraper costs the handlers: requests over loopback with nothing behind
// them, alone and with ten scrapes a second, each of everything there is.
//
//	go test ./deploy -run '^$' -bench Scraped -count 10 | benchstat -col /scraper -
func BenchmarkScraped(b *testing.B) {
	const body = `{"event_name":"product_view","channel":"web","user_id":"user_12345","timestamp":1708732800000,"metadata":{"product_id":"SKU-001"}}`
	req := fmt.Appendf(nil, "POST /events HTTP/1.1\r\nHost: edge\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	for _, every := range []time.Duration{0, 100 * time.Millisecond} {
		b.Run(fmt.Sprintf("scraper=%v", every > 0), func(b *testing.B) {
			s := server.New(server.Config{
				Events:        codec.NewPool(codec.Rules{MaxEvents: 1, MaxEventBytes: 1 << 16, MaxFieldBytes: 1 << 10, MaxAhead: time.Hour}),
				Publish:       func(*codec.Batch) error { return nil },
				Start:         func(*codec.Batch, producer.Waiter) (bool, error) { return false, nil },
				MaxEventBytes: 1 << 16, MaxBodyBytes: 1 << 20, MaxInflatedBytes: 1 << 20, MaxInflightBytes: 1 << 28,
				MaxConns: 1 << 10, Loops: runtime.GOMAXPROCS(0), RetryAfter: time.Second,
				AckTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute, IdleTimeout: time.Minute,
			})
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			served := make(chan error, 1)
			go func() { served <- s.Serve(ln) }()
			set := new(stat.Set)
			s.Describe(set)
			registry := server.NewRegistry("", "")
			registry.MustRegister(set)
			admin := server.AdminHandler(registry, new(slog.LevelVar))
			done := make(chan struct{})
			var took time.Duration
			scrapes := 0
			scraper := make(chan struct{})
			go func() {
				defer close(scraper)
				if every == 0 {
					return
				}
				tick := time.NewTicker(every)
				defer tick.Stop()
				for {
					select {
					case <-done:
						return
					case <-tick.C:
						began := time.Now()
						admin.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/metrics", nil))
						took += time.Since(began)
						scrapes++
					}
				}
			}()
			b.RunParallel(func(pb *testing.PB) {
				conn, err := net.Dial("tcp", ln.Addr().String())
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close()
				r := bufio.NewReader(conn)
				for pb.Next() {
					if _, err := conn.Write(req); err != nil {
						b.Error(err)
						return
					}
					if err := readAccepted(r); err != nil {
						b.Error(err)
						return
					}
				}
			})
			close(done)
			<-scraper
			if got := s.Stats().Accepted.Load(); got != uint64(b.N) {
				b.Errorf("%d events were accepted; want %d", got, b.N)
			}
			if scrapes > 0 {
				b.ReportMetric(float64(took.Microseconds())/float64(scrapes), "µs/scrape")
			}
			if err := s.Shutdown(context.Background()); err != nil {
				b.Error(err)
			}
			<-served
		})
	}
}

// readAccepted reads one answer and wants it to be 202.
func readAccepted(r *bufio.Reader) error {
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		return errors.New(resp.Status)
	}
	return resp.Body.Close()
}
