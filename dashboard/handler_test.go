package dashboard

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

func newTestHandler(t testing.TB, c *Collector, change func(*HandlerConfig)) http.Handler {
	t.Helper()
	config := HandlerConfig{Collector: c, Version: "0.1", TrustDomain: "tulle.local", URL: "http://127.0.0.1:4180/"}
	if change != nil {
		change(&config)
	}
	h, err := Handler(config)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func get(h http.Handler, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "http://localhost:4180"+path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestOnlyThisMachinesPagesMayRead(t *testing.T) {
	h := newTestHandler(t, newTestCollector(t, nil), func(c *HandlerConfig) { c.Hosts = []string{"mesh.example.org"} })
	for _, tc := range []struct {
		path, key, value string
		want             int
	}{
		{"/api/v1/edges", "Host", "localhost:4180", 200},
		{"/api/v1/edges", "Host", "LOCALHOST", 200},
		{"/api/v1/edges", "Host", "127.0.0.1:4180", 200},
		{"/api/v1/edges", "Host", "[::1]:4180", 200},
		{"/api/v1/edges", "Host", "mesh.example.org:4180", 200},
		{"/api/v1/edges", "Host", "evil.example.org:4180", 403},
		{"/api/v1/edges", "Host", "localhost.example.org", 403},
		{"/api/v1/edges", "Host", "127.0.0.1.example.org", 403},
		{"/api/v1/edges", "Host", "10.84.0.1:4180", 403},
		{"/api/v1/edges", "Host", "", 403},
		{"/", "Host", "evil.example.org", 403},
		{"/api/v1/edges", "Origin", "http://localhost:4180", 200},
		{"/api/v1/edges", "Origin", "http://localhost:9999", 403},
		{"/api/v1/edges", "Origin", "http://evil.example.org", 403},
		{"/api/v1/edges", "Origin", "null", 403},
		{"/api/v1/edges", "Sec-Fetch-Site", "cross-site", 403},
		{"/api/v1/edges", "Sec-Fetch-Site", "same-site", 403},
		{"/api/v1/edges", "Sec-Fetch-Site", "same-origin", 200},
		{"/", "Sec-Fetch-Site", "cross-site", 200},
	} {
		w := get(h, tc.path, tc.key, tc.value)
		if w.Code != tc.want {
			t.Errorf("%s with %s %q: %d, want %d", tc.path, tc.key, tc.value, w.Code, tc.want)
		}
		for key, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin", "Content-Security-Policy": contentPolicy,
		} {
			if got := w.Header().Get(key); got != want {
				t.Errorf("%s: %s is %q", tc.path, key, got)
			}
		}
		if w.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Error("another origin is allowed")
		}
	}
}

