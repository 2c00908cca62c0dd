package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// self returns the URL of the running server's public listener and a client for
// it: the same settings say where it is. The certificate is for the name that
// clients use, which is not the address here, so verify says whose it may be; nil
// is anybody's.
func (c *config) self(timeout time.Duration, verify func([]*x509.Certificate) error) (url string, client *http.Client) {
	host := c.ServerHost
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	addr := net.JoinHostPort(host, strconv.Itoa(int(c.ServerPort)))
	if c.ServerTLSCert == "" {
		return "http://" + addr, &http.Client{Timeout: timeout}
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}
	if verify != nil {
		conf.VerifyConnection = func(s tls.ConnectionState) error { return verify(s.PeerCertificates) }
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = conf
	return "https://" + addr, &http.Client{Timeout: timeout, Transport: transport}
}

// askAdmin asks the running server over its admin listener and returns the answer, which
// the caller closes. The error is ECONNREFUSED when no server runs, and body is then as it
// was: it is closed in no case.
func (in *invocation) askAdmin(method, path string, body io.Reader) (io.ReadCloser, error) {
	if body != nil {
		body = io.NopCloser(body)
	}
	url := "http://" + in.adminAddr() + path
	req, err := http.NewRequestWithContext(in.ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, errors.Join(fmt.Errorf("%s answered %s: %s", url, resp.Status, bytes.TrimSpace(text)), resp.Body.Close())
	}
	return resp.Body, nil
}

func (in *invocation) adminAddr() string {
	return net.JoinHostPort(in.cfg.AdminHost, strconv.Itoa(int(in.cfg.AdminPort)))
}

// noneRuns says where edge was looked for: one may well run, with other settings.
func (in *invocation) noneRuns() string {
	return "no edge answers at " + in.adminAddr() + " (ADMIN_HOST, ADMIN_PORT)"
}

// isSelf accepts the certificate in our own file, expired or not (a restart
// would not renew it), and, because a renewed file is read a moment later by the
// server than by us, one for the same name that the file's chain or the system
// vouches for.
func isSelf(own *tls.Certificate, peer []*x509.Certificate) error {
	if len(peer) == 0 {
		return errors.New("the server sent no certificate")
	}
	if bytes.Equal(peer[0].Raw, own.Certificate[0]) {
		return nil
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	for _, raw := range own.Certificate[1:] {
		if ca, err := x509.ParseCertificate(raw); err == nil {
			roots.AddCert(ca)
		}
	}
	between := x509.NewCertPool()
	for _, ca := range peer[1:] {
		between.AddCert(ca)
	}
	var name string
	switch leaf := own.Leaf; {
	case len(leaf.DNSNames) > 0:
		name = leaf.DNSNames[0]
	case len(leaf.IPAddresses) > 0:
		name = leaf.IPAddresses[0].String()
	default:
		return errors.New("the server has another certificate than SERVER_TLS_CERT")
	}
	_, err = peer[0].Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between})
	return err
}
