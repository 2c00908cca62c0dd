package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-json"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"edge/internal/codec"
	"edge/internal/kafka"
	"edge/internal/sink"
)

// deadLetters reads the dead-letter topic and puts letters back on the line.
//
// A letter that goes back keeps its event_id, or gets one made of where it came
// from: putting it back twice, after a crash or by mistake, counts once within
// the deduplication window.
type deadLetters struct {
	kafka kafka.Options
	cfg   *config
}

// letter is one dead letter as edge replay-dlq --list shows it, and as it comes
// back repaired.
type letter struct {
	Partition int32   `json:"partition"` // where the record was, not where the letter is
	Offset    int64   `json:"offset"`
	Reason    string  `json:"reason"`
	Error     string  `json:"error"`
	Value     *string `json:"value,omitempty"`
	Bytes     []byte  `json:"value_base64,omitempty"` // instead of Value, when that is no text
	Refused   string  `json:"refused,omitempty"`      // why it would not go back now
}

func (l *letter) value() []byte {
	if l.Bytes != nil {
		return l.Bytes
	}
	return []byte(*l.Value)
}

// A lettersError says that it is the file of repaired letters that is wrong.
type lettersError struct {
	line int
	err  error
}

func (e *lettersError) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }

// errNoValue: some other JSON, most likely the event itself without its letter.
var errNoValue = errors.New("the object has no value; a letter is one as edge replay-dlq --list writes it")

// replayed is what putting letters back came to.
type replayed struct {
	Replayed  int            `json:"replayed"`
	StillDead int            `json:"still_dead"`
	Refused   map[string]int `json:"refused,omitempty"` // those still dead, by reason
}

func (r *replayed) refuse(err *codec.Error) {
	if r.Refused == nil {
		r.Refused = make(map[string]int)
	}
	r.StillDead++
	r.Refused[err.Reason.String()]++
}

// each calls f for every letter from the offsets given (nil: all) to the end of
// the topic, and returns the offsets after the last.
func (d *deadLetters) each(ctx context.Context, from map[int32]int64, f func(*kgo.Record) error) (map[int32]int64, error) {
	topic := d.cfg.deadLetterTopic()
	client, err := d.kafka.Client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	adm := kadm.NewClient(client)
	starts, err := adm.ListStartOffsets(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", topic, err)
	}
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", topic, err)
	}
	next, want := make(map[int32]int64), make(map[int32]kgo.Offset)
	left := 0
	ends.Each(func(o kadm.ListedOffset) {
		start, _ := starts.Lookup(topic, o.Partition)
		next[o.Partition] = max(from[o.Partition], start.Offset)
		if next[o.Partition] < o.Offset {
			want[o.Partition] = kgo.NewOffset().At(next[o.Partition])
			left++
		}
	})
	if left == 0 {
		return next, nil
	}
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: want})
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("read %s: %w", topic, err)
		}
		for it := fetches.RecordIter(); !it.Done(); {
			r := it.Next()
			end, _ := ends.Lookup(topic, r.Partition)
			if r.Offset >= end.Offset {
				continue
			}
			if err := f(r); err != nil {
				return next, err
			}
			if next[r.Partition] = r.Offset + 1; next[r.Partition] == end.Offset {
				left--
			}
		}
	}
	return next, nil
}

// list writes every letter as a line of JSON.
func (d *deadLetters) list(ctx context.Context, w io.Writer) error {
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false) // values are shown as they are
	var decoder codec.Decoder
	_, err := d.each(ctx, nil, func(r *kgo.Record) error {
		l := readLetter(r)
		if _, err := d.revive(&decoder, l); err != nil {
			l.Refused = err.Error()
		}
		return out.Encode(l)
	})
	return err
}

func readLetter(r *kgo.Record) letter {
	var l letter
	if text := string(r.Value); utf8.ValidString(text) {
		l.Value = &text
	} else {
		l.Bytes = r.Value
	}
	for _, h := range r.Headers {
		switch h.Key {
		case sink.HeaderReason:
			l.Reason = string(h.Value)
		case sink.HeaderError:
			l.Error = string(h.Value)
		case sink.HeaderPartition:
			n, _ := strconv.ParseInt(string(h.Value), 10, 32)
			l.Partition = int32(n)
		case sink.HeaderOffset:
			l.Offset, _ = strconv.ParseInt(string(h.Value), 10, 64)
		}
	}
	return l
}

// replay puts back what is in repaired or, when that is nil, in the topic.
func (d *deadLetters) replay(ctx context.Context, repaired io.Reader) (replayed, error) {
	if repaired == nil {
		return d.replayTopic(ctx)
	}
	return d.replayRepaired(ctx, repaired)
}

// replayTopic puts back every letter that may come in by now and was not looked at
// before; the rest stays where it is.
func (d *deadLetters) replayTopic(ctx context.Context) (out replayed, err error) {
	topic, group := d.cfg.deadLetterTopic(), d.cfg.KafkaGroup+".dead"
	client, err := d.producer()
	if err != nil {
		return out, err
	}
	defer client.Close()
	adm := kadm.NewClient(client)
	committed, err := adm.FetchOffsets(ctx, group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return out, fmt.Errorf("read the offsets of %s: %w", group, err)
	}
	from := make(map[int32]int64)
	committed.Each(func(o kadm.OffsetResponse) {
		if o.Topic == topic && o.At >= 0 {
			from[o.Partition] = o.At
		}
	})
	var decoder codec.Decoder
	next, err := d.each(ctx, from, func(r *kgo.Record) error {
		record, refused := d.revive(&decoder, readLetter(r))
		if refused != nil {
			out.refuse(refused)
			return nil
		}
		if err := client.ProduceSync(ctx, record).FirstErr(); err != nil {
			return fmt.Errorf("put a letter back: %w", err)
		}
		out.Replayed++
		return nil
	})
	if err != nil {
		return out, err
	}
	offsets := make(kadm.Offsets)
	for p, at := range next {
		offsets.AddOffset(topic, p, at, -1)
	}
	if err := adm.CommitAllOffsets(ctx, group, offsets); err != nil {
		return out, fmt.Errorf("commit the offsets of %s: %w", group, err)
	}
	return out, nil
}

