package server

import (
	"context"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"edge/internal/codec"
	"edge/internal/producer"
	"edge/internal/query"
)

// TestLongAnswersAreCharged holds that answers which nobody reads, and those that wait for
// the broker, take their memory from the budget, and that what there is no room for is
// refused before anything of it is kept.
func TestLongAnswersAreCharged(t *testing.T) {
	for _, loops := range []int{0, 1} {
		t.Run(fmt.Sprintf("loops=%d", loops), func(t *testing.T) { longAnswers(t, loops) })
	}
}

func longAnswers(t *testing.T, loops int) {
	// The kernel would take a whole answer.
	small := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, 4096) })
	}}
	ln, err := small.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const mebibyte = 1 << 20
	publish := make(chan struct{})
	e := startOn(t, ln, func(c *Config) {
		c.Loops, c.MaxInflightBytes, c.MaxBodyBytes, c.MaxInflatedBytes = loops, 8*mebibyte, mebibyte, mebibyte
		c.Publish = func(b *codec.Batch) error {
			<-publish
			if b.Len() == 2 {
				return producer.ErrTimeout
			}
			return nil
		}
		c.Query = func(context.Context, query.Request) (*query.Result, error) {
			res := &query.Result{Events: 1000}
			for range 1000 {
				res.Groups = append(res.Groups, query.Group{Label: strings.Repeat("\x01", 100), Events: 1})
			}
			return res, nil
		}
	})
	const others = 6*mebibyte - 256<<10 // room for bodies is left
	if !e.memory.take(others) {
		t.Fatal("no budget")
	}
	defer e.memory.used.Add(-others)
	post := func(body string) *conn {
		c := e.dial()
		c.send(fmt.Sprintf("POST /events/bulk HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		return c
	}
	charged := func(n int64) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d bytes are charged", n), func() bool { return e.memory.used.Load() == others+n })
	}
	bad := "[" + strings.Repeat("1,", 9999) + "1]" // 20 kB, and an answer of half a mebibyte and more
	mixed := "[" + strings.Repeat("1,", 9999) + good + "]"

	unread := post(bad)
	charged(mebibyte)
	waiting := post(mixed)
	charged(2 * mebibyte)
	refused := e.stats.rejected[memoryFull].Load()
	post(mixed).answer().check(t, 429, "in flight")
	if n := e.stats.rejected[memoryFull].Load() - refused; n != 10_000 {
		t.Errorf("%d events counted as refused; want all 10000", n)
	}
	ask := func() *conn {
		c := e.dial()
		c.send("GET /metrics?event_name=a&from=0&to=10&group_by=campaign_id HTTP/1.1\r\nHost: a\r\n\r\n")
		return c
	}
	ask().answerTo("GET").check(t, 429, "in flight")
	unread.Close()
	charged(mebibyte)
	asked := ask()
	charged(2 * mebibyte)
	asked.answerTo("GET").check(t, 200, `\u0001`)
	charged(mebibyte)
	close(publish)
	waiting.answer().check(t, 202, `"accepted":1,"rejected":9999`)
	charged(0)
	post("["+strings.Repeat("1,", 5000)+good+","+good+"]").answer().check(t, 503, "did not confirm in time")
	charged(0)
	if n := e.stats.Accepted.Load(); n != 1 {
		t.Errorf("%d events accepted; want 1", n)
	}
}
