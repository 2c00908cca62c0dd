//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// members returns the group's members and what each owns, once it is stable.
func (n *tenant) members() (map[string]map[int32]bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	groups, err := n.admin.DescribeGroups(ctx, n.name+"-sink")
	if err != nil {
		return nil, err
	}
	g := groups[n.name+"-sink"]
	if g.Err != nil || g.State != "Stable" {
		return nil, errors.Join(g.Err, fmt.Errorf("group is %s", g.State))
	}
	out := make(map[string]map[int32]bool)
	for _, m := range g.Members {
		out[m.MemberID] = make(map[int32]bool)
		if a, ok := m.Assigned.AsConsumer(); ok {
			for _, topic := range a.Topics {
				for _, p := range topic.Partitions {
					out[m.MemberID][p] = true
				}
			}
		}
	}
	return out, nil
}

// evict makes the coordinator forget members now, which it would by itself when
// their session times out, 15 seconds after their last heartbeat. For the
// successor it is the harder case: the predecessor's insert may still run.
func (n *tenant) evict(ids ...string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = n.name + "-sink"
	for _, id := range ids {
		m := kmsg.NewLeaveGroupRequestMember()
		m.MemberID = id
		req.Members = append(req.Members, m)
	}
	shards := n.client.RequestSharded(ctx, req)
	for _, s := range shards {
		if s.Err != nil {
			n.t.Fatalf("evict %v: %v", ids, s.Err)
		}
	}
}

// group is members, waited for.
func (n *tenant) group() (members map[string]map[int32]bool) {
	n.t.Helper()
	within(n.t, time.Minute, "the group is stable", func() (err error) {
		members, err = n.members()
		return err
	})
	return members
}

// memberOf returns p's name in the group: the member that owns what p says it
// owns.
func (n *tenant) memberOf(p *edgeProcess) (id string) {
	n.t.Helper()
	within(n.t, time.Minute, p.name+" is found in the group", func() error {
		members, err := n.members()
		if err != nil {
			return err
		}
		owned := p.partitions()
		for m, assigned := range members {
			if len(owned) > 0 && maps.Equal(owned, assigned) {
				id = m
				return nil
			}
		}
		return fmt.Errorf("it owns %v; the group is %v", owned, members)
	}, p.process)
	return id
}

// joined waits until exactly sinks make up the group and each owns partitions,
// all of them together.
func (n *tenant) joined(sinks ...*edgeProcess) time.Duration {
	n.t.Helper()
	return within(n.t, time.Minute, fmt.Sprintf("%d sinks share the partitions", len(sinks)), func() error {
		members, err := n.members()
		if err != nil {
			return err
		}
		if len(members) != len(sinks) {
			return fmt.Errorf("group has members %v", members)
		}
		total := 0
		for _, p := range sinks {
			owned := p.partitions()
			if len(owned) == 0 {
				return fmt.Errorf("%s owns nothing", p.name)
			}
			total += len(owned)
		}
		if total != partitions {
			return fmt.Errorf("%d partitions are owned", total)
		}
		return nil
	})
}

const partitions = 4
