package proxy

import (
	"bufio"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/tulle-mesh/tulle/mesh"
)

// newAdmin returns the admin port of a proxy that has seen some traffic.
func newAdmin(t *testing.T) (*Proxy, http.Handler) {
	t.Helper()
	p := newQuietProxy()
	p.creds.Store(newTestAuthority(t).credentials(t, mesh.ID{TrustDomain: "test.local", Namespace: "default", Account: "web"}))
	e := p.recorder.edge(edgeKey{direction: mesh.Outbound, protocol: mesh.HTTP1, security: mesh.MutualTLS, service: "db", address: "10.84.0.3:80"})
	for i := range 100 {
		p.recorder.record(e, &mesh.Exchange{Protocol: mesh.HTTP1, Status: 200 + i%2, Duration: time.Duration(1<<i) % time.Minute, Outcome: mesh.Outcome(i % 3)})
	}
	p.recorder.edge(edgeKey{direction: mesh.Inbound, protocol: mesh.TCP, service: `od"d\na` + "\n" + `me`})
	return p, p.adminServer().Handler
}

func get(h http.Handler, method, path string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	b, _ := io.ReadAll(w.Body)
	return w.Code, string(b)
}

func TestMetricsAreWellFormed(t *testing.T) {
	_, admin := newAdmin(t)
	code, text := get(admin, "GET", "/metrics")
	if code != http.StatusOK {
		t.Fatal(code, text)
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for _, want := range []string{
		`tulle_requests_total{direction="outbound",outcome="success",peer_address="10.84.0.3:80",peer_identity="",peer_workload="",protocol="http/1",security="mtls",service="db",workload="web-1",workload_service="web"} 34`,
		`tulle_responses_total{direction="outbound",peer_address="10.84.0.3:80",peer_identity="",peer_workload="",protocol="http/1",security="mtls",service="db",status="201",workload="web-1",workload_service="web"} 50`,
		`tulle_accepted_connections{workload="web-1",workload_service="web"} 0`, `tulle_watched_destinations{workload="web-1",workload_service="web"} 0`,
		`tulle_certificate_not_after_seconds{workload="web-1",workload_service="web"} `,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
}

var bucketLine = regexp.MustCompile(`^tulle_duration_seconds_bucket\{.*service="db".*le="([^"]+)"\} (\d+)$`)

func TestMetricsHistogramGrows(t *testing.T) {
	_, admin := newAdmin(t)
	_, text := get(admin, "GET", "/metrics")
	last, bound, n := uint64(0), 0.0, 0
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		m := bucketLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		n++
		le, err1 := strconv.ParseFloat(m[1], 64)
		count, err2 := strconv.ParseUint(m[2], 10, 64)
		if err1 != nil || err2 != nil || count < last || le <= bound {
			t.Errorf("bucket %s of %s behind %v of %d", m[1], m[2], bound, last)
		}
		last, bound = count, le
	}
	if n != len(durationBounds)+1 || last != 100 {
		t.Errorf("%d buckets, the last with %d", n, last)
	}
}

// No duration is counted under a bound that it exceeds, or far from its own.
func TestCumulate(t *testing.T) {
	for _, d := range []time.Duration{
		0, time.Microsecond, 99 * time.Microsecond, 100 * time.Microsecond, 101 * time.Microsecond, 999 * time.Microsecond,
		time.Millisecond, 7 * time.Millisecond, time.Second, 29 * time.Second, 31 * time.Second, 200 * time.Second,
	} {
		var counts [mesh.Buckets]uint64
		counts[mesh.BucketOf(d)] = 1
		total, buckets := cumulate(&counts)
		if total != 1 || len(buckets) != len(durationBounds) {
			t.Fatalf("%v: %d in %d buckets", d, total, len(buckets))
		}
		for _, bound := range slices.Sorted(maps.Keys(buckets)) {
			n := buckets[bound]
			if n == 1 && d.Seconds() > bound || n == 0 && d.Seconds() < bound*0.96 {
				t.Errorf("%v: %d up to %v s", d, n, bound)
			}
		}
	}
}

func TestAdminHealth(t *testing.T) {
	p, admin := newAdmin(t)
	for path, want := range map[string]string{"/live": "live\n", "/ready": "ready\n"} {
		if code, text := get(admin, "GET", path); code != 200 || text != want {
			t.Errorf("%s: %d %q", path, code, text)
		}
	}
	p.conns.draining.Store(true)
	if code, _ := get(admin, "GET", "/ready"); code != 503 {
		t.Errorf("draining: %d", code)
	}
	if code, _ := get(admin, "GET", "/live"); code != 200 {
		t.Errorf("draining, live: %d", code)
	}
	p = newQuietProxy() // has no certificate
	if code, _ := get(p.adminServer().Handler, "GET", "/ready"); code != 503 {
		t.Errorf("without a certificate: %d", code)
	}
	if code, text := get(p.adminServer().Handler, "GET", "/metrics"); code != 200 || strings.Contains(text, "certificate") {
		t.Errorf("without a certificate: %d %s", code, text)
	}
}

// The port is open to whoever reaches the workload: it reads, and does nothing.
func TestAdminDoesNothingElse(t *testing.T) {
	_, admin := newAdmin(t)
	for _, path := range []string{"/metrics", "/ready", "/live"} {
		for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "QUIT"} {
			if code, _ := get(admin, method, path); code != http.StatusMethodNotAllowed {
				t.Errorf("%s %s: %d", method, path, code)
			}
		}
	}
	for _, path := range []string{
		"/", "/quitquitquit", "/debug/pprof/", "/debug/pprof/profile", "/config_dump", "/logging", "/drain", "/stats", "/metrics/", "/ready/x", "/healthz",
	} {
		for _, method := range []string{"GET", "POST"} {
			if code, _ := get(admin, method, path); code != http.StatusNotFound {
				t.Errorf("%s %s: %d", method, path, code)
			}
		}
	}
}

func TestAdminBoundsItsClients(t *testing.T) {
	s := newQuietProxy().adminServer()
	if s.ReadTimeout == 0 || s.WriteTimeout == 0 || s.IdleTimeout == 0 || s.MaxHeaderBytes == 0 {
		t.Errorf("%+v", s)
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(ln)
	defer s.Close()
	c, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET /live HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 64<<10)+"\r\n\r\n")
	answer, _ := io.ReadAll(c)
	if !strings.HasPrefix(string(answer), "HTTP/1.1 431 ") && len(answer) > 0 {
		t.Errorf("a large head: %.40q", answer)
	}
}
