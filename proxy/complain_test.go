package proxy

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

type logLines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.b.String()
	l.b.Reset()
	return s
}

func TestComplaintsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lines := &logLines{}
		log := slog.New(slog.NewTextHandler(lines, nil))
		var c complaints
		for range 3 {
			c.warn(log, "trouble", "from", "10.0.0.1")
		}
		if s := lines.take(); strings.Count(s, "trouble") != 3 || strings.Contains(s, "times") {
			t.Errorf("a few: %s", s)
		}
		time.Sleep(time.Hour)
		if s := lines.take(); s != "" {
			t.Errorf("afterwards: %s", s)
		}
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() {
				for range 10 {
					c.warn(log, "trouble")
				}
			})
		}
		group.Wait()
		time.Sleep(2 * time.Second)
		s := lines.take()
		if strings.Count(s, "trouble") != complaintsPerSecond+1 || !strings.Contains(s, "times=990") {
			t.Errorf("a thousand at once: %s", s)
		}
		for range 1000 { // a steady flood
			c.warn(log, "trouble")
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		if n := strings.Count(lines.take(), "trouble"); n > 11*(complaintsPerSecond+1) || n < 10*complaintsPerSecond {
			t.Errorf("%d lines in 10 seconds of flood", n)
		}
	})
}
