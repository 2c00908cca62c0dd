package main

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
)

// TestIsSelf holds which certificates the commands take for the running
// server's: the one in its file, and one that was renewed beside it.
func TestIsSelf(t *testing.T) {
	pair := func(a *authority, name string) *tls.Certificate {
		t.Helper()
		p, err := tls.LoadX509KeyPair(a.issue(name))
		if err != nil {
			t.Fatal(err)
		}
		return &p
	}
	ours, stranger := newAuthority(t), newAuthority(t)
	own := pair(ours, "edge.example")
	f := func(what string, peer *tls.Certificate, ok bool) {
		t.Helper()
		var chain []*x509.Certificate
		for _, raw := range peer.Certificate {
			c, err := x509.ParseCertificate(raw)
			if err != nil {
				t.Fatal(err)
			}
			chain = append(chain, c)
		}
		if err := isSelf(own, chain); (err == nil) != ok {
			t.Errorf("%s: got %v; want ok=%v", what, err, ok)
		}
	}
	f("the same", own, true)
	f("renewed", pair(ours, "edge.example"), true)
	f("another name of the same CA", pair(ours, "other.example"), false)
	f("the name by another CA", pair(stranger, "edge.example"), false)
	f("none", new(tls.Certificate), false)
}
