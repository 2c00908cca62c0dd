package clickhouse

import (
	"testing"

	"github.com/ClickHouse/ch-go"
)

// TestSettingsOfOneSession: whatever one client sets, another one's settings go
// back to what they were, and so do its own. (Not after compatibility: the library
// keeps what that has changed when it is taken back itself.)
func TestSettingsOfOneSession(t *testing.T) {
	child := startChild(t, "")
	with := func(kv ...string) func(*ch.Query) {
		return func(q *ch.Query) {
			for i := 0; i < len(kv); i += 2 {
				q.Settings = append(q.Settings, ch.Setting{Key: kv[i], Value: kv[i+1], Important: true})
			}
		}
	}
	set := func(c *ch.Client, sql string) {
		t.Helper()
		if err := c.Do(t.Context(), ch.Query{Body: sql}); err != nil {
			t.Fatalf("%q: %v", sql, err)
		}
	}
	goesBack := func(c *ch.Client, what, name, to string) {
		t.Helper()
		before := value(t, c, "getSetting('"+name+"')")
		if during := value(t, c, "getSetting('"+name+"')", with(name, to)); during != to && during != map[string]string{"0": "false", "1": "true"}[to] {
			t.Errorf("%s: %s=%s for a query shows %s", what, name, to, during)
		}
		if after := value(t, c, "getSetting('"+name+"')"); after != before {
			t.Errorf("%s: %s was %s and is %s after a query of its own", what, name, before, after)
		}
	}
	f := func(what, name, to string, first func(c *ch.Client)) {
		t.Helper()
		c := dial(t, child)
		if first(c); name != "join_algorithm" {
			goesBack(c, what+", the same session", name, to)
		}
		goesBack(dial(t, child), what+", another session", name, to)
	}
	f("an alias in the query before", "enable_analyzer", "1", func(c *ch.Client) { value(t, c, "1", with("allow_experimental_analyzer", "0")) })
	f("an older version's defaults in the query before", "join_algorithm", "hash", func(c *ch.Client) { value(t, c, "1", with("compatibility", "22.1")) })
	f("SET", "max_block_size", "9", func(c *ch.Client) { set(c, "SET max_block_size=7") })
	f("SET after an invisible character", "max_block_size", "9", func(c *ch.Client) { set(c, "\u00a0\ufeffSET\u2003max_block_size=7") })
	f("SET, and an alias in the query before", "enable_analyzer", "1", func(c *ch.Client) {
		set(c, "SET max_block_size=7")
		value(t, c, "1", with("allow_experimental_analyzer", "0"))
	})
}
