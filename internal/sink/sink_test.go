package sink

import (
	"net"
	"testing"
	"time"
)

var netDial = (&net.Dialer{Timeout: 5 * time.Second}).DialContext

func TestEveryRecordIsStoredOnce(t *testing.T) {
	l := newLab(t, 3)
	s := l.start()
	for range 20 {
		l.produce(137)
	}
	l.settled()
	l.exact()
	s.stop()
	if s.err != nil {
		t.Errorf("Run returned %v; want nil", s.err)
	}
	// A second sink goes on where the first stopped.
	l.start()
	l.produce(100)
	l.settled()
	l.exact()
}
