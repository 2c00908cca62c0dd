// Package query answers GET /metrics: parameters → plan → SQL → JSON.
package query

import (
	"context"
	"time"

	"edge/internal/clickhouse"
	"edge/internal/stat"
)

// Request is one validated metrics query over [From, To).
type Request struct {
	EventName  string
	From, To   int64  // Unix seconds; From inclusive, To exclusive
	GroupBy    string // "", channel, campaign_id, minute, hour or day
	Channel    string // only this channel; "" is every channel
	CampaignID string // only this campaign; "" is every campaign
}

// Parse reads the parameters of GET /metrics. get returns "" for an absent
// parameter and the first value of a repeated one. Every error is the
// caller's (400), one sentence that names the parameter and the rule.
func Parse(get func(name string) string, now time.Time) (Request, error) {
	panic("BUG: not built")
}

// Options bound what one query may cost. The zero value has good defaults.
type Options struct {
	Timeout   time.Duration // per query, on both sides of the connection; 10s
	MaxMemory int64         // bytes the server may use for one query; 1 GiB
}

// Engine runs queries. Safe for concurrent use.
type Engine struct{}

// New returns an engine that asks pool.
func New(pool *clickhouse.Pool, o Options) *Engine { panic("BUG: not built") }

// Query answers r.
func (e *Engine) Query(ctx context.Context, r Request) (*Result, error) {
	panic("BUG: not built")
}

// Describe adds edge_query_seconds and edge_query_source_total to set.
func (e *Engine) Describe(set *stat.Set) { panic("BUG: not built") }

// Result is the answer to one Request.
type Result struct {
	Request   Request
	Events    int64
	Users     uint64
	Groups    []Group
	Truncated bool // more groups existed than an answer holds
}

// Group is one entry of the answer's data list.
type Group struct {
	Label  string
	Events int64
	Users  uint64
}

// AppendJSON appends the answer as one JSON object.
func (r *Result) AppendJSON(dst []byte) []byte { panic("BUG: not built") }
