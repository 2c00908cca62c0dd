package sink

import (
	"context"
	"log/slog"
	"time"

	"edge/internal/clickhouse"
	"edge/internal/stat"
)

// Auditor repeats the audit of what was received lately and exports what it
// found, so that an alert can say "it does not add up" before anybody asks.
type Auditor struct {
	ClickHouse *clickhouse.Pool
	Log        *Log
	Logger     *slog.Logger
	Every      time.Duration // between two audits
	Look       time.Duration // how far back each looks
	calm       time.Duration // as in Audit

	missing, extra, mismatched, lastSuccess stat.Gauge
}

// Run audits until ctx ends.
func (a *Auditor) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(a.Every):
		}
		a.once(ctx)
	}
}

func (a *Auditor) once(ctx context.Context) {
	audit := Audit{ClickHouse: a.ClickHouse, Since: time.Now().Add(-a.Look), Log: a.Log, calm: a.calm}
	r, err := a.run(ctx, &audit)
	if err != nil && ctx.Err() == nil {
		a.Logger.Warn("audit not finished, trying without Kafka: what seems to be missing then may be under way", "err", err)
		audit.Log = nil
		r, err = a.run(ctx, &audit)
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		a.Logger.Warn("audit not finished", "err", err)
		return
	}
	a.missing.Set(r.Missing())
	a.extra.Set(r.Extra())
	a.mismatched.Set(r.Mismatched + r.Users)
	a.lastSuccess.Set(time.Now().Unix())
	if !r.OK() {
		a.Logger.Error("audit: it does not add up", "missing", r.Missing(), "extra", r.Extra(),
			"mismatched", r.Mismatched, "users", r.Users, "problems", r.Problems)
	}
}

func (a *Auditor) run(ctx context.Context, audit *Audit) (*Report, error) {
	ctx, cancel := context.WithTimeout(ctx, max(a.Every, time.Minute))
	defer cancel()
	return audit.Run(ctx)
}

// Describe adds the audit's metrics to set.
func (a *Auditor) Describe(set *stat.Set) {
	gauge := func(g *stat.Gauge) func() float64 { return func() float64 { return float64(g.Load()) } }
	set.Gauge("edge_audit_missing_rows", "Records of the audited time that are neither rows, duplicates nor dead letters.", gauge(&a.missing))
	set.Gauge("edge_audit_extra_rows", "Rows of the audited time that are stored more than once.", gauge(&a.extra))
	set.Gauge("edge_audit_rollup_mismatch_rows", "Rows by which the rollups of the audited time differ from events.", gauge(&a.mismatched))
	set.Gauge("edge_audit_last_success_timestamp_seconds", "When the last audit finished.", gauge(&a.lastSuccess))
}
