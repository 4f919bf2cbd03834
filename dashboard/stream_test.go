package dashboard

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

// timedWriter notes what is written to a client when.
type timedWriter struct {
	header http.Header
	began  time.Time

	mu     sync.Mutex
	writes []string // "1.5s 2": two events after so long
}

func (w *timedWriter) Header() http.Header { return w.header }
func (w *timedWriter) WriteHeader(int)     {}
func (w *timedWriter) Flush()              {}

func (w *timedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := string(b)
	if n := strings.Count(text, "data: "); strings.Contains(text, "event: beat") {
		w.writes = append(w.writes, fmt.Sprint(time.Since(w.began), " beat"))
	} else if n > 0 {
		w.writes = append(w.writes, fmt.Sprint(time.Since(w.began), " ", n))
	}
	return len(b), nil
}

// follow reads a stream until the context ends, on fake time.
func follow(ctx context.Context, t *testing.T, c *Collector, path string) *timedWriter {
	w := &timedWriter{header: http.Header{}, began: time.Now()}
	r := httptest.NewRequest("GET", "http://localhost"+path, nil).WithContext(ctx)
	h := newTestHandler(t, c, nil)
	go h.ServeHTTP(w, r)
	synctest.Wait()
	return w
}

// Of a large mesh the tables come less often, and beats between them.
func TestStreamOfALargeMeshBeats(t *testing.T) {
	for edges, want := range map[int][]string{
		1:   {"0s 1", "1s 1", "2s 1", "3s 1", "4s 1", "5s 1", "6s 1"},
		120: {"0s 1", "1s beat", "2s beat", "3s 1", "4s beat", "5s beat", "6s 1"},
		900: {"0s 1", "1s beat", "2s beat", "3s beat", "4s beat", "5s 1", "6s beat"},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCollector(t, func(config *Config) { config.MaxEdges = 1000 })
			p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
			var list []*tullev1.Edge
			for i := range edges {
				list = append(list, outbound(fmt.Sprint("s", i), "").add(time.Millisecond).message())
			}
			p.report(list...)
			synctest.Wait() // until it is taken
			ctx, cancel := context.WithCancel(t.Context())
			w := follow(ctx, t, c, "/api/v1/stream")
			time.Sleep(6 * time.Second)
			synctest.Wait()
			if !slices.Equal(w.writes, want) {
				t.Errorf("%d edges: %v, want %v", edges, w.writes, want)
			}
			cancel()
			_ = p.end()
		})
	}
}

// The first request after a while is shown at once, many come together.
func TestTapSendsEventsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
		ctx, cancel := context.WithCancel(t.Context())
		w := follow(ctx, t, c, "/api/v1/tap?together_ms=1000")
		last := 0
		for _, at := range []int{0, 200, 400, 1500, 1600, 4000} {
			time.Sleep(time.Duration(at-last) * time.Millisecond)
			last = at
			p.tap(&tullev1.TapEvent{Service: "web", Outcome: "success"})
			synctest.Wait()
		}
		want := []string{"0s 1", "1s 2", "2s 2", "4s 1"}
		if !slices.Equal(w.writes, want) {
			t.Errorf("%v, want %v", w.writes, want)
		}
		cancel()
		_ = p.end()
	})
}

// A rate is of the time that was covered: the first slice is one only in part.
func TestSparklinesBeginWithTheTimeCovered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(3 * time.Second) // into a slice
		c := newTestCollector(t, nil)
		p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
		tr := outbound("web", "web-1")
		for range 12 {
			time.Sleep(time.Second)
			p.report(tr.add(make([]time.Duration, 10)...).message())
		}
		synctest.Wait()
		e := theEdge(t, c, DefaultWindow)
		if got := e.History[len(e.History)-2:]; got[0] != 10 || got[1] != 10 {
			t.Errorf("a steady 10 a second is drawn as %v", got)
		}
		s := c.timeline(subject{service: "web"}, 5*time.Minute, 1).series(DefaultWindow)
		if got := s.RPS[len(s.RPS)-2:]; got[0] != 10 || got[1] != 10 {
			t.Errorf("a steady 10 a second is told as %v", got)
		}
		_ = p.end()
	})
}
