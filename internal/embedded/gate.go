package embedded

import (
	"bufio"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// keys are the requests this broker answers. Everything a producer, a
// consumer and the read-only commands of kcat and rpk need is here. What is
// not: requests that empty a partition or set retention (offsets would start
// again), that drop commits, that change partition counts (a key would move to
// another partition), transactions, share groups and ACLs.
var keys = []kmsg.Key{
	kmsg.Produce, kmsg.Fetch, kmsg.ListOffsets, kmsg.Metadata,
	kmsg.OffsetCommit, kmsg.OffsetFetch, kmsg.FindCoordinator,
	kmsg.JoinGroup, kmsg.Heartbeat, kmsg.LeaveGroup, kmsg.SyncGroup,
	kmsg.DescribeGroups, kmsg.ListGroups, kmsg.ApiVersions,
	kmsg.CreateTopics, kmsg.InitProducerID, kmsg.OffsetForLeaderEpoch,
	kmsg.DescribeConfigs, kmsg.DescribeLogDirs, kmsg.DescribeCluster,
	kmsg.DescribeProducers,
}

// keyAllowed is keys as a table: the gate looks at every request.
var keyAllowed = func() (t [128]bool) {
	for _, k := range keys {
		t[k] = true
	}
	return t
}()

// versions makes kfake announce exactly keys, so that a client sees a missing
// feature instead of a closed connection.
func versions() *kversion.Versions {
	v := kversion.Tip()
	v.EachMaxKeyVersion(func(k, _ int16) {
		if k < 0 || int(k) >= len(keyAllowed) || !keyAllowed[k] {
			v.SetMaxKeyVersion(k, -1)
		}
	})
	return v
}

// MaxPartitions is the most partitions one request may ask for: kfake makes
// them one by one until memory ends, and a request may ask for two billion.
const MaxPartitions = 1024

// badTopics turns away what the gate cannot see without decoding: topics that
// would end the process, or that kfake's own retention would empty.
func badTopics() kfake.Fault {
	return kfake.Fault{
		Keys:  []kmsg.Key{kmsg.CreateTopics},
		Err:   kerr.PolicyViolation,
		Count: -1,
		When: func(r kmsg.Request) bool {
			return slices.ContainsFunc(r.(*kmsg.CreateTopicsRequest).Topics, badTopic)
		},
	}
}

func badTopic(t kmsg.CreateTopicsRequestTopic) bool {
	return t.Topic == "" || t.NumPartitions > MaxPartitions || len(t.ReplicaAssignment) > MaxPartitions ||
		slices.ContainsFunc(t.Configs, func(c kmsg.CreateTopicsRequestTopicConfig) bool {
			return strings.HasPrefix(c.Name, "retention.")
		})
}

const (
	// minRequest is key, version, correlation id and an absent client id.
	minRequest = 10

	// gateBuffer holds the small requests (fetch, commit, heartbeat) whole, so
	// the gate costs them no system call and saves one. The bodies of large
	// ones bypass it.
	gateBuffer = 16 << 10
)

var errRefused = errors.New("connection refused at the gate")

// gate is a client's connection as kfake sees it. kfake allocates whatever
// length a frame announces and dereferences nil for a request key it does not
// know; either would end the process and every connection with it. The gate
// looks at the first eight bytes of each frame before kfake may, and closes
// the connection instead. It follows frame borders by counting, holds nothing
// back and copies nothing that bufio would not.
type gate struct {
	net.Conn
	r        *bufio.Reader
	left     int // bytes of the current frame not handed on yet
	maxFrame int
	refuse   func(peer net.Addr, reason string, key int16, length uint32)
	onClose  func()
}

// Read is called by one goroutine at a time, as kfake does.
func (g *gate) Read(p []byte) (int, error) {
	if g.left == 0 {
		if err := g.nextFrame(); err != nil {
			return 0, err
		}
	}
	n, err := g.r.Read(p[:min(len(p), g.left)])
	g.left -= n
	return n, err
}

func (g *gate) nextFrame() error {
	head, err := g.r.Peek(8)
	if err != nil {
		return err
	}
	length, key := binary.BigEndian.Uint32(head), int16(binary.BigEndian.Uint16(head[4:]))
	reason := ""
	switch {
	case length < minRequest || uint64(length) > uint64(g.maxFrame):
		reason = "length"
	case key < 0 || int(key) >= len(keyAllowed) || !keyAllowed[key]:
		reason = "key"
	}
	if reason != "" {
		g.refuse(g.RemoteAddr(), reason, key, length)
		g.Conn.Close()
		return errRefused
	}
	g.left = 4 + int(length)
	return nil
}

func (g *gate) Close() error {
	if g.onClose != nil {
		g.onClose()
	}
	return g.Conn.Close()
}
