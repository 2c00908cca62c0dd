package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"edge/internal/clickhouse"
	"edge/internal/kafka"
	"edge/internal/server"
)

// Certificates are verified wherever we are the client, and there is no setting
// to turn that off: TLS to anybody who answers is a password given to anybody
// who answers. A private CA is one file, and takes less time than the search for
// such a setting.

// certificate is a key pair from two files, which load reads again.
type certificate struct {
	name      string // of the settings: name_CERT and name_KEY
	cert, key string // paths
	current   atomic.Pointer[tls.Certificate]
}

// load replaces the pair, or leaves it as it is when the files make none.
func (c *certificate) load() error {
	cert, err := os.ReadFile(c.cert)
	if err != nil {
		return fmt.Errorf("%s_CERT: %w", c.name, err)
	}
	key, err := os.ReadFile(c.key)
	if err != nil {
		return fmt.Errorf("%s_KEY: %w", c.name, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("%s_CERT and %s_KEY are no pair: %w", c.name, c.name, err)
	}
	c.current.Store(&pair)
	return nil
}

// loadCertificate returns the pair of name_CERT and name_KEY, nil when neither
// is set.
func loadCertificate(name, cert, key string) (*certificate, error) {
	switch {
	case cert == "" && key == "":
		return nil, nil
	case cert == "" || key == "":
		return nil, fmt.Errorf("%s_CERT and %s_KEY need each other", name, name)
	}
	c := &certificate{name: name, cert: cert, key: key}
	return c, c.load()
}

// peerTLS are the settings of TLS to one kind of server.
type peerTLS struct {
	name          string // what the settings' names begin with
	on            bool
	ca, cert, key string
}

func (c *config) kafkaTLS() peerTLS {
	return peerTLS{"KAFKA_TLS", c.KafkaTLS, c.KafkaTLSCA, c.KafkaTLSCert, c.KafkaTLSKey}
}

func (c *config) clickHouseTLS() peerTLS {
	return peerTLS{"CLICKHOUSE_TLS", c.ClickHouseTLS, c.ClickHouseTLSCA, c.ClickHouseTLSCert, c.ClickHouseTLSKey}
}

// load returns the client's side of TLS and its own certificate; nil and nil
// when they are not asked for.
func (t peerTLS) load() (*tls.Config, *certificate, error) {
	if !t.on {
		if t.ca != "" || t.cert != "" || t.key != "" {
			return nil, nil, fmt.Errorf("%s_CA, %s_CERT and %s_KEY need %s=true", t.name, t.name, t.name, t.name)
		}
		return nil, nil, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.ca != "" {
		pem, err := os.ReadFile(t.ca)
		if err != nil {
			return nil, nil, fmt.Errorf("%s_CA: %w", t.name, err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, nil, fmt.Errorf("%s_CA is %s; it holds no certificate in PEM", t.name, t.ca)
		}
	}
	own, err := loadCertificate(t.name, t.cert, t.key)
	if err != nil {
		return nil, nil, err
	}
	if own != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own.current.Load(), nil }
	}
	return conf, own, nil
}

// kafkaSASL returns how to log in to Kafka, nil when that is not asked for.
func (c *config) kafkaSASL() (sasl.Mechanism, error) {
	user, pass := c.SASLUsername, string(c.SASLPassword)
	if c.SASLMechanism == "" {
		if user != "" || pass != "" {
			return nil, errors.New("KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD need KAFKA_SASL_MECHANISM")
		}
		return nil, nil
	}
	if user == "" || pass == "" {
		return nil, errors.New("KAFKA_SASL_MECHANISM needs KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD")
	}
	switch c.SASLMechanism {
	case "PLAIN":
		return plain.Auth{User: user, Pass: pass}.AsMechanism(), nil
	case "SCRAM-SHA-256":
		return scram.Auth{User: user, Pass: pass}.AsSha256Mechanism(), nil
	case "SCRAM-SHA-512":
		return scram.Auth{User: user, Pass: pass}.AsSha512Mechanism(), nil
	}
	return nil, fmt.Errorf("KAFKA_SASL_MECHANISM is %q; it may be PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", c.SASLMechanism)
}

// listenTLS returns the public listener's side of TLS, nil and nil without it.
func (c *config) listenTLS() (*tls.Config, *certificate, error) {
	own, err := loadCertificate("SERVER_TLS", c.ServerTLSCert, c.ServerTLSKey)
	if err != nil || own == nil {
		return nil, nil, err
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own.current.Load(), nil },
	}, own, nil
}

// loadKeys reads KEYS_FILE; nil without one.
func (c *config) loadKeys() (*server.KeyFile, error) {
	if c.KeysFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(c.KeysFile)
	if err != nil {
		return nil, fmt.Errorf("KEYS_FILE: %w", err)
	}
	keys, err := server.ParseKeyFile(text)
	if err != nil {
		return nil, fmt.Errorf("KEYS_FILE is %s: %w", c.KeysFile, err)
	}
	return keys, nil
}

// kafkaOptions returns how to reach the Kafka cluster, and our certificate to
// it, if there is one.
func (c *config) kafkaOptions() (kafka.Options, *certificate, error) {
	conf, own, err := c.kafkaTLS().load()
	if err != nil {
		return kafka.Options{}, nil, err
	}
	login, err := c.kafkaSASL()
	return kafka.Options{Brokers: c.KafkaBrokers, TLS: conf, SASL: login}, own, err
}

// clickHouseOptions returns how to reach ClickHouse, and our certificate to it,
// if any.
func (c *config) clickHouseOptions() (clickhouse.Options, *certificate, error) {
	conf, own, err := c.clickHouseTLS().load()
	return clickhouse.Options{
		Addr: c.clickHouseAddr(), Database: c.ClickHouseDatabase, Username: c.ClickHouseUsername,
		Password: string(c.ClickHousePassword), TLS: conf, Compress: c.ClickHouseCompress && !c.Embedded,
	}, own, err
}

func (c *config) validateKeys() (errs []error) {
	for _, k := range []struct {
		name string
		keys []string
	}{{"WRITE_KEYS", c.WriteKeys}, {"READ_KEYS", c.ReadKeys}} {
		if err := server.CheckKeys(k.keys); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", k.name, err))
		}
	}
	if _, err := c.loadKeys(); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// validateTLS reads every file once, so that a path with a typing error is found
// at the start and not at the first connection.
func (c *config) validateTLS() (errs []error) {
	_, _, kafkaErr := c.kafkaTLS().load()
	_, loginErr := c.kafkaSASL()
	_, _, clickHouseErr := c.clickHouseTLS().load()
	_, _, listenErr := c.listenTLS()
	for _, err := range []error{listenErr, kafkaErr, loginErr, clickHouseErr} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	if c.Embedded && (c.KafkaTLS || c.SASLMechanism != "" || c.ClickHouseTLS) {
		errs = append(errs, errors.New("KAFKA_TLS, KAFKA_SASL_MECHANISM and CLICKHOUSE_TLS are for servers elsewhere; EMBEDDED=true brings its own, inside"))
	}
	return errs
}
