package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"edge/internal/codec"
)

// TestDeepNesting holds that depth costs an event, not the process: a stack that
// grew with the nesting could not be caught.
func TestDeepNesting(t *testing.T) {
	e := start(t, nil)
	c := e.dial()
	f := func(path, body string, status int, want string) {
		t.Helper()
		c.send("POST " + path + " HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: " + itoa(len(body)) + "\r\n\r\n" + body)
		c.answer().check(t, status, want)
	}
	event := func(value string) string {
		return strings.TrimSuffix(good, `,"metadata":{"k":1}}`) + `,"metadata":{"k":` + value + `}}`
	}
	lists := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	objects := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	before := e.rejections()["too_deep"]
	// The event and its metadata are two levels.
	f("/events", event(lists(62)), 202, "accepted")
	f("/events", event(lists(63)), 400, "nested deeper than the limit, 64 (byte ")
	f("/events", event(objects(62)), 202, "accepted")
	f("/events", event(objects(63)), 400, "nested deeper than the limit, 64 (byte ")
	f("/events", event(lists(30_000)), 400, "nested")
	f("/events", event(strings.Repeat("[", 60_000)), 400, "expected a value")
	for _, n := range []int{63, 4_158, 4_159, 5_000, 1_000_000} {
		f("/events/bulk", "["+good+","+event(lists(n))+","+good+"]", 202, `"accepted":2,"rejected":1`)
		f("/events/bulk", `{"v":1,"events":[`+good+","+event(objects(n))+","+good+"]}", 202, `"accepted":2,"rejected":1`)
	}
	f("/events/bulk", strings.Repeat("[", 5<<20), 400, "")
	f("/events/bulk", strings.Repeat(`{"events":[`, 500_000), 400, "")
	if got := e.rejections()["too_deep"] - before; got < 5 {
		t.Errorf("got %d rejected as too deep; want at least 5", got)
	}
	f("/events", good, 202, "accepted")
}

// TestEventsOlderThanMaxAge holds that what the table would not keep is refused
// by name, to the event.
func TestEventsOlderThanMaxAge(t *testing.T) {
	e := start(t, func(c *Config) { c.Events = codec.NewPool(codec.Rules{MaxAge: 24 * time.Hour}) })
	aged := func(age time.Duration) string {
		return fmt.Sprintf(`{"event_name":"a","user_id":"u","timestamp":%d}`, time.Now().Add(-age).UnixMilli())
	}
	e.do("POST", "/events", nil, []byte(aged(23*time.Hour))).check(t, 202, "accepted")
	e.do("POST", "/events", nil, []byte(aged(25*time.Hour))).check(t, 400, "timestamp")
	e.do("POST", "/events/bulk", nil, []byte("["+aged(0)+","+aged(25*time.Hour)+","+aged(time.Hour)+"]")).check(t, 202, `"accepted":2,"rejected":1`)
	if got := e.rejections()["too_old"]; got != 2 {
		t.Errorf("got %d rejected as too old; want 2", got)
	}
}
