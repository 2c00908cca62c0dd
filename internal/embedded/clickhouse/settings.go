package clickhouse

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/ClickHouse/ch-go/proto"
)

// sessionSettings makes a query's settings true for that query alone. The
// library knows only SET, which lasts, so the settings of one query are taken
// back before the next. A client that sends the same settings every time (a
// sink does) costs nothing: the difference is empty.
type sessionSettings struct {
	eng     *engine
	conn    *engineConn
	applied map[string]string
	// base holds what a setting goes back to, as the right side of SET: what it is
	// in any new session, and what this one says when the client ran SET itself.
	base *baseSettings
	own  bool // base is this session's own

	changes uint64 // how often a setting of the session changed
}

// baseSettings are asked for once a name. Sessions share those of a new session,
// asked for on the connection that no client has: the eleven of a sink's insert
// take 20 ms.
type baseSettings struct {
	mu     sync.Mutex
	values map[string]string // "" is a setting that there is none of
}

// maxUnknown bounds which of the names that nobody knows are remembered.
const maxUnknown = 4096

// forget must follow a SET of the client's.
func (s *sessionSettings) forget() { s.base, s.own = new(baseSettings), true }

// goesBackTo returns what a setting goes back to, or "" when there is none such.
func (s *sessionSettings) goesBackTo(name string) (string, error) {
	b := s.base
	b.mu.Lock()
	defer b.mu.Unlock()
	if value, ok := b.values[name]; ok {
		return value, nil
	}
	var value string
	var err error
	if s.own {
		value, err = s.conn.setting(name)
	} else {
		value, err = s.eng.setting(name)
	}
	if err != nil || value == "" && len(b.values) >= maxUnknown {
		return "", err
	}
	if b.values == nil {
		b.values = make(map[string]string)
	}
	b.values[name] = value
	return value, nil
}

// settle takes everything back before an own base is asked for a new name: one
// setting may show in another, as an alias does, or compatibility in hundreds.
func (s *sessionSettings) settle(wanted []proto.Setting) error {
	if !s.own || len(s.applied) == 0 {
		return nil
	}
	for _, w := range wanted {
		if _, ok := s.base.values[w.Key]; !ok && !ours(w.Key) {
			return s.apply(nil)
		}
	}
	return nil
}

// apply brings the session to exactly the settings of one query.
func (s *sessionSettings) apply(wanted []proto.Setting) error {
	if err := s.settle(wanted); err != nil {
		return err
	}
	want := make(map[string]string, len(wanted))
	for _, w := range wanted {
		if ok, err := s.known(w); err != nil {
			return err
		} else if ok {
			want[w.Key] = quote(w.Value)
		}
	}
	change := make(map[string]string)
	for name := range s.applied {
		if _, ok := want[name]; !ok {
			var err error
			if change[name], err = s.goesBackTo(name); err != nil {
				return err
			}
		}
	}
	for name, value := range want {
		if have, ok := s.applied[name]; !ok || have != value {
			change[name] = value
		}
	}
	if len(change) == 0 {
		return nil
	}
	s.changes++
	err := s.conn.exec(setStatement(change), nil)
	for exceptionCode(err) == codeQueryCancelled {
		// A KILL QUERY that names the settings of the last query took this for it.
		err = s.conn.exec(setStatement(change), nil)
	}
	if err != nil {
		return s.takeBack(change, err)
	}
	s.applied = want
	return nil
}

// errStuck says that a session's settings cannot be put right any more (a
// client that set readonly=1, say): the connection has to go.
var errStuck = errors.New("settings of an earlier query cannot be taken back")

// takeBack undoes a SET of which some part failed.
func (s *sessionSettings) takeBack(change map[string]string, cause error) error {
	for name := range s.applied {
		change[name] = ""
	}
	for name := range change {
		base, err := s.goesBackTo(name)
		if err == nil {
			err = s.conn.exec(setStatement(map[string]string{name: base}), nil)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errStuck, cause)
		}
	}
	s.applied = nil
	return cause
}

// waitForDrop makes every DROP one with SYNC; see withoutSync.
const waitForDrop = "database_atomic_wait_for_drop_and_detach_synchronously"

// ours tells what no client sets.
func ours(name string) bool { return name == tagSetting || name == waitForDrop }

// known looks a setting up. An unknown one is an error only when the client
// says that it matters, as on a server.
func (s *sessionSettings) known(w proto.Setting) (bool, error) {
	if ours(w.Key) {
		return false, nil
	}
	if fileSettings[w.Key] {
		return false, refusedFile("setting " + w.Key)
	}
	base, err := s.goesBackTo(w.Key)
	if err != nil {
		return false, err
	}
	if base == "" && w.Important {
		return false, &exception{code: codeUnknownSetting, message: "Unknown setting '" + clip(w.Key) + "'"}
	}
	return base != "", nil
}

// setting returns the right side of a SET that leaves a setting as it is in a new
// session, or "" when there is none such.
func (e *engine) setting(name string) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.admin.setting(name)
}

func (c *engineConn) setting(name string) (string, error) {
	row, err := c.query("SELECT value, changed FROM system.settings WHERE name="+quote(name), nil)
	if err != nil || len(row) == 0 {
		return "", err
	}
	in := over(row)
	value, err := in.string(uint64(len(row)))
	if err != nil {
		return "", err
	}
	changed, err := in.byte()
	if err != nil {
		return "", err
	}
	if changed == 0 {
		return "DEFAULT", nil
	}
	return quote(value), nil
}

func setStatement(values map[string]string) string {
	var sets []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		sets = append(sets, quoteIdentifier(name)+"="+values[name])
	}
	return "SET " + strings.Join(sets, ", ")
}

func quoteIdentifier(s string) string {
	return "`" + strings.NewReplacer("`", "``", `\`, `\\`).Replace(s) + "`"
}
