package logging

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// stuck is a pipe that is read when the test says so.
type stuck struct {
	sheet
	read chan struct{}
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.read
	return s.sheet.Write(p)
}

func TestNobodyWaitsForAStuckWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stuck{read: make(chan struct{})}
		itself, _ := loggerTo(s, slog.LevelInfo)
		w := NewWriter(s, func(dropped int64) { itself.Warn("lines lost", "lines", dropped) })
		log, _ := loggerTo(w, slog.LevelInfo)
		var lines []string
		for i := range 1 + maxWaiting { // one is being written
			log.Info("line", "i", i)
			lines = append(lines, fmt.Sprintf("level=INFO msg=line i=%d", i))
			synctest.Wait()
		}
		log.Info("one too many")
		log.Info("another")
		close(s.read)
		synctest.Wait()
		want(t, &s.sheet, append(lines, `level=WARN msg="lines lost" lines=2`)...)
		log.Info("as before")
		w.Close(time.Hour)
		want(t, &s.sheet, "level=INFO msg=\"as before\"")
		log.Info("too late")
	})
}

func TestCloseGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stuck{read: make(chan struct{})}
		w := NewWriter(s, nil)
		_, _ = w.Write([]byte("a\n"))
		started := time.Now()
		w.Close(time.Second)
		if took := time.Since(started); took != time.Second {
			t.Errorf("took %s; want 1s", took)
		}
		close(s.read)
		synctest.Wait()
		want(t, &s.sheet, "a")
	})
}