// replayRepaired puts back letters as list wrote them, their values repaired.
func (d *deadLetters) replayRepaired(ctx context.Context, r io.Reader) (out replayed, err error) {
	client, err := d.producer()
	if err != nil {
		return out, err
	}
	defer client.Close()
	var decoder codec.Decoder
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	n := 1
	for ; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var l letter
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return out, &lettersError{n, err}
		}
		if l.Value == nil && l.Bytes == nil {
			return out, &lettersError{n, errNoValue}
		}
		record, refused := d.revive(&decoder, l)
		if refused != nil {
			out.refuse(refused)
			continue
		}
		if err := client.ProduceSync(ctx, record).FirstErr(); err != nil {
			return out, fmt.Errorf("line %d: put a letter back: %w", n, err)
		}
		out.Replayed++
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return out, &lettersError{n, err}
	}
	return out, lines.Err()
}

func (d *deadLetters) producer() (*kgo.Client, error) {
	return d.kafka.Client(kgo.DefaultProduceTopic(d.cfg.KafkaTopic), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kafka.ByHash{}), kgo.ProducerLinger(0))
}

// recordBytes is more than a record has that its event may not have had: an event_id of 36
// letters and received_at.
const recordBytes = 128

// revive makes a record of a letter whose value is an event, or a record, that may come in now.
func (d *deadLetters) revive(decoder *codec.Decoder, l letter) (*kgo.Record, *codec.Error) {
	var ev codec.Event
	now, rules := time.Now(), d.cfg.rules()
	rules.MaxEventBytes += recordBytes
	if d.cfg.TableTTL == 0 { // a letter may have waited for long, and nothing takes its row
		rules.MaxAge = 0
	}
	if err := decoder.DecodeUnder(rules, now, l.value(), &ev); err != nil {
		if err.Reason == codec.TooLarge {
			err.Limit = int64(d.cfg.MaxEventBytes) // which is known, other than ours
		}
		return nil, err
	}
	if len(ev.EventID) == 0 {
		ev.EventID = fmt.Appendf(nil, "dead/%s/%d/%d", d.cfg.KafkaTopic, l.Partition, l.Offset)
	}
	ev.ReceivedAt = now.UnixMilli()
	return &kgo.Record{
		Value: codec.AppendRecord(nil, &ev), Timestamp: now,
		Partition: kafka.HashPartition(codec.PartitionHash(codec.ID(ev.EventID))),
	}, nil
}

// replayDead is edge replay-dlq. A running edge does it, asked over its admin
// listener; without one this process talks to Kafka itself.
func replayDead(in *invocation) error {
	list := len(in.args) == 1 && in.args[0] == "--list"
	if len(in.args) > 1 || len(in.args) == 1 && !list && !isFileName(in.args[0]) {
		return &usageError{"replay-dlq wants --list, a file of repaired letters, or nothing"}
	}
	method, repaired := http.MethodPost, io.Reader(nil)
	switch {
	case list:
		method = http.MethodGet
	case len(in.args) == 1:
		f, err := os.Open(in.args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		repaired = f
	}
	answer, err := in.askAdmin(method, "/dead-letters", repaired)
	switch {
	case err == nil:
		defer answer.Close()
		_, err = io.Copy(in.out, answer)
		return err
	case !errors.Is(err, syscall.ECONNREFUSED):
		return err
	case in.cfg.Embedded:
		return errors.New(in.noneRuns() + "; the embedded broker is inside it, so start it first")
	}
	options, _, err := in.cfg.kafkaOptions()
	if err != nil {
		return err
	}
	options.Logger = in.log
	d := deadLetters{options, &in.cfg}
	if list {
		return d.list(in.ctx, in.out)
	}
	out, err := d.replay(in.ctx, repaired)
	if err != nil && out.Replayed == 0 {
		return err // 0 still dead would be a guess
	}
	return errors.Join(err, json.NewEncoder(in.out).Encode(out))
}

// deadLettersHandler serves GET (list) and POST (replay; with a body, of
// repaired letters) on the admin listener.
func (a *app) deadLettersHandler(w http.ResponseWriter, r *http.Request) {
	d := deadLetters{a.kafka, &a.cfg}
	switch r.Method {
	case http.MethodGet:
		w.Header().Set("Content-Type", "application/x-ndjson")
		if err := d.list(r.Context(), w); err != nil {
			a.log.Error("dead letters not read to the end; their list is cut short", "err", err)
		}
		return
	case http.MethodPost:
	default:
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "use GET or POST", http.StatusMethodNotAllowed)
		return
	}
	var repaired io.Reader
	if r.ContentLength != 0 {
		repaired = r.Body
	}
	out, err := d.replay(r.Context(), repaired)
	if err != nil {
		status := http.StatusServiceUnavailable
		if wrong := new(lettersError); errors.As(err, &wrong) {
			status = http.StatusBadRequest
		}
		http.Error(w, fmt.Sprintf("%v (after %d were put back)", err, out.Replayed), status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}
