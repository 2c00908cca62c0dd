package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestReplayNamesLines holds that a rejected event, and an answer that ends the
// replay, are named by their line in the file, blank lines counted.
func TestReplayNamesLines(t *testing.T) {
	const file = `{"event_name":"a"}

{"event_name":"b"}

{"event_name":"bad"}
{"event_name":"c"}
{"event_name":"full"}
`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		accepted, errs := 0, []string{}
		for i, line := range strings.Split(strings.TrimSuffix(string(body), "\n"), "\n") {
			switch {
			case strings.Contains(line, `"full"`):
				http.Error(w, `{"error":"the body is larger than the limit"}`, http.StatusRequestEntityTooLarge)
				return
			case strings.Contains(line, `"bad"`):
				errs = append(errs, fmt.Sprintf(`{"index":%d,"error":"no"}`, i))
			default:
				accepted++
			}
		}
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprintf(w, `{"accepted":%d,"rejected":%d,"errors":[%s]}`, accepted, len(errs), strings.Join(errs, ","))
	}))
	defer srv.Close()
	var out strings.Builder
	r := replayer{url: srv.URL, client: srv.Client(), prefix: "x", out: &out, maxEvents: 2, maxBytes: 1 << 20}
	err := r.run(context.Background(), bufio.NewReader(strings.NewReader(file)), func() float64 { return 1 })
	if want := "line 7: 413 Request Entity Too Large: the body is larger than the limit"; err == nil || err.Error() != want {
		t.Errorf("got error %v; want %s", err, want)
	}
	for _, want := range []string{"line 5: no\n", "accepted 3, rejected 1, "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("got output %q; want it to contain %q", out.String(), want)
		}
	}
}
