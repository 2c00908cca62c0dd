package server

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"edge/internal/codec"
	"edge/internal/loop"
	"edge/internal/producer"
)

// twins are two servers that differ in who reads their connections.
type twins struct{ loops, goroutines *edge }

func startTwins(t testing.TB) twins {
	if !loop.Supported {
		t.Skip("no loops on this platform")
	}
	change := func(loops int) func(*Config) {
		return func(c *Config) {
			c.Loops, c.MaxBodyBytes, c.MaxInflatedBytes, c.WriteKeys = loops, 100<<10, 200<<10, []string{"k"}
			c.Publish = func(b *codec.Batch) error {
				if b.Len() == 3 {
					return producer.ErrFull
				}
				return nil
			}
		}
	}
	return twins{start(t, change(1)), start(t, change(0))}
}

var dates = regexp.MustCompile(`Date: [^\r]*`)

// transcript is all that a server answers to raw, which is sent in pieces cut at
// cuts, to its end.
func (e *edge) transcript(t *testing.T, raw string, cuts ...int) string {
	t.Helper()
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	from := 0
	for i, to := range append(cuts, len(raw)) {
		if i > 0 {
			e.round(t)
		}
		// The server may have closed: what it said before is what counts.
		_, _ = io.WriteString(c, raw[from:to])
		from = to
	}
	_ = c.(*net.TCPConn).CloseWrite()
	said, err := io.ReadAll(c)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Fatalf("%.80q: %v", raw, err)
	}
	lines := strings.SplitAfter(dates.ReplaceAllString(string(said), "Date: -"), "\r\n")
	for i, from := 0, 0; i < len(lines); i++ { // in which order headers stand means nothing
		switch {
		case strings.Contains(lines[i], "HTTP/1.1 "):
			from = i + 1
		case lines[i] == "\r\n":
			slices.Sort(lines[from:i])
		}
	}
	return strings.Join(lines, "")
}

