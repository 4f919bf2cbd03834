package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func TestParseProbe(t *testing.T) {
	for in, want := range map[string]Probe{
		"web/readiness=http://:8080/healthz?a=b": {"web/readiness", "http", 8080, "/healthz?a=b"},
		"web/liveness=https://:8443":             {"web/liveness", "https", 8443, "/"},
		"web/startup=tcp://:5432":                {"web/startup", "tcp", 5432, ""},
		"web/startup=grpc://:9090/":              {"web/startup", "grpc", 9090, ""},
		"web/startup=grpc://:9090/a.B":           {"web/startup", "grpc", 9090, "a.B"},
		"x=http://:1/a=b://:c":                   {"x", "http", 1, "/a=b://:c"},
	} {
		if got, err := ParseProbe(in); err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "x", "x=", "=http://:80/", "x=http://host:80/", "x=http://:0/", "x=http://:70000/", "x=ftp://:21/", "x=tcp://:80/x", "x=http://:/"} {
		if got, err := ParseProbe(in); err == nil {
			t.Errorf("%q: %+v", in, got)
		}
	}
}

func FuzzParseProbe(f *testing.F) {
	f.Add("web/readiness=http://:8080/healthz")
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParseProbe(s); err == nil && (p.Port == 0 || p.Name == "") {
			t.Errorf("%q: %+v", s, p)
		}
	})
}

// probed returns an admin server that knows probes of an application at port.
func probed(t *testing.T, targets ...string) *httptest.Server {
	t.Helper()
	p := &Proxy{probes: map[string]Probe{}}
	for _, target := range targets {
		probe, err := ParseProbe(target)
		if err != nil {
			t.Fatal(err)
		}
		p.probes[probe.Name] = probe
	}
	admin := httptest.NewServer(p.adminServer().Handler)
	t.Cleanup(admin.Close)
	return admin
}

func portOf(t *testing.T, addr net.Addr) uint16 {
	t.Helper()
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		t.Fatal(err)
	}
	return ap.Port()
}

func ask(t *testing.T, url string, header http.Header) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	req.Host = header.Get("Host")
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(answer.Body)
	return answer.StatusCode, string(body)
}

func TestProbeHTTP(t *testing.T) {
	app := http.NewServeMux()
	app.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.URL.RawQuery, r.Host, r.Header.Get("X-Probe"))
	})
	app.HandleFunc("/bad", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "broken", 500) })
	app.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", http.StatusFound) })
	app.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
	})
	app.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	plain, secure := httptest.NewServer(app), httptest.NewTLSServer(app)
	defer plain.Close()
	defer secure.Close()
	p, s := portOf(t, plain.Listener.Addr()), portOf(t, secure.Listener.Addr())
	admin := probed(t,
		fmt.Sprintf("web/ok=http://:%d/ok?a=1", p), fmt.Sprintf("web/bad=http://:%d/bad", p), fmt.Sprintf("web/moved=http://:%d/moved", p),
		fmt.Sprintf("web/away=http://:%d/away", p), fmt.Sprintf("web/loop=http://:%d/loop", p), fmt.Sprintf("web/tls=https://:%d/ok", s))
	for _, tt := range []struct {
		path, want string
		code       int
		header     http.Header
	}{
		{"web/ok", "a=1", 200, nil},
		{"web/ok", "a=1 example.com there", 200, http.Header{"Host": {"example.com"}, "X-Probe": {"there"}}},
		{"web/bad", "broken", 500, nil},
		{"web/moved", "", 200, nil},
		{"web/away", "", 200, nil},
		{"web/loop", "", 200, nil},
		{"web/tls", "", 200, nil},
		{"web/none", "not found", 404, nil},
		{"web/ok/more", "not found", 404, nil},
		{"", "not found", 404, nil},
	} {
		code, body := ask(t, admin.URL+"/probe/"+tt.path, tt.header)
		if code != tt.code || !strings.Contains(body, tt.want) {
			t.Errorf("%s: %d %q, want %d %q", tt.path, code, body, tt.code, tt.want)
		}
	}
	plain.Close()
	if code, body := ask(t, admin.URL+"/probe/web/ok", nil); code != 503 || !strings.Contains(body, "refused") {
		t.Errorf("without the application: %d %q", code, body)
	}
}

func TestProbeTCP(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	admin := probed(t, fmt.Sprintf("db/liveness=tcp://:%d", portOf(t, ln.Addr())))
	if code, body := ask(t, admin.URL+"/probe/db/liveness", nil); code != 200 {
		t.Errorf("%d %q", code, body)
	}
	ln.Close()
	if code, _ := ask(t, admin.URL+"/probe/db/liveness", nil); code != 503 {
		t.Errorf("nobody listens: %d", code)
	}
}

func TestProbeGRPC(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, state := grpc.NewServer(), health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, state)
	state.SetServingStatus("shop.Cart", grpc_health_v1.HealthCheckResponse_SERVING)
	state.SetServingStatus("shop.Old", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(ln) }()
	defer func() { server.Stop(); <-served }()
	port := portOf(t, ln.Addr())
	admin := probed(t, fmt.Sprintf("a/liveness=grpc://:%d/", port), fmt.Sprintf("b/liveness=grpc://:%d/shop.Cart", port),
		fmt.Sprintf("c/liveness=grpc://:%d/shop.Old", port), fmt.Sprintf("d/liveness=grpc://:%d/shop.None", port))
	for name, want := range map[string]int{"a": 200, "b": 200, "c": 503, "d": 503} {
		if code, body := ask(t, admin.URL+"/probe/"+name+"/liveness", nil); code != want {
			t.Errorf("%s: %d %q, want %d", name, code, body, want)
		}
	}
}

// A probe that its caller gives up ends, and does not pile up.
func TestProbeGivenUp(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	app := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		close(left)
	}))
	defer app.Close()
	admin := probed(t, fmt.Sprintf("web/liveness=http://:%d/", portOf(t, app.Listener.Addr())))
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, admin.URL+"/probe/web/liveness", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-entered; cancel() }()
	if _, err := http.DefaultClient.Do(req); err == nil {
		t.Error("answered")
	}
	<-left
}
