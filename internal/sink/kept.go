package sink

import (
	"sync"
	"time"

	"github.com/ClickHouse/ch-go"
)

// kept are the connections of the last inserts, for the next: dialing and saying
// once more what the settings of every insert are is a tenth of a small one.
type kept struct {
	mu    sync.Mutex
	conns []keptConn // the one used last at the end
}

type keptConn struct {
	*ch.Client
	since time.Time
}

// maxIdle is well below the time after which servers, and what lies between,
// close or forget an idle connection.
const maxIdle = 30 * time.Second

func (k *kept) put(conn *ch.Client) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conns = append(k.conns, keptConn{conn, time.Now()})
}

// take returns the connection that was used last, or nil, and closes those that have
// rested for long.
func (k *kept) take() *ch.Client {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.conns) > 0 && (k.conns[0].IsClosed() || time.Since(k.conns[0].since) > maxIdle) {
		_ = k.conns[0].Close()
		k.conns = k.conns[1:]
	}
	n := len(k.conns) - 1
	if n < 0 {
		return nil
	}
	last := k.conns[n]
	k.conns = k.conns[:n]
	return last.Client
}

func (k *kept) close() {
	for conn := k.take(); conn != nil; conn = k.take() {
		_ = conn.Close()
	}
}
