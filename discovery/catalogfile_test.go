package discovery

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// logBuffer collects a log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns what was logged since the last call.
func (l *logBuffer) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

func TestCatalogFileFollowsItsFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "services.yaml")
		put := func(text string) {
			t.Helper()
			// As editors do it: another file takes the place.
			if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
		s, log := newState(t), &logBuffer{}
		file := &CatalogFile{Path: path, State: s, Log: slog.New(slog.NewTextHandler(log, nil))}
		if err := file.Load(); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("missing: %v", err)
		}
		put("services: [{name: a, addresses: [192.0.2.1], ports: [80]}]")
		if err := file.Load(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- file.Run(ctx) }()

		time.Sleep(time.Minute)
		synctest.Wait()
		if got := log.take(); got != "" {
			t.Errorf("without a change it says %s", got)
		}
		has := func(what, name, logged string) {
			t.Helper()
			if s.Load().Service(name) == nil {
				t.Errorf("%s: %s is not there", what, name)
			}
			if got := log.take(); !strings.Contains(got, logged) || strings.Count(got, "\n") != 1 {
				t.Errorf("%s: logged %q, want one line with %q", what, got, logged)
			}
		}
		put("services: [{name: b, addresses: [192.0.2.1], ports: [80]}]")
		has("changed", "b", "services=1")
		put("services: [{name: c, addresses: [192.0.2.1], ports: [80000]}]")
		has("bad", "b", "services.yaml:1: service \\\"c\\\": port 80000")
		put("services: [{name: c, addresses: [192.0.2.1], ports: [0]}]")
		has("bad in another way", "b", "port 0")
		os.Remove(path)
		time.Sleep(time.Minute)
		synctest.Wait()
		has("removed", "b", "no such file")
		put("services: [{name: b, addresses: [192.0.2.1], ports: [80]}]")
		has("back as it was", "b", "services=1")

		lease := join(t, s, JoinRequest{Service: "web"})
		put("services: [{name: web, addresses: [192.0.2.1], ports: [80]}]")
		has("name taken", "b", "tulle stop web")
		lease.Leave()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		has("name free", "web", "services=1")
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