// round waits until a loop has read what was sent before: a request of another
// connection is answered after that.
func (e *edge) round(t testing.TB) {
	t.Helper()
	if e.cfg.Loops == 0 {
		return
	}
	if e.other == nil {
		c, err := net.Dial("tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		e.other = &conn{Conn: c, br: bufio.NewReader(c)}
	}
	_ = e.other.SetDeadline(time.Now().Add(10 * time.Second))
	const refused = "POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
	if _, err := io.WriteString(e.other.Conn, refused); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(e.other.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
}

// agree holds that nobody can tell who reads.
func (w twins) agree(t *testing.T, raw string, cuts ...int) {
	t.Helper()
	want := w.goroutines.transcript(t, raw, cuts...)
	if got := w.loops.transcript(t, raw, cuts...); got != want {
		t.Errorf("%.300q cut at %v: a loop answers\n%s\nand fasthttp\n%s", raw, cuts, got, want)
	}
}

// requests is what a loop serves, what it lends, and what lies between.
func requests() (all []string) {
	bulk := "[" + good + "," + good + "]"
	lines := good + "\n" + strings.Replace(good, "user_id", "nobody", 1) + "\n"
	long := "[" + strings.Repeat(good+",", 600) + good + "]" // longer than a loop takes
	for _, target := range []string{"/events", "/events/", "/events/bulk", "/events/bulk/", "/events?x=1", "/events//", "/eventsx", "/%65vents", "/metrics"} {
		for _, body := range []string{good, bulk, lines, "", "{", "null", good + " ", good + "x", long, "[" + good + "," + good + "," + good + "]"} {
			all = append(all, "POST "+target+" HTTP/1.1\r\nHost: a\r\nX-API-Key: k\r\nContent-Length: "+itoa(len(body))+"\r\n\r\n"+body)
		}
	}
	for _, header := range []string{
		"", "Content-Type: application/x-ndjson\r\n", "Content-Type: text/html\r\n", "Content-Encoding: identity\r\n", "Content-Encoding: gzip\r\n",
		"Origin: https://shop.example\r\n", "Connection: close\r\n", "Connection: keep-alive\r\n", "Expect: 100-continue\r\n", "Expect: x\r\n",
		"Transfer-Encoding: chunked\r\n", "Transfer-Encoding: identity\r\n", "Content-Length: 3\r\n", "Host: b\r\n", "X: a\r\n b\r\n", "X : a\r\n", "X(: a\r\n",
		"X: a\nY: b\r\n", "X: a\rb\r\n", "X: \x00\r\n", ": x\r\n", "X\r\n", "Upgrade: h2c\r\n", "X: " + strings.Repeat("y", 9000) + "\r\n",
	} {
		for _, key := range []string{"X-API-Key: k\r\n", "Authorization: Bearer k\r\n", "X-API-Key: wrong\r\n", ""} {
			for _, version := range []string{"HTTP/1.1", "HTTP/1.0", "HTTP/1.9", "HTTP/2.0", "HTTP/1.1 "} {
				all = append(all, "POST /events "+version+"\r\nHost: a\r\n"+header+key+"Content-Length: "+itoa(len(good))+"\r\n\r\n"+good)
			}
		}
	}
	one := "POST /events HTTP/1.1\r\nHost: a\r\nX-API-Key: k\r\nContent-Length: " + itoa(len(good)) + "\r\n\r\n" + good
	return append(all,
		one+one, one+"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"+one, one+"\r\n"+one, "\r\n"+one, "\n"+one, one+"x", one+one[:40],
		"POST /events HTTP/1.1\r\nHost: a\r\nX-API-Key: k\r\n\r\n", "POST /events HTTP/1.1\r\n\r\n", "POST /events", "P", "",
		"POST /events HTTP/1.1\r\nHost: a\r\nX-API-Key: k\r\nContent-Length: 7\r\n\r\n", // and the end
		"POST /events HTTP/1.1\r\nHost: a\nX-API-Key: k\r\nContent-Length: 7\r\n\r\n{",
		"POST /events HTTP/1.1\nHost: a\nX-API-Key: k\nContent-Length: "+itoa(len(good))+"\n\n"+good+"\r\n\r\n",
		"POST /events HTTP/1.1\r\nHost: a\r\nX-API-Key: k\r\nContent-Length: 99999999999999999999\r\n\r\n"+good,
		"POST /events HTTP/1.1\r\nHost: a\r\nX-API-Key: k\r\nContent-Length: -1\r\n\r\n"+good,
		"POST /events/bulk HTTP/1.1\r\nHost: a\r\nX-API-Key: k\r\nContent-Length: 200000\r\n\r\n"+good,
		strings.Replace(one, "Host: a", "Host: #a", 1), strings.Replace(one, "Host: a", "Host: ::a", 1), strings.Replace(one, "Host: a", "Host: Edge_1.b-c:8080", 1),
		strings.Replace(one, "Host: a", "Host: a:", 1), strings.Replace(one, "Host: a", "Host: a:99999", 1), strings.Replace(one, "Host: a", "Host:", 1), strings.Replace(one, "Host: a", "Host: [::1]:80", 1),
		"OPTIONS /events HTTP/1.1\r\nHost: a\r\nOrigin: https://shop.example\r\n\r\n"+one,
		"GET /events HTTP/1.1\r\nHost: a\r\n\r\n"+one, "HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n"+one)
}

func TestLoopsAnswerAsFasthttp(t *testing.T) {
	w := startTwins(t)
	for _, raw := range requests() {
		w.agree(t, raw)
		if end := strings.Index(raw, "\r\n\r\n"); end > 0 && len(raw) < 2000 {
			w.agree(t, raw, end/2)
			w.agree(t, raw, end+4)
			w.agree(t, raw, end+(len(raw)-end)/2)
			w.agree(t, raw, end+2, len(raw)-1)
			if len(raw) > end+8 {
				w.agree(t, raw, end+5, end+6, end+7)
			}
		}
	}
	// Bodies that outgrow the block that their beginning is kept in.
	for _, size := range []int{9_000, 30_000, 60_000} {
		body := "[" + good + "]" + strings.Repeat(" ", size)
		raw := "POST /events/bulk HTTP/1.1\r\nHost: a\r\nX-API-Key: k\r\nContent-Length: " + itoa(len(body)) + "\r\n\r\n" + body
		w.agree(t, raw, 300)
		w.agree(t, raw, 300, 8_100, 8_300, len(raw)-1)
	}
}

func FuzzLoopsAnswerAsFasthttp(f *testing.F) {
	for _, raw := range requests() {
		if len(raw) < 2000 {
			f.Add(raw, uint16(0))
			f.Add(raw, uint16(len(raw)-1))
		}
	}
	w := startTwins(f)
	f.Fuzz(func(t *testing.T, raw string, cut uint16) {
		w.agree(t, raw, min(int(cut), len(raw)))
	})
}

// A request whose outcome does not come is answered after AckTimeout, its
// connection goes on, and the outcome finds nobody.
func TestOutcomeThatDoesNotCome(t *testing.T) {
	waiters := make(chan producer.Waiter, 1)
	e := start(t, func(c *Config) {
		c.AckTimeout = 20 * time.Millisecond
		c.Start = func(_ *codec.Batch, w producer.Waiter) (bool, error) {
			waiters <- w
			return true, nil
		}
	})
	c := e.dial()
	post := string(request("/events", "application/json", good))
	for range 3 {
		c.send(post)
		w := <-waiters
		c.answer().check(t, 503, "did not confirm in time")
		if w.Settled(nil) {
			t.Error("somebody waited for an outcome that came too late")
		}
		c.send(post)
		if !(<-waiters).Settled(nil) {
			t.Error("nobody waited")
		}
		c.answer().check(t, 202, "accepted")
	}
	// A client that is gone before its outcome.
	c.send(post)
	w := <-waiters
	c.Close()
	w.Settled(nil)
}

// The outcome of a request that ended in a panic is not the next one's.
func TestOutcomeAfterAPanic(t *testing.T) {
	if !loop.Supported {
		t.Skip("no loops on this platform")
	}
	waiters := make(chan producer.Waiter, 2)
	broken := true
	e := start(t, func(c *Config) {
		c.Loops = 1
		c.Start = func(_ *codec.Batch, w producer.Waiter) (bool, error) {
			waiters <- w
			if broken {
				broken = false
				panic("after it was handed over")
			}
			return true, nil
		}
	})
	post := string(request("/events", "application/json", good))
	c := e.dial()
	c.send(post)
	c.answer().check(t, 500, "internal error")
	c = e.dial()
	c.send(post)
	first, second := <-waiters, <-waiters
	if first.Settled(errPanic) {
		t.Error("somebody waited for the outcome of a request that has its answer")
	}
	second.Settled(nil)
	c.answer().check(t, 202, "accepted")
}

// A request that waits holds its events no longer than the producer does, whoever serves it.
func TestWaitingKeepsNoEvents(t *testing.T) {
	f := func(loops int) {
		settled, batches := make(chan struct{}), make(chan *codec.Batch, 1)
		e := start(t, func(c *Config) { // one that has copied all at once
			c.Loops = loops
			c.Start = func(b *codec.Batch, w producer.Waiter) (bool, error) {
				batches <- b
				go func() { <-settled; w.Settled(nil) }()
				return true, nil
			}
			c.Publish = func(b *codec.Batch) error {
				b.Release()
				batches <- b
				<-settled
				return nil
			}
		})
		c := e.dial()
		c.send(string(request("/events/bulk", "application/x-ndjson", good+"\n"+good)))
		b := <-batches
		eventually(t, "nobody holds the batch", func() (free bool) {
			defer func() { free = recover() != nil }()
			b.Retain()
			b.Release()
			return false
		})
		close(settled)
		c.answer().check(t, 202, `"accepted":2`)
	}
	f(0)
	if loop.Supported {
		f(1)
	}
}

// With a broker that is dead every request ends so. What is left to the collector, and
// is the producer's until it gives the records up, must not be all that served it.
func TestOutcomeThatDoesNotComeKeepsLittle(t *testing.T) {
	if raceEnabled || !loop.Supported {
		t.Skip("sync.Pool drops entries under the race detector")
	}
	const requests = 20
	waiters := make(chan producer.Waiter, requests+1)
	e := start(t, func(c *Config) {
		c.AckTimeout = 8 * time.Millisecond
		c.Start = func(_ *codec.Batch, w producer.Waiter) (bool, error) { waiters <- w; return true, nil }
	})
	c := e.dial()
	post, answer := request("/events", "application/json", good), make([]byte, 1<<10)
	round := func() {
		if _, err := c.Conn.Write(post); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Conn.Read(answer); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 503") {
			t.Fatalf("got %s, %v; want 503", answer, err)
		}
	}
	round()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range requests {
		round()
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / requests; got > 2<<10 {
		t.Errorf("%d bytes allocated per request that was given up; want at most 2048", got)
	}
}

// What a loop serves costs no memory at all, and neither does its waiting.
func TestLoopDoesNotAllocate(t *testing.T) {
	if raceEnabled || !loop.Supported {
		t.Skip("sync.Pool drops entries under the race detector")
	}
	f := func(name, path, typ, body string, begin func(*codec.Batch, producer.Waiter) (bool, error)) {
		t.Helper()
		e := start(t, func(c *Config) { c.Start = begin })
		c := e.dial()
		post, answer := request(path, typ, body), make([]byte, 1<<10)
		got := testing.AllocsPerRun(2000, func() {
			if _, err := c.Conn.Write(post); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Conn.Read(answer); err != nil {
				t.Fatal(err)
			}
		})
		if !strings.HasPrefix(string(answer), "HTTP/1.1 202") {
			t.Fatalf("%s: got %s", name, answer)
		}
		if got != 0 {
			t.Errorf("%s: %v allocations per request; want 0", name, got)
		}
	}
	bulk := strings.Repeat(sample+"\n", 100)
	at := func(*codec.Batch, producer.Waiter) (bool, error) { return false, nil }
	f("event", "/events", "application/json", sample, at)
	f("bulk", "/events/bulk", "application/x-ndjson", bulk, at)
	waiters := make(chan producer.Waiter, 1)
	go func() {
		for w := range waiters {
			w.Settled(nil)
		}
	}()
	later := func(_ *codec.Batch, w producer.Waiter) (bool, error) { waiters <- w; return true, nil }
	f("event that waits", "/events", "application/json", sample, later)
	f("bulk that waits", "/events/bulk", "application/x-ndjson", bulk, later)
	close(waiters)
}

// Who sends a header and no body, or a long header, takes nothing from others: the
// budget is for bytes that have come, and no exchange is kept that a header has grown.
func TestHeadersCostNothing(t *testing.T) {
	if !loop.Supported {
		t.Skip("no loops on this platform")
	}
	e := start(t, func(c *Config) { c.Loops, c.WriteKeys = 1, []string{"k"} })
	for range 50 {
		e.dial().send("POST /events/bulk HTTP/1.1\r\nHost: a\r\nContent-Length: 65000\r\n\r\n" + strings.Repeat(" ", 100))
	}
	e.round(t)
	if got := e.memory.used.Load(); got != 0 {
		t.Errorf("%d bytes charged for bodies of 100", got)
	}
	c := e.dial()
	c.send("POST /events/bulk HTTP/1.1\r\nHost: a\r\nX-API-Key: k\r\nContent-Length: 65000\r\n\r\n" + strings.Repeat(" ", 9000))
	// A connection is accepted before it is a loop's, so a round may be over first.
	eventually(t, "9000 bytes are charged as two reads, and those of the others are not", func() bool {
		return e.memory.used.Load() == 2*prefetch
	})

	h := e.newWhole().(*whole)
	for _, header := range []string{"", strings.Repeat("a:\r\n", 1500)} {
		x := h.get(new(loop.Conn))
		if !h.parse(x, []byte("POST /events HTTP/1.1\r\nHost: a\r\n"+header+"Content-Length: 2\r\n\r\n")) {
			t.Fatal("not for a loop")
		}
		h.put(x)
		if kept := len(h.free) > 0; kept != (header == "") {
			t.Errorf("kept %t with %d bytes of header", kept, len(header))
		}
		h.free = nil
	}
}
