package server

import (
	"strings"
	"testing"
)

// FuzzConnection feeds a connection arbitrary bytes. Whatever arrives, nothing
// panics, nothing of the body budget is lost, and what was published is what
// was counted as accepted.
func FuzzConnection(f *testing.F) {
	post := "POST /events HTTP/1.1\r\nHost: a\r\n"
	f.Add([]byte(post + "Content-Length: " + itoa(len(good)) + "\r\n\r\n" + good))
	f.Add([]byte(post + "Transfer-Encoding: chunked\r\n\r\n" + itohex(len(good)) + "\r\n" + good + "\r\n0\r\n\r\n"))
	f.Add([]byte(post + "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add([]byte(post + "Content-Encoding: gzip\r\nContent-Length: 10\r\n\r\n\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"))
	f.Add([]byte(post + "Content-Encoding: br\r\nContent-Length: 9999\r\n\r\n\x1b"))
	f.Add([]byte("POST /events/bulk HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-ndjson\r\nContent-Length: 4\r\n\r\n{}\n{"))
	f.Add([]byte("GET /metrics?event_name=%00&from=-1 HTTP/1.0\r\n\r\n"))
	f.Add([]byte("OPTIONS * HTTP/1.1\r\nHost: a\r\nOrigin: b\r\n\r\nHEAD /ready/ HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte(strings.Repeat("\r\n", 100)))
	s := atMemory()
	f.Fuzz(func(t *testing.T, raw []byte) {
		accepted := s.stats.Accepted.Load()
		// How a connection ends is the client's affair.
		_ = s.http.ServeConn(&replay{request: raw, left: 1})
		if n := s.stats.Panics.Load(); n != 0 {
			t.Fatalf("%d panics", n)
		}
		if n := s.memory.used.Load(); n != 0 {
			t.Fatalf("%d bytes of body budget still charged", n)
		}
		if s.stats.Accepted.Load() > accepted && !strings.Contains(string(raw), "POST") {
			t.Fatal("accepted an event nobody posted")
		}
	})
}
