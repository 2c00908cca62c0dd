package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kfake"
	"golang.org/x/sys/unix"
)

// kfakeLog is kfake's logger, and the only place where kfake tells that the
// disk failed it: a commit that could not be written is answered as success.
// So the log lines are counted, and the ones that leave a torn entry behind
// are acted upon here, on kfake's goroutine, before the next write.
type kfakeLog struct {
	log   *slog.Logger
	dir   string
	stats *stats

	disk atomic.Pointer[diskWatch] // nil while the log is being loaded

	mu   sync.Mutex
	save error // what went wrong while the cluster was saved
}

// tornBy maps a message to the state log whose tail it leaves torn.
var tornBy = map[string]string{
	"persist group entry write: %v": "groups.log",
	"persist pid entry write: %v":   "pids.log",
}

// Logf implements kfake.Logger.
func (l *kfakeLog) Logf(level kfake.LogLevel, format string, args ...any) {
	switch {
	case strings.HasPrefix(format, "persist to disk"), strings.HasPrefix(format, "save session state"):
		l.mu.Lock()
		l.save = fmt.Errorf(format, args...)
		l.mu.Unlock()
		fallthrough
	case strings.HasPrefix(format, "persist "), strings.HasPrefix(format, "compact "):
		l.diskError(args)
	}
	if name := tornBy[format]; name != "" {
		if err := cutTornTail(filepath.Join(l.dir, name)); err != nil {
			l.log.Error("repair a state log of the embedded broker", "err", err)
		}
	}
	if lv := slogLevel(level); l.log.Enabled(context.Background(), lv) {
		// The format is the message: it is what tells one kind of line from another.
		l.log.Log(context.Background(), lv, "embedded broker: "+format, "text", fmt.Sprintf(format, args...))
	}
}

// diskError counts a failed write. One that is not for want of space will not
// heal by itself.
func (l *kfakeLog) diskError(args []any) {
	disk := l.disk.Load()
	for _, a := range args {
		if err, ok := a.(error); ok && disk != nil && (errors.Is(err, unix.EIO) || errors.Is(err, unix.EROFS)) {
			disk.fail(err)
			return
		}
	}
	l.stats.diskErrors.Inc()
}

func (l *kfakeLog) saveError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.save
}

// slogLevel keeps kfake's per-request chatter, its Info, out of our Info.
func slogLevel(level kfake.LogLevel) slog.Level {
	switch level {
	case kfake.LogLevelError:
		return slog.LevelError
	case kfake.LogLevelWarn:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}
