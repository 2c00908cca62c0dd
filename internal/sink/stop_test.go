package sink

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

// A sink is stopped while it asks what is stored of a partition that came: what it has taken
// of others is stored first, as at any other moment.
func TestStopWhileAsking(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	rarely := func(c *Config) { c.FlushInterval = time.Hour }
	s, other := l.prepare(rarely), l.prepare(rarely)
	s.run()
	eventually(t, "it has both", func() error { return has(s, 2) })
	other.run()
	eventually(t, "it has one", func() error { return has(s, 1) })
	eventually(t, "the other has one", func() error { return has(other, 1) })
	mine := s.owns()[0]
	taken := func(n int64) {
		t.Helper()
		l.one(mine, withID(fmt.Sprint(n)))
		eventually(t, "it is taken", func() error {
			s.sink.state.mu.Lock()
			defer s.sink.state.mu.Unlock()
			if got := s.sink.state.partitions[mine].windowIDs; got != n {
				return fmt.Errorf("%d of %d", got, n)
			}
			return nil
		})
	}
	taken(1) // at once
	l.settled()
	taken(2) // waits for an hour
	asks, answer := make(chan struct{}), make(chan struct{})
	s.click.mu.Lock()
	s.click.watch = func(c *wireConn, p []byte, sent bool) {
		if sent && c.held == nil && bytes.Contains(p, []byte("min(f) AS lo")) {
			c.held = answer
			close(asks)
		}
	}
	s.click.mu.Unlock()
	other.stop()
	<-asks
	s.end()
	close(answer)
	s.stop()
	if err := l.atEnd(); err != nil {
		t.Error(err)
	}
	l.exact()
}

func has(p *process, n int) error {
	if got := p.owns(); len(got) != n {
		return fmt.Errorf("it has %v", got)
	}
	return nil
}
