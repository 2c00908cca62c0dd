package sink

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/codec"
)

// commits notes every commit of the group in order, as "offset metadata".
func (l *lab) commits() (seen func() []string) {
	var mu sync.Mutex
	var all []string
	fault := l.cluster.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.OffsetCommit}, Observe: true, Err: kerr.CoordinatorNotAvailable, Count: -1,
		When: func(req kmsg.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			for _, t := range req.(*kmsg.OffsetCommitRequest).Topics {
				for _, p := range t.Partitions {
					all = append(all, fmt.Sprintf("%d %s", p.Offset, *p.Metadata))
				}
			}
			return false
		},
	})
	l.t.Cleanup(fault.Remove)
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Compact(slices.Clone(all)) // kfake asks several times
	}
}

// convoy is a sink whose flights are full with a few rows, and whose inserts can be
// held when the server has taken them, before their rows go out, or before that.
type convoy struct {
	*process
	mu      sync.Mutex
	conns   map[string]*wireConn // by the letter in the rows that it held, or "INSERT" and the how manieth
	inserts int
	asked   int // KILL QUERY after the first insert, with which recoveries begin
}

const convoyRows = 40

// lettered are rows of one letter, as many as fill a flight.
func lettered(letter string) func(int, *codec.Event) {
	return func(i int, ev *codec.Event) {
		twoMonths(i, ev)
		ev.Metadata = []byte(`{"x":"convoy ` + letter + `"}`)
	}
}

// convoy starts one that holds the rows of these letters, and inserts.
func (l *lab) convoy(hold ...string) *convoy {
	l.t.Helper()
	return l.convoyOf(func(*Config) {}, hold...)
}

// convoyOf is convoy, of another configuration.
func (l *lab) convoyOf(change func(*Config), hold ...string) *convoy {
	l.t.Helper()
	v := &convoy{conns: make(map[string]*wireConn)}
	v.process = l.prepare(func(c *Config) { c.FlushRows, c.Inserts, c.FlushInterval = convoyRows, 3, time.Millisecond }, change)
	v.click.watch = func(c *wireConn, p []byte, sent bool) {
		if !sent {
			return
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.inserts > 0 {
			v.asked += bytes.Count(p, []byte("KILL QUERY"))
		}
		insert := ""
		if bytes.Contains(p, []byte(`INSERT INTO "events"`)) {
			v.inserts++
			insert = fmt.Sprint("INSERT ", v.inserts)
		}
		for _, letter := range hold {
			if v.conns[letter] == nil && (letter == insert || bytes.Contains(p, []byte("convoy "+letter))) {
				c.held = make(chan struct{})
				v.conns[letter] = c
			}
		}
	}
	v.run()
	return v
}

// holds waits until the rows of a letter are held.
func (v *convoy) holds(letter string) *wireConn {
	v.l.t.Helper()
	var c *wireConn
	eventually(v.l.t, "the rows of "+letter+" are on their way", func() error {
		v.mu.Lock()
		defer v.mu.Unlock()
		if c = v.conns[letter]; c == nil {
			return errors.New("they are not")
		}
		return nil
	})
	return c
}

// let has the rows of a letter go out.
func (v *convoy) let(letter string) {
	v.l.t.Helper()
	c := v.holds(letter)
	v.click.mu.Lock()
	defer v.click.mu.Unlock()
	close(c.held)
	c.held = nil
}

// breaks ends the connection that has the rows of a letter, and the write that is held.
func (v *convoy) breaks(letter string) { v.holds(letter).Close() }

// passes waits until the first flight is passed.
func (v *convoy) passes() {
	v.l.t.Helper()
	eventually(v.l.t, "the first is passed", func() error {
		if v.sink.stats.stored.Load() == 0 {
			return errors.New("it is not")
		}
		return nil
	})
}

func (v *convoy) recoveries() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.asked
}

// has waits until events has n rows from an offset on.
func (l *lab) has(n int, from int64) {
	l.t.Helper()
	eventually(l.t, fmt.Sprintf("%d rows are in events", n), func() error {
		if got := l.value(fmt.Sprintf("SELECT count() FROM events WHERE _offset >= %d", from)); got != fmt.Sprint(n) {
			return fmt.Errorf("%s are", got)
		}
		return nil
	})
}
