package clickhouse

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// errNotWritten ends the process. The library does not fail a statement when
// write(2) fails, on a full disk or a broken one: where a server throws, chDB
// counts the call and goes on. The part it makes has a hole, is answered OK,
// and is set aside as broken by the next start, with everything in it.
//
// So no statement that may have written is answered before the count has been
// looked at, and one failed write ends the process. The next one finds only
// parts that are whole, the client has heard nothing and asks again. A merge
// may fail as well while nobody waits for an answer, hence the look at times:
// the parts it was made from stay on disk for eight minutes, and a start takes
// them when the merged one is broken.
var errNotWritten = errors.New("the engine could not write to a file (disk full or broken?)")

// lookEvery is how often the count is looked at without a statement.
const lookEvery = 5 * time.Second

// failedWrites counts the calls of write(2) that failed in this process.
func (e *engine) failedWrites() (uint64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p, err := e.admin.query("SELECT value FROM system.events WHERE event = 'WriteBufferFromFileDescriptorWriteFailed'", nil)
	if err != nil {
		return 0, fmt.Errorf("ask the engine for failed writes: %w", err)
	}
	if len(p) < 8 {
		return 0, nil // an event that never happened has no row
	}
	return binary.LittleEndian.Uint64(p), nil
}

// written returns nil when everything the engine wrote so far is in its files.
// Otherwise it ends the server.
func (srv *server) written() error {
	failed, err := srv.eng.failedWrites()
	if failed > 0 {
		err = fmt.Errorf("%d calls: %w", failed, errNotWritten)
		srv.end(err)
	}
	return err
}

// watchWrites looks at the count until ctx ends.
func (srv *server) watchWrites(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := srv.written(); err != nil {
				srv.log.Error("look for failed writes", "err", err)
			}
		}
	}
}
