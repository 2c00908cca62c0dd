package clickhouse

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"

	"github.com/ClickHouse/ch-go/proto"
)

// sessionSettings makes a query's settings true for that query alone. The
// library knows only SET, which lasts, so the settings of one query are taken
// back before the next. A client that sends the same settings every time (a
// sink does) costs nothing: the difference is empty.
type sessionSettings struct {
	conn    *engineConn
	applied map[string]string
	// base holds what a setting goes back to, as the right side of SET: what it is
	// in any new session, and what this one says when the client ran SET itself.
	base *baseSettings
}

// baseSettings are asked for once a name. Sessions share those of a new session:
// asking for the eleven of a sink's insert takes 20 ms.
type baseSettings struct {
	mu     sync.Mutex
	values map[string]string
}

// forget must follow a SET of the client's.
func (s *sessionSettings) forget() { s.base = new(baseSettings) }

// of returns what a setting goes back to, or "" when there is none such.
func (b *baseSettings) of(name string, lookUp func(string) (string, error)) (string, error) {
	b.mu.Lock()
	value, ok := b.values[name]
	b.mu.Unlock()
	if ok {
		return value, nil
	}
	value, err := lookUp(name)
	if err != nil || value == "" {
		return "", err // names nobody knows are not kept: there is no end of them
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.values == nil {
		b.values = make(map[string]string)
	}
	b.values[name] = value
	return value, nil
}

// apply brings the session to exactly the settings of one query.
func (s *sessionSettings) apply(wanted []proto.Setting) error {
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
			if change[name], err = s.base.of(name, s.lookUp); err != nil {
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
	if err := s.conn.exec(setStatement(change), nil); err != nil {
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
		base, err := s.base.of(name, s.lookUp)
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

// known looks a setting up. An unknown one is an error only when the client
// says that it matters, as on a server.
func (s *sessionSettings) known(w proto.Setting) (bool, error) {
	if w.Key == tagSetting || w.Key == waitForDrop {
		return false, nil
	}
	base, err := s.base.of(w.Key, s.lookUp)
	if err != nil {
		return false, err
	}
	if base == "" && w.Important {
		return false, &exception{code: codeUnknownSetting, message: "Unknown setting '" + clip(w.Key) + "'"}
	}
	return base != "", nil
}

// lookUp returns what a setting goes back to, or "" when there is none such.
func (s *sessionSettings) lookUp(name string) (string, error) {
	row, err := s.conn.query("SELECT value, changed FROM system.settings WHERE name="+quote(name), nil)
	if err != nil || len(row) == 0 {
		return "", err
	}
	var c cursor
	c.over(row)
	value, err := c.string(uint64(len(row)))
	if err != nil {
		return "", err
	}
	changed, err := c.byte()
	if err != nil {
		return "", err
	}
	if changed == 0 {
		return "DEFAULT", nil
	}
	return quote(value), nil
}

func setStatement(values map[string]string) string {
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	sort.Strings(names)
	var b strings.Builder
	b.WriteString("SET ")
	for i, name := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString("`" + escapeIdentifier(name) + "`=" + values[name])
	}
	return b.String()
}

func escapeIdentifier(s string) string {
	return strings.NewReplacer("`", "``", `\`, `\\`).Replace(s)
}
