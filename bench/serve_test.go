//go:build linux

package main

import (
	"context"
	"testing"

	"edge/bench/child"
)

// A rival's allocations are read as edge's are.
func TestRivalsTellTheirAllocations(t *testing.T) {
	port, err := child.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	addr := host + ":" + port
	t.Setenv(adminOfRival, addr)
	err = telling(func(context.Context, []string) error {
		if got := (&target{admin: addr}).mallocs(); got < 1 {
			t.Errorf("got %v allocations of this process", got)
		}
		return nil
	})(t.Context(), nil)
	if err != nil {
		t.Error(err)
	}
}
