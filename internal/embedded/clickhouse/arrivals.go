package clickhouse

import (
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Inserts whose rows are still coming. A ClickHouse server has an INSERT in
// system.processes before it answers with the header; the library sees it only
// whole. KILL QUERY has to reach it all the same: a sink that takes over kills what
// an earlier owner has begun, and the owner may only be asleep between two packets.

// An arrival is an INSERT from before its header is sent to its end.
type arrival struct {
	session  *session
	database string
	id       string
	query    string
	settings map[string]string // what came with it
	began    time.Time
	ended    chan struct{}

	killed bool
	handed bool // to the engine, where its session's tag finds it
}

type arrivals struct {
	mu  sync.Mutex
	all map[*arrival]struct{}
}

func (as *arrivals) begin(s *session, q *clientQuery) *arrival {
	a := &arrival{session: s, database: s.database, id: q.id, query: q.body, settings: make(map[string]string, len(q.settings)),
		began: time.Now(), ended: make(chan struct{})}
	for _, v := range q.settings {
		a.settings[v.Key] = v.Value
	}
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

// kill has none of those reach the engine any more, and returns the ones that it has.
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

// strike has the engine kill a. The lock keeps a's session from going on to its next
// statement, which has the same tag.
func (as *arrivals) strike(a *arrival, eng *engine) error {
	as.mu.Lock()
	defer as.mu.Unlock()
	if _, ok := as.all[a]; !ok {
		return nil
	}
	return eng.kill(a.session.tag)
}

// killArrivals ends the inserts under way that a KILL QUERY names. None of them
// stores a row after it has returned nil.
func (s *session) killArrivals(condition string, params []parameter) error {
	all := s.srv.arrivals.list()
	if len(all) == 0 {
		return nil
	}
	w := s.watch(true)
	err := s.killThose(w, all, condition, params)
	if stopped := w.stop(); stopped != nil {
		return stopped
	}
	return err
}

func (s *session) killThose(w *watch, all []*arrival, condition string, params []parameter) error {
	named, err := s.named(all, condition, params)
	if err != nil {
		return err
	}
	for _, a := range s.srv.arrivals.kill(named) {
		// Repeated, since the engine may not have it on its list yet.
		for wait, ended := 10*time.Millisecond, false; !ended; wait = min(2*wait, time.Second) {
			if w.gone.Load() || w.cancelled.Load() {
				return &exception{code: codeQueryCancelled, message: "Query was cancelled: an insert that it killed has not ended yet"}
			}
			if err := s.srv.arrivals.strike(a, s.srv.eng); err != nil {
				s.srv.log.Warn("kill an insert", "err", err)
			}
			select {
			case <-a.ended:
				ended = true
			case <-time.After(wait):
			}
		}
	}
	return nil
}

// named are those of all that a condition on system.processes names. What it cannot
// be asked about is an error: a KILL must not pass an insert by unseen.
func (s *session) named(all []*arrival, condition string, params []parameter) (named []*arrival, err error) {
	// First as it will be asked about the engine's own list: it is a condition, and
	// not the end of one and a query of its own.
	if err := s.eng.exec("KILL QUERY WHERE "+condition+"\n TEST", params); err != nil {
		return nil, err
	}
	// Limits that this client chose are not meant for texts of others.
	eng, err := s.srv.eng.connect(s.tag)
	if err != nil {
		return nil, err
	}
	defer eng.close()
	if err := errors.Join(eng.exec("USE "+quoteIdentifier(s.database), nil), eng.exec("SET max_query_size=0", nil)); err != nil {
		return nil, err
	}
	for _, a := range all {
		answer, err := eng.query("SELECT count() FROM ("+a.row()+") AS processes WHERE ("+condition+"\n)", params)
		if err != nil {
			return nil, err
		}
		if len(answer) != 8 {
			return nil, &exception{code: codeQueryCancelled, message: "Query was cancelled: it was killed while it looked for inserts"}
		}
		if binary.LittleEndian.Uint64(answer) > 0 {
			named = append(named, a)
		}
	}
	return named, nil
}

// row is a query for the row of system.processes that a would have on a ClickHouse
// server. The row of the query itself lends the columns of which nothing is known.
func (a *arrival) row() string {
	var keys, values []string
	for key, value := range a.settings {
		keys, values = append(keys, quote(key)), append(values, quote(value))
	}
	user, id := quote(a.session.srv.cfg.User), quote(a.id)
	return "SELECT * REPLACE (" + quote(a.query) + " AS query, 'Insert' AS query_kind, " + quote(a.database) + " AS current_database, " +
		user + " AS user, " + user + " AS initial_user, " + id + " AS query_id, " + id + " AS initial_query_id, " +
		strconv.FormatFloat(time.Since(a.began).Seconds(), 'f', 3, 64) + " AS elapsed, " +
		"CAST(([" + strings.Join(keys, ",") + "], [" + strings.Join(values, ",") + "]), 'Map(String, String)') AS Settings) " +
		"FROM system.processes LIMIT 1"
}