func TestErrorsAreClear(t *testing.T) {
	h := newTestHandler(t, newTestCollector(t, nil), nil)
	broken := newTestHandler(t, newTestCollector(t, nil), func(c *HandlerConfig) {
		c.Inventory = func(context.Context) (*tullev1.ListResponse, error) { return nil, errors.New("out of order") }
	})
	for _, tc := range []struct {
		h            http.Handler
		method, path string
		want         int
		text         string
	}{
		{h, "GET", "/api/v1/edges?range=2h", 400, "from 5s to 1h"},
		{h, "GET", "/api/v1/stream?range=x", 400, "range=x"},
		{h, "GET", "/api/v1/tap?status=9", 400, "503"},
		{h, "GET", "/api/v1/tap?min_ms=NaN", 400, "milliseconds"},
		{h, "GET", "/api/v1/tap?max=1e9", 400, "events per second"},
		{h, "GET", "/api/v1/tap?max=100000", 400, "1000"},
		{h, "GET", "/api/v1/edges?since=10s", 400, "there are: range, name"},
		{h, "GET", "/api/v1/edges?range=5m&range=1h", 400, "once"},
		{h, "GET", "/api/v1/edges?%zz", 400, "name=value"},
		{h, "GET", "/api/v1/series", 400, "service=NAME"},
		{h, "GET", "/api/v1/series?service=web&source=x", 400, "service=NAME"},
		{h, "GET", "/api/v1/series?source=x", 400, "destination=NAME"},
		{h, "GET", "/api/v1/series?service=web&range=start", 400, "1h"},
		{h, "GET", "/api/v1/heatmap?service=" + strings.Repeat("x", 300), 400, "253"},
		{h, "GET", "/api/v1/routes", 400, "service=NAME"},
		{h, "GET", "/api/v1/routes?service=web&limit=0", 400, "1 to 100"},
		{h, "GET", "/api/v2/x", 404, "openapi.yaml"},
		{h, "GET", "/../etc/passwd", 404, ""},
		{h, "GET", "/nothing", 404, "at /"},
		{h, "POST", "/api/v1/edges", 405, "GET"},
		{h, "DELETE", "/api/v1/workloads", 405, "GET"},
		{h, "POST", "/", 405, "GET"},
		{h, "HEAD", "/api/v1/stream", 405, "GET"},
		{h, "HEAD", "/api/v1/tap", 405, "GET"},
		{broken, "GET", "/api/v1/edges", 503, "out of order"},
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(tc.method, "http://localhost/", nil)
		r.URL.Path, r.URL.RawQuery, _ = strings.Cut(tc.path, "?")
		tc.h.ServeHTTP(w, r)
		var answer struct{ Error string }
		if w.Code == 301 || w.Code == 307 { // the mux cleans the path first
			continue
		}
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != tc.want || !strings.Contains(answer.Error, tc.text) {
			t.Errorf("%s %s: %d %s; want %d with %q", tc.method, tc.path, w.Code, w.Body, tc.want, tc.text)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/api/v1/edges", strings.NewReader("body")))
	if w.Code != 400 {
		t.Errorf("a request with a body: %d", w.Code)
	}
}

func TestToldView(t *testing.T) {
	c := newTestCollector(t, nil)
	if w := get(newTestHandler(t, c, nil), "/api/v1/told"); w.Code != 404 {
		t.Errorf("where nobody knows: %d %s", w.Code, w.Body)
	}
	h := newTestHandler(t, c, func(conf *HandlerConfig) {
		conf.Told = func() map[string]int { return map[string]int{"spiffe://x/ns/a/sa/b@10.0.0.1": 2} }
	})
	if w := get(h, "/api/v1/told"); w.Code != 200 || w.Body.String() != `{"destinations":{"spiffe://x/ns/a/sa/b@10.0.0.1":2}}`+"\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := get(h, "/api/v1/told?range=1h"); w.Code != 400 {
		t.Errorf("a parameter that is not there: %d", w.Code)
	}
}

const hostile = `</script><img src=x onerror=alert(1)>"';--` + "\x1b[31m\u2028"

func TestHostileNamesStayData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		h := newTestHandler(t, c, nil)
		p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
		e := outbound("web", "web-1").add(1).message()
		e.Service, e.PeerWorkload, e.PeerAddress, e.Protocol = hostile, hostile, hostile, "<b>"
		p.report(e)
		synctest.Wait()
		for _, path := range []string{"services", "edges", "replicas"} {
			w := get(h, "/api/v1/"+path+"?range=start")
			body := w.Body.String()
			if w.Header().Get("Content-Type") != "application/json; charset=utf-8" || strings.ContainsAny(body, "<>\x1b\u2028") {
				t.Errorf("%s: %s", path, body)
			}
			var answer Answer[struct{ Name, Service, Destination string }]
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || len(answer.Items) != 1 || answer.Items[0].Name+answer.Items[0].Service+answer.Items[0].Destination != hostile {
				t.Errorf("%s: the name did not survive: %v %q", path, err, answer.Items)
			}
		}
	})
}

// listen serves the handler and returns a client for it, which ends with the test.
func listen(t *testing.T, h http.Handler) (*http.Server, *http.Client) {
	t.Helper()
	listener, err := net.Listen("unix", t.TempDir()+"/api.sock")
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(h)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", listener.Addr().String())
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return server, &http.Client{Transport: transport}
}

func openStream(t *testing.T, client *http.Client, path, lastID string) (*bufio.Reader, io.Closer) {
	t.Helper()
	r, err := http.NewRequest("GET", "http://localhost"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Last-Event-ID", lastID)
	w, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Body.Close() })
	if w.StatusCode != 200 || !strings.HasPrefix(w.Header.Get("Content-Type"), "text/event-stream") {
		t.Fatalf("%s: %s", path, w.Status)
	}
	return bufio.NewReader(w.Body), w.Body
}

