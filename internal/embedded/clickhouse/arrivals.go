package clickhouse

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// Inserts whose rows are still coming. A ClickHouse server has an INSERT in
// system.processes before it answers with the header; the library sees it only
// whole. KILL QUERY has to reach it all the same: a sink that takes over kills what
// an earlier owner has begun, and the owner may only be asleep between two packets.

// An arrival is an INSERT from before its header is sent to its end.
type arrival struct {
	session  *session
	query    string
	settings []proto.Setting
	ended    chan struct{}

	killed bool
	handed bool // to the engine, where its session's tag finds it
}

type arrivals struct {
	mu  sync.Mutex
	all map[*arrival]struct{}
}

func (as *arrivals) begin(s *session, q *clientQuery) *arrival {
	a := &arrival{session: s, query: q.body, settings: q.settings, ended: make(chan struct{})}
	as.mu.Lock()
	defer as.mu.Unlock()
	if as.all == nil {
		as.all = make(map[*arrival]struct{})
	}
	as.all[a] = struct{}{}
	return a
}

func (as *arrivals) end(a *arrival) {
	as.mu.Lock()
	defer as.mu.Unlock()
	delete(as.all, a)
	close(a.ended)
}

// hand returns an exception if a was killed, and otherwise marks it as the
// engine's.
func (as *arrivals) hand(a *arrival) error {
	as.mu.Lock()
	defer as.mu.Unlock()
	if a.killed {
		return &exception{code: codeQueryCancelled, message: "Query was cancelled: it was killed while its rows were coming"}
	}
	a.handed = true
	return nil
}

func (as *arrivals) list() (all []*arrival) {
	as.mu.Lock()
	defer as.mu.Unlock()
	for a := range as.all {
		all = append(all, a)
	}
	return all
}

// kill kills those and returns the ones that the engine has.
func (as *arrivals) kill(those []*arrival) (handed []*arrival) {
	as.mu.Lock()
	defer as.mu.Unlock()
	for _, a := range those {
		if a.killed = true; a.handed {
			handed = append(handed, a)
		}
	}
	return handed
}

// killArrivals ends the inserts under way that a KILL QUERY names. None of them
// stores a row after it has returned.
func (s *session) killArrivals(condition string, params []parameter) error {
	all := s.srv.arrivals.list()
	if len(all) == 0 {
		return nil
	}
	named, err := s.named(all, condition, params)
	if err != nil {
		return nil // it is about columns that only the engine has
	}
	handed := s.srv.arrivals.kill(named)
	if len(handed) == 0 {
		return nil
	}
	w := s.watch(true)
	for _, a := range handed {
		// Repeated, since the engine may not have it on its list yet.
		for wait, there := 10*time.Millisecond, true; there && !w.gone.Load() && !w.cancelled.Load(); wait = min(2*wait, time.Second) {
			if err := s.srv.eng.kill(a.session.tag); err != nil {
				s.srv.log.Warn("kill an insert", "err", err)
			}
			select {
			case <-a.ended:
				there = false
			case <-time.After(wait):
			}
		}
	}
	return w.stop()
}

// named are those of all that a condition on system.processes names, by what is
// known of them.
func (s *session) named(all []*arrival, condition string, params []parameter) ([]*arrival, error) {
	rows := make([]string, len(all))
	for i, a := range all {
		var keys, values []string
		for _, v := range a.settings {
			keys, values = append(keys, quote(v.Key)), append(values, quote(v.Value))
		}
		rows[i] = fmt.Sprintf("(%d, %s, CAST(([%s], [%s]), 'Map(String, String)'))", i, quote(a.query), strings.Join(keys, ","), strings.Join(values, ","))
	}
	p, err := s.eng.query(fmt.Sprintf("SELECT toUInt32(number) FROM (SELECT row.1 AS number, row.2 AS query, row.3 AS Settings, %s AS user FROM (SELECT arrayJoin([%s]) AS row)) WHERE %s",
		quote(s.srv.cfg.User), strings.Join(rows, ","), condition), params)
	if err != nil {
		return nil, err
	}
	var out []*arrival
	for ; len(p) >= 4; p = p[4:] {
		if i := binary.LittleEndian.Uint32(p); int(i) < len(all) {
			out = append(out, all[i])
		}
	}
	return out, nil
}
