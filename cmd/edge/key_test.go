package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"edge/internal/server"
)

func TestKeyCommand(t *testing.T) {
	f := func(args string, wantStatus int, want string) (out string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if got := command(strings.Fields(args), &stdout, &stderr); got != wantStatus || !strings.Contains(stdout.String()+stderr.String(), want) {
			t.Errorf("edge %s: got %d, %s%s; want %d and %q", args, got, &stdout, &stderr, wantStatus, want)
		}
		return stdout.String()
	}
	lines := strings.Split(f("key new write shop", 0, "edge_w_shop_"), "\n")
	digest := sha256.Sum256([]byte(lines[0]))
	if want := "write shop " + hex.EncodeToString(digest[:]); len(lines) != 3 || lines[1] != want {
		t.Errorf("got %q; want the key and %q", lines, want)
	}
	if keys, err := server.ParseKeyFile([]byte(lines[1])); err != nil || keys.Len(server.Write) != 1 {
		t.Errorf("its own line is refused: %v", err)
	}
	f("key new read", 0, "edge_r_")
	const usage = "key new write|read [id]"
	f("key", exitUsage, usage)
	f("key new", exitUsage, usage)
	f("key old write", exitUsage, usage)
	f("key new admin", exitUsage, usage)
	f("key new write a b", exitUsage, usage)
	f("key new write my_shop", exitUsage, "letters, digits and hyphens")
}
