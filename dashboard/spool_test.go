package dashboard

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"testing/synctest"
	"time"
)

// keepHistory runs a control plane for some seconds of steady traffic.
func keepHistory(t *testing.T, dir string, seconds int) *Collector {
	t.Helper()
	c := newTestCollector(t, func(config *Config) { config.HistoryDir = dir })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	site, err := Handler(HandlerConfig{Collector: c})
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- site.Run(ctx) }()
	p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
	tr := outbound("web", "web-1")
	for range seconds {
		time.Sleep(time.Second)
		p.report(tr.add(time.Millisecond, 20*time.Millisecond).addFailures(1).message())
	}
	synctest.Wait()
	_ = p.end()
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRestartKeepsTheHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "history")
		keepHistory(t, dir, 1500)   // more than one file
		time.Sleep(2 * time.Minute) // nobody runs
		keepHistory(t, dir, 60)
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, info, err)
		}
		files, err := spoolFiles(dir)
		if err != nil || len(files) != 4 {
			t.Fatalf("%d files, %v; want 4", len(files), err)
		}
		for _, f := range files {
			if info, err := os.Stat(f.path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", f.path, info.Mode(), err)
			}
		}
		c := newTestCollector(t, func(config *Config) { config.HistoryDir = dir })
		s := c.timeline(subject{source: "client", destination: "web"}, time.Hour, 1).series(longestWindow)
		known, gap := 0, 0
		for i, rps := range s.RPS {
			switch {
			case !math.IsNaN(rps):
				if known++; rps != 3 || s.Success[i] < 0.66 || s.Success[i] > 0.67 || s.P99[i] < 0.0195 || s.P99[i] > 0.0205 {
					t.Fatalf("step %d: %v requests per second, success %v, p99 %v", i, rps, s.Success[i], s.P99[i])
				}
			case known > 0:
				gap++
			}
		}
		if known != 1560/5 || gap != 120/5 {
			t.Errorf("%d steps are known, then %d are not; want 312 and 24", known, gap)
		}
		if edge := c.snapshot(longestWindow, nil).tables().edgeRows()[0]; edge.Requests != 3*1560 || edge.RPS != 3 {
			t.Errorf("the hour: %+v", edge.Figures)
		}
		time.Sleep(2 * time.Hour)
		keepHistory(t, dir, 10)
		if files, _ := spoolFiles(dir); len(files) != 1 {
			t.Errorf("%d files are left after two hours, want the newest", len(files))
		}
	})
}

func writtenSpool(t testing.TB, columns int) []byte {
	t.Helper()
	dir := t.TempDir()
	s := &spool{dir: dir}
	key := &seriesKey{edge: edgeRow{source: "client", service: "web", serviceKind: kindService, security: "mtls"}}
	for n := range int64(columns) {
		c := newColumn(100+n, 1, map[uint32]amount{0: {counts{requests: 2}, packedOf(time.Millisecond, time.Second)}})
		if err := s.write([]*column{c}, []*seriesKey{key}, time.Unix(500, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	files, err := spoolFiles(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	data, err := os.ReadFile(files[0].path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func loaded(data []byte) (*history, int64) {
	h, next := newHistory(1<<20, 100), int64(0)
	_ = h.loadFile(bytes.NewReader(data), 200, &next)
	return h, next
}

func TestTornTailIsDropped(t *testing.T) {
	data := writtenSpool(t, 4)
	whole, _ := loaded(data)
	if len(whole.columns) != 4 {
		t.Fatalf("%d columns, want 4", len(whole.columns))
	}
	three := 0
	for cut := range data {
		h, _ := loaded(data[:cut])
		if !reflect.DeepEqual(h.columns, whole.columns[:len(h.columns)]) && len(h.columns) > 0 || len(h.columns) > 3 {
			t.Fatalf("cut at %d: %d columns", cut, len(h.columns))
		}
		if len(h.columns) == 3 {
			three++
		}
		flipped := bytes.Clone(data)
		flipped[cut] ^= 0x10
		if h, _ := loaded(flipped); len(h.columns) == 4 {
			t.Fatalf("a bit that fell over at %d was not noticed", cut)
		}
	}
	if three == 0 {
		t.Error("no cut left three columns")
	}
}

func TestDirectoryThatCannotBeUsed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := NewCollector(Config{PeerID: newTestCollector(t, nil).config.PeerID, HistoryDir: file})
	if err == nil {
		t.Error("a file was taken for a directory")
	}
	var log bytes.Buffer
	c := newTestCollector(t, func(config *Config) {
		config.HistoryDir, config.Log = t.TempDir(), slog.New(slog.NewTextHandler(&log, nil))
	})
	c.spool.dir = file
	c.mu.Lock()
	c.closeLocked()
	c.mu.Unlock()
	if c.save(); !bytes.Contains(log.Bytes(), []byte("not kept")) {
		t.Errorf("the log says %s", log.String())
	}
}

func FuzzSpool(f *testing.F) {
	f.Add(writtenSpool(f, 3)[len(spoolMagic)+frameHead:])
	f.Add([]byte{100, 1, 0})
	f.Fuzz(func(t *testing.T, payload []byte) {
		h, next := newHistory(1<<20, 20), int64(0)
		if _, err := h.loadFrame(payload, []seriesKey{{}, {}}, 1000, &next); err != nil {
			return
		}
		for _, c := range h.columns {
			c.each(func(id uint32, a amount) {
				if h.keys[id] == nil || !a.latency.valid() {
					t.Fatal(fmt.Sprint("series ", id, " is not known"))
				}
			})
		}
	})
}
