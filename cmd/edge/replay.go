package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/goccy/go-json"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/term"

	"edge/internal/codec"
)

// replay posts a file of events, one JSON object a line, plain or gzipped.
//
// An event without an event_id gets one here, so that a request whose answer was
// lost can be sent again and still count once. The ids are new for every run:
// replaying a file twice is two sets of events.
//
// An event that its id makes larger than MAX_EVENT_BYTES is sent without, since the
// server takes it. The limit is for the event's text, with its white space and its id, and
// a text need not have anything that could be left out: metadata is kept as it comes. Such
// an event has a request of its own, sent again only after an answer that says that nothing
// was kept. After any other failure the replay ends and says that the event may count or
// not; it never counts twice.
func replay(in *invocation) error {
	if len(in.args) != 1 || !isFileName(in.args[0]) {
		return &usageError{"replay wants one argument, the file (make replay FILE=events.ndjson.gz)"}
	}
	f, err := os.Open(in.args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	read := &countingReader{r: f}
	lines, err := openLines(read)
	if err != nil {
		return fmt.Errorf("%s: %w", in.args[0], err)
	}
	_, own, err := in.cfg.listenTLS()
	if err != nil {
		return err
	}
	url, client := in.cfg.self(time.Minute, func(peer []*x509.Certificate) error { return isSelf(own.current.Load(), peer) })
	r := replayer{
		url:    url + "/events/bulk",
		key:    in.cfg.replayKey(),
		client: client,
		prefix: newRunID(),
		out:    in.out,
		// A tenth of a second a request at any plausible speed; far below the
		// server's limits.
		maxEvents: min(5000, in.cfg.MaxEvents),
		maxBytes:  int(min(4<<20, in.cfg.MaxBodyBytes/2)),
		maxLine:   int(in.cfg.MaxBodyBytes) - idBytes,
		maxEvent:  int(in.cfg.MaxEventBytes),
	}
	return r.run(in.ctx, lines, func() float64 { return float64(read.n) / float64(max(info.Size(), 1)) })
}

// replayKey is the key to send, empty for none: a key of which only the digest is known
// cannot be sent.
func (c *config) replayKey() string {
	if c.ReplayKey != "" {
		return string(c.ReplayKey)
	}
	for _, key := range c.WriteKeys {
		if !strings.HasPrefix(key, "sha256:") {
			return key
		}
	}
	return ""
}

// idBytes is more than an event_id and the end of its line are: the names, 16 digits of a
// run, and up to 19 of a line.
const idBytes = 64

type replayer struct {
	url, key, prefix   string
	client             *http.Client
	out                io.Writer
	maxEvents          int // in a body
	maxBytes           int // of a body with more than one event
	maxLine            int // of the file: with an id, a body of its own
	maxEvent           int // MAX_EVENT_BYTES
	accepted, rejected int
	line               int    // of the file, from 1
	text               []byte // of that line
	body               bytes.Buffer
	lines              []int // of the events in the body; blank ones are left out of it
	starts             []int // where these lines begin in it
	bare               bool  // the body is one event that got no id
	reasons            int   // rejections shown so far
	decoder            codec.Decoder
}

func (r *replayer) run(ctx context.Context, lines *bufio.Reader, done func() float64) error {
	started := time.Now()
	bar := newProgress(r.out, started)
	err := r.postAll(ctx, lines, func() { bar.show(done(), r.accepted, r.rejected) })
	bar.end()
	took := time.Since(started)
	fmt.Fprintf(r.out, "accepted %d, rejected %d, %.0f events/s\n", r.accepted, r.rejected, float64(r.accepted)/took.Seconds())
	if err == nil && r.rejected > 0 {
		return fmt.Errorf("%d events were rejected", r.rejected)
	}
	return err
}

// postAll posts every line and calls shown after each request.
func (r *replayer) postAll(ctx context.Context, lines *bufio.Reader, shown func()) error {
	flush := func() error {
		if len(r.lines) == 0 {
			return nil
		}
		if err := r.post(ctx, r.body.Bytes()); err != nil {
			return fmt.Errorf("line %d: %w", r.lines[0], err)
		}
		r.body.Reset()
		r.lines, r.starts = r.lines[:0], r.starts[:0]
		shown()
		return nil
	}
	for {
		line, err := r.read(lines)
		switch {
		case err == errLongLine:
			r.rejected++
			r.reject(r.line, fmt.Sprintf("the line does not fit into MAX_BODY_BYTES, %s", size(r.maxLine+idBytes)))
			continue
		case err != nil && err != io.EOF:
			return cmp.Or(flush(), fmt.Errorf("line %d: %w", r.line, err)) // those before it are whole
		}
		if len(line) > 0 {
			id := r.idFor(line)
			bare := len(line) <= r.maxEvent && len(line)+len(id) > r.maxEvent
			if bare || r.bare || len(r.lines) == r.maxEvents || r.body.Len()+len(line) > r.maxBytes {
				if err := flush(); err != nil {
					return err
				}
			}
			if r.bare = bare; bare {
				id = ""
			}
			r.appendEvent(line, id)
		}
		if err == io.EOF {
			return flush()
		}
	}
}

var errLongLine = errors.New("line too long")

// read returns the next line without the white space around it, valid until the next
// call. One that no body can hold is read to its end, not kept, and errLongLine.
func (r *replayer) read(lines *bufio.Reader) ([]byte, error) {
	r.text = r.text[:0]
	for long := false; ; {
		part, err := lines.ReadSlice('\n')
		if long = long || len(r.text)+len(part) > r.maxLine; !long {
			r.text = append(r.text, part...)
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		if long || len(r.text) > 0 {
			r.line++
		}
		if long && (err == nil || err == io.EOF) {
			return nil, errLongLine // behind a last one, the next call finds the end
		}
		return bytes.TrimSpace(r.text), err
	}
}

// idFor is the member that gives line its event_id, with a comma in front. It is empty if
// the event has an id, which is the decoder's to say, as it is on the server. What the
// decoder refuses the server will, in its words.
func (r *replayer) idFor(line []byte) string {
	var ev codec.Event
	if err := r.decoder.Decode(line, &ev); err != nil || len(ev.EventID) > 0 {
		return ""
	}
	return fmt.Sprintf(`,"event_id":"%s-%d"`, r.prefix, r.line)
}

// appendEvent writes one line, with id as its last member: of an event_id that is there
// and null or empty, the later one wins.
func (r *replayer) appendEvent(line []byte, id string) {
	blank := len(r.text) - len(bytes.TrimLeftFunc(r.text, unicode.IsSpace)) // in front, in the file alone
	r.starts = append(r.starts, r.body.Len()-blank)
	if id != "" {
		r.body.Write(line[:len(line)-1])
		r.body.WriteString(id)
		line = line[len(line)-1:]
	}
	r.body.Write(line)
	r.body.WriteByte('\n')
	r.lines = append(r.lines, r.line)
}

// post sends one body until it is answered with something other than "later".
func (r *replayer) post(ctx context.Context, body []byte) error {
	const (
		patience = 2 * time.Minute
		patient  = 2 // tries before it says that it waits: an overload passes in one
	)
	deadline := time.Now().Add(patience)
	for tries := 1; ; tries++ {
		verdict, wait, err := r.try(ctx, body)
		if err == nil {
			r.accepted += verdict.Accepted
			r.rejected += verdict.Rejected
			for _, e := range verdict.Errors {
				if e.Index < len(r.lines) {
					r.reject(r.lines[e.Index], inLine(e.Error, r.starts[e.Index]))
				}
			}
			return nil
		}
		if r.bare && verdict.status/100 != 4 { // of those nothing is kept
			return fmt.Errorf("%w; the event may count or not, and is not sent again: MAX_EVENT_BYTES leaves no room for an event_id", err)
		}
		if wait == 0 || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
		if tries == patient {
			fmt.Fprintf(r.out, "%s\ntrying again for up to %s\n", err, patience)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// reject says why a line was rejected, of the first ten.
func (r *replayer) reject(line int, reason string) {
	if r.reasons++; r.reasons <= 10 {
		fmt.Fprintf(r.out, "line %d: %s\n", line, reason)
	}
}

// inLine has a reason, which ends with a byte of the body, end with that of a line which
// begins at start.
func inLine(reason string, start int) string {
	const before, behind = " (byte ", ")"
	i := strings.LastIndex(reason, before)
	if i < 0 {
		return reason
	}
	n, err := strconv.Atoi(strings.TrimSuffix(reason[i+len(before):], behind))
	if err != nil {
		return reason
	}
	return reason[:i] + before + strconv.Itoa(n-start) + behind
}

type bulkVerdict struct {
	status   int    // 0 without an answer
	Accepted int    `json:"accepted"`
	Rejected int    `json:"rejected"`
	Error    string `json:"error"`
	Errors   []struct {
		Index int    `json:"index"`
		Error string `json:"error"`
	} `json:"errors"`
}

// try posts once. A wait above zero says that it may be tried again after it.
func (r *replayer) try(ctx context.Context, body []byte) (v bulkVerdict, wait time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, bytes.NewReader(body))
	if err != nil {
		return v, 0, err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	if r.key != "" {
		req.Header.Set("Authorization", "Bearer "+r.key)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return v, time.Second, err
	}
	defer resp.Body.Close()
	v.status = resp.StatusCode
	text, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return v, time.Second, err
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return v, 0, fmt.Errorf("%s answered %s with no JSON: %w", r.url, resp.Status, err)
	}
	switch {
	case resp.StatusCode == http.StatusAccepted, resp.StatusCode == http.StatusBadRequest && v.Rejected > 0:
		return v, 0, nil
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode >= 500:
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return v, time.Duration(max(seconds, 1)) * time.Second, errors.New(v.Error)
	}
	return v, 0, fmt.Errorf("%s: %s", resp.Status, v.Error)
}

func newRunID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// openLines undoes gzip when the content says so.
func openLines(r io.Reader) (*bufio.Reader, error) {
	b := bufio.NewReaderSize(r, 1<<20)
	magic, err := b.Peek(2)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return b, nil
	}
	z, err := gzip.NewReader(b)
	if err != nil {
		return nil, err
	}
	return bufio.NewReaderSize(z, 1<<20), nil
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// progress draws a bar on a terminal and nothing elsewhere.
type progress struct {
	out     io.Writer
	started time.Time
	shown   time.Time
	on      bool
}

func newProgress(out io.Writer, started time.Time) *progress {
	f, ok := out.(*os.File)
	return &progress{out: out, started: started, on: ok && term.IsTerminal(int(f.Fd()))}
}

func (p *progress) show(fraction float64, accepted, rejected int) {
	const width = 30
	if !p.on || time.Since(p.shown) < 100*time.Millisecond {
		return
	}
	p.shown = time.Now()
	filled := int(min(fraction, 1) * width)
	fmt.Fprintf(p.out, "\r[%s%s] %3.0f%%  accepted %d  rejected %d  %.0f events/s ",
		strings.Repeat("=", filled), strings.Repeat(" ", width-filled), 100*min(fraction, 1),
		accepted, rejected, float64(accepted)/time.Since(p.started).Seconds())
}

func (p *progress) end() {
	if p.on {
		fmt.Fprint(p.out, "\r\033[K")
	}
}
