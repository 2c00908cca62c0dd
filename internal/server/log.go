package server

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// rareLog logs the first line of a kind and then one per period with the
// number left out between: an outage is one line per period, not one per request.
type rareLog struct {
	log   *slog.Logger
	every time.Duration

	mu    sync.Mutex
	kinds map[string]*rare
}

type rare struct {
	last       time.Time
	suppressed int
}

// Error logs msg, which is the kind, with args.
func (l *rareLog) Error(msg string, args ...any) { l.write(slog.LevelError, msg, args) }

// Warn logs msg, which is the kind, with args.
func (l *rareLog) Warn(msg string, args ...any) { l.write(slog.LevelWarn, msg, args) }

func (l *rareLog) write(level slog.Level, msg string, args []any) {
	l.mu.Lock()
	if l.kinds == nil {
		l.kinds = make(map[string]*rare)
	}
	k := l.kinds[msg]
	now := time.Now()
	if k != nil && now.Sub(k.last) < l.every {
		k.suppressed++
		l.mu.Unlock()
		return
	}
	if k == nil {
		k = new(rare)
		l.kinds[msg] = k
	}
	suppressed := k.suppressed
	k.last, k.suppressed = now, 0
	l.mu.Unlock()
	if suppressed > 0 {
		args = append(args, "suppressed", suppressed)
	}
	l.log.Log(context.Background(), level, msg, args...)
}
