package kafka

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Cleanup is what a topic removes by itself.
type Cleanup struct {
	Age     time.Duration // records that are older; negative: none
	Bytes   int64         // the oldest of a partition that has more; negative: none
	Compact bool          // all but the last record of a key
}

// TopicCleanup asks how a topic is cleaned up. It takes the right to describe its
// configuration.
func TopicCleanup(ctx context.Context, cl *kgo.Client, topic string) (Cleanup, error) {
	configs, err := kadm.NewClient(cl).DescribeTopicConfigs(ctx, topic)
	if err != nil {
		return Cleanup{}, fmt.Errorf("describe topic %s: %w", topic, err)
	}
	config, err := configs.On(topic, nil)
	if err == nil {
		err = config.Err
	}
	if err != nil {
		return Cleanup{}, fmt.Errorf("describe topic %s: %w", topic, err)
	}
	ms, c := int64(-1), Cleanup{Bytes: -1}
	for _, e := range config.Configs {
		switch e.Key {
		case "retention.ms":
			ms, err = strconv.ParseInt(e.MaybeValue(), 10, 64)
		case "retention.bytes":
			c.Bytes, err = strconv.ParseInt(e.MaybeValue(), 10, 64)
		case "cleanup.policy":
			c.Compact = strings.Contains(e.MaybeValue(), "compact")
		}
		if err != nil {
			return Cleanup{}, fmt.Errorf("%s of topic %s: %w", e.Key, topic, err)
		}
	}
	c.Age = time.Duration(min(ms, math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
	return c, nil
}

// Shorter returns what of c may remove a record within age, 0 for ever, in words; empty:
// nothing does.
func (c Cleanup) Shorter(age time.Duration) string {
	var what []string
	if c.Age >= 0 && (age == 0 || c.Age < age) {
		what = append(what, fmt.Sprintf("retention.ms=%d", c.Age.Milliseconds()))
	}
	if c.Bytes >= 0 {
		what = append(what, fmt.Sprintf("retention.bytes=%d", c.Bytes))
	}
	if c.Compact {
		what = append(what, "cleanup.policy=compact")
	}
	return strings.Join(what, ", ")
}