// nextEvent reads up to the next event that has data.
func nextEvent(t *testing.T, r *bufio.Reader) (id, data string) {
	t.Helper()
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if v, ok := strings.CutPrefix(line, "id: "); ok {
			id = strings.TrimSpace(v)
		}
		if v, ok := strings.CutPrefix(line, "data: "); ok {
			return id, v
		}
	}
}

func TestStreamResumes(t *testing.T) {
	_, client := listen(t, newTestHandler(t, newTestCollector(t, nil), nil))
	r, body := openStream(t, client, "/api/v1/stream?range=1m", "")
	id, data := nextEvent(t, r)
	var table Table
	if err := json.Unmarshal([]byte(data), &table); err != nil || table.Range != "1m" || table.About.Version != "0.1" || table.Edges == nil {
		t.Fatalf("%v: %s", err, data)
	}
	_ = body.Close()
	r, _ = openStream(t, client, "/api/v1/stream?range=1m", id)
	if next, _ := nextEvent(t, r); next == id {
		t.Errorf("the frame %s was sent again to a client that has it", id)
	}
}

func TestShutdownEndsStreams(t *testing.T) {
	server, client := listen(t, newTestHandler(t, newTestCollector(t, nil), nil))
	r, _ := openStream(t, client, "/api/v1/stream", "")
	nextEvent(t, r)
	if err := server.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

func TestTapEndsWithItsReader(t *testing.T) {
	c := newTestCollector(t, nil)
	_, client := listen(t, newTestHandler(t, c, nil))
	p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
	r, body := openStream(t, client, "/api/v1/tap?service=web&max=7", "")
	if m := <-p.control; m.GetTapStart().GetMaxPerSecond() != 70 {
		t.Errorf("the proxy is told %v", m)
	}
	p.tap(&tullev1.TapEvent{Service: "db", Method: "GET", Path: "/db"})
	p.tap(&tullev1.TapEvent{Service: "web", Method: "GET", Path: "/" + hostile, Outcome: "success", Status: 200})
	_, data := nextEvent(t, r)
	var e Event
	if err := json.Unmarshal([]byte(data), &e); err != nil || e.Path != "/"+hostile || e.Source != "client" || strings.Contains(data, "<") {
		t.Errorf("%v: %s", err, data)
	}
	_ = body.Close()
	if m := <-p.control; m.GetTapStop() == nil {
		t.Errorf("after the reader is gone the proxy is told %v", m)
	}
	if err := p.end(); err != nil {
		t.Error(err)
	}
}

func TestTooManyStreams(t *testing.T) {
	h := newTestHandler(t, newTestCollector(t, nil), nil)
	_, client := listen(t, h)
	for range maxStreams {
		openStream(t, client, "/api/v1/stream", "")
	}
	w := get(h, "/api/v1/stream")
	if w.Code != 503 || !strings.Contains(w.Body.String(), "streams are open") {
		t.Errorf("one stream too many: %d %s", w.Code, w.Body)
	}
}

func TestFramesAreMadeOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		config := HandlerConfig{Collector: newTestCollector(t, nil), Inventory: func(context.Context) (*tullev1.ListResponse, error) {
			calls++
			return &tullev1.ListResponse{}, nil
		}}
		h := &Site{config: config, frames: map[Window]*frame{}}
		for range 5 {
			for range 100 {
				if _, err := h.frameAt(t.Context(), DefaultWindow); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second)
		}
		if calls != 5 {
			t.Errorf("%d snapshots for 100 clients in 5 s, want 5", calls)
		}
		time.Sleep(5 * time.Second)
		if _, err := h.frameAt(t.Context(), 0); err != nil || len(h.frames) != 1 {
			t.Errorf("%d frames are kept (%v), want 1", len(h.frames), err)
		}
	})
}

func TestMeans(t *testing.T) {
	for _, tt := range []struct {
		asked string
		names []string
		want  bool
	}{
		{"web", []string{"client", "web"}, true},
		{"web", []string{"web.shop"}, false},
		{"*.shop", []string{"client", "web.shop"}, true},
		{"*.shop", []string{"web.workshop", "shop"}, false},
		{"*", []string{"web"}, false},
		{"*", []string{"*"}, true},
	} {
		if got := means(tt.asked, tt.names...); got != tt.want {
			t.Errorf("%q of %q: %v", tt.asked, tt.names, got)
		}
	}
}
