package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"edge/internal/stat"
)

// Errors counts what goes wrong by operation and code. It is a kgo hook too, so
// that connections and requests that broke are seen and not only what kgo gave
// up on. An error inside an answer that kgo retries (a leader that moved) is
// kgo's own affair and not counted.
type Errors struct {
	mu     sync.Mutex
	counts map[[2]string]uint64
}

// Count adds one error of op; err nil counts nothing.
func (e *Errors) Count(op string, err error) {
	if err == nil || e == nil {
		return
	}
	code := "client"
	var ke *kerr.Error
	switch {
	case errors.As(err, &ke):
		code = ke.Message
	case isTLS(err):
		code = "tls"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, kgo.ErrRecordTimeout):
		code = "deadline"
	case isNet(err):
		code = "network"
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.counts == nil {
		e.counts = make(map[[2]string]uint64)
	}
	e.counts[[2]string{op, code}]++
}

// isTLS reports whether the sides do not trust each other's certificate or speak
// TLS to one that does not: nothing that waiting helps.
func isTLS(err error) bool {
	var cert *tls.CertificateVerificationError
	var alert tls.AlertError
	var header tls.RecordHeaderError
	return errors.As(err, &cert) || errors.As(err, &alert) || errors.As(err, &header)
}

func isNet(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// OnBrokerConnect implements kgo.HookBrokerConnect.
func (e *Errors) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	e.Count("connect", err)
}

// OnBrokerE2E implements kgo.HookBrokerE2E.
func (e *Errors) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, e2e kgo.BrokerE2E) {
	if err := e2e.Err(); err != nil {
		e.Count(kmsg.NameForKey(key), err)
	}
}

// known are the errors to expect. Each is there from the start: rate() and
// increase() see nothing of a counter whose first sample is its first error.
// What is not among them, a code that some broker made up, begins at 1.
var known = func() (pairs [][2]string) {
	add := func(codes []string, ops ...string) {
		for _, op := range ops {
			for _, code := range codes {
				pairs = append(pairs, [2]string{op, code})
			}
		}
	}
	sent := []string{"network", "deadline", "client"}
	add(sent, "connect", "produce", "fetch", "commit", "list_offsets")
	for _, key := range []kmsg.Key{
		kmsg.Produce, kmsg.Fetch, kmsg.ListOffsets, kmsg.Metadata, kmsg.OffsetCommit, kmsg.OffsetFetch, kmsg.FindCoordinator,
		kmsg.JoinGroup, kmsg.Heartbeat, kmsg.LeaveGroup, kmsg.SyncGroup, kmsg.SASLHandshake, kmsg.SASLAuthenticate,
		kmsg.ApiVersions, kmsg.CreateTopics, kmsg.InitProducerID,
	} {
		add(sent[:2], kmsg.NameForKey(int16(key)))
	}
	answered := func(op string, errs ...*kerr.Error) {
		for _, err := range errs {
			add([]string{err.Message}, op)
		}
	}
	add([]string{"tls"}, "connect")
	answered("connect", kerr.SaslAuthenticationFailed, kerr.UnsupportedSaslMechanism, kerr.IllegalSaslState)
	answered("produce", kerr.NotLeaderForPartition, kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend, kerr.UnknownTopicOrPartition,
		kerr.TopicAuthorizationFailed, kerr.MessageTooLarge, kerr.RequestTimedOut, kerr.KafkaStorageError)
	answered("fetch", kerr.OffsetOutOfRange, kerr.UnknownTopicOrPartition, kerr.TopicAuthorizationFailed, kerr.KafkaStorageError)
	answered("commit", kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.RebalanceInProgress, kerr.CoordinatorNotAvailable,
		kerr.NotCoordinator, kerr.GroupAuthorizationFailed)
	answered("list_offsets", kerr.NotLeaderForPartition, kerr.UnknownTopicOrPartition, kerr.TopicAuthorizationFailed)
	return pairs
}()

// Describe adds edge_kafka_errors_total to set.
func (e *Errors) Describe(set *stat.Set) {
	set.CounterVec("edge_kafka_errors_total", "Errors of Kafka connections, requests and records by operation and code.",
		[]string{"op", "code"}, func(emit stat.Emit) {
			e.mu.Lock()
			defer e.mu.Unlock()
			for _, k := range known {
				if _, counted := e.counts[k]; !counted {
					emit(0, k[0], k[1])
				}
			}
			for k, n := range e.counts {
				emit(float64(n), k[0], k[1])
			}
		})
}
