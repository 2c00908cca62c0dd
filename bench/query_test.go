//go:build linux

package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestAskersCountOnlyAnswers(t *testing.T) {
	f := func(status int, answered bool) {
		t.Helper()
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		defer web.Close()
		b, s := &bench{o: &options{one: 50 * time.Millisecond}, ctx: t.Context()}, new(section)
		got, err := b.askers(s, "here", &server{addr: strings.TrimPrefix(web.URL, "http://")}, &queryData{to: time.Now()})
		if err != nil || got > 0 != answered {
			t.Errorf("status %d: got %v answers/s, %v", status, got, err)
		}
	}
	f(http.StatusOK, true)
	f(http.StatusServiceUnavailable, false)
}
