package dashboard

import (
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestMetricsArePrometheus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		h := newTestHandler(t, c, func(config *HandlerConfig) { config.Version = "1\"\n\\" })
		p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
		p.report(outbound("web", "web-1").add(1).message())
		synctest.Wait()
		w := get(h, "/metrics")
		for _, want := range []string{
			`tulle_control_info{version="1\"\n\\",trust_domain="tulle.local"} 1`, `tulle_control_proxies{state="connected"} 1`, "tulle_control_reports_total 1",
		} {
			if !strings.Contains(w.Body.String(), want+"\n") {
				t.Errorf("there is no %s in\n%s", want, w.Body)
			}
		}
		if w := get(h, "/metrics", "Host", "evil.example.org"); w.Code != http.StatusForbidden {
			t.Errorf("another host's name: %d", w.Code)
		}
		var targets []Target
		if err := json.Unmarshal(get(h, "/api/v1/targets").Body.Bytes(), &targets); err != nil || len(targets) != 1 || targets[0].Targets[0] != "10.84.0.2:4191" {
			t.Errorf("targets: %v, %+v", err, targets)
		}
		if _, err := exec.LookPath("promtool"); err != nil {
			t.Skip("promtool is not installed")
		}
		check := exec.Command("promtool", "check", "metrics")
		check.Stdin = w.Body
		if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool: %v\n%s", err, out)
		}
	})
}

func TestSeriesComeFromPrometheus(t *testing.T) {
	now := time.Unix(1_000_000_007, 0)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query().Get("query")
		switch {
		case r.URL.Path != "/prom/api/v1/query_range" || !strings.Contains(query, `service="we\"b"`):
			http.Error(w, "no", http.StatusNotFound)
		case strings.HasPrefix(query, "15 *"):
			_, _ = w.Write([]byte(`{"status":"success","data":{"resultType":"matrix","result":[
				{"metric":{"le":"+Inf"},"values":[[999999990,"9"]]},{"metric":{"le":"0.1"},"values":[[999999990,"8.9"]]},{"metric":{"le":"0.05"},"values":[[999999990,"2"]]}]}}`))
		case strings.HasPrefix(query, "histogram_quantile"):
			_, _ = w.Write([]byte(`{"status":"success","data":{"resultType":"matrix","result":[]}}`))
		default:
			_, _ = w.Write([]byte(`{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[[999999990,"0.5"],[1000000005,"NaN"],[5,"1"]]}]}}`))
		}
	}))
	defer server.Close()
	a := newArchive(server.URL + "/prom/")
	a.now = func() time.Time { return now }
	s, err := a.series(t.Context(), subject{service: `we"b`}, DefaultWindow)
	if err != nil || len(s.Times) != 20 || s.Times[19] != 1_000_000_005 || s.RPS[18] != 0.5 || !math.IsNaN(s.RPS[19]) || !math.IsNaN(s.P50[18]) || s.From != fromPrometheus {
		t.Errorf("%v: %+v", err, s)
	}
	h, err := a.heatmap(t.Context(), subject{source: "x", destination: `we"b`}, DefaultWindow)
	if err != nil || len(h.Bounds) != 4 || h.Bounds[3] != 0.2 || h.Counts[0] != nil || len(h.Counts[18]) != 3 || h.Counts[18][0] != 2 || h.Counts[18][1] != 7 || h.Counts[18][2] != 0 {
		t.Errorf("%v: %+v", err, h)
	}

	handler := newTestHandler(t, newTestCollector(t, nil), func(c *HandlerConfig) { c.Prometheus = server.URL })
	if w := get(handler, "/api/v1/series?service=web"); w.Code != http.StatusBadGateway || !strings.Contains(w.Body.String(), "404 Not Found") {
		t.Errorf("a server that is none: %d %s", w.Code, w.Body)
	}
	if w := get(handler, "/api/v1/about"); !strings.Contains(w.Body.String(), `"series_from":"prometheus"`) {
		t.Errorf("about: %s", w.Body)
	}
	for _, address := range []string{"127.0.0.1:9090", "ftp://x", "http://", "http://x/?a=b", "x"} {
		if CheckPrometheus(address) == nil {
			t.Errorf("%q was accepted", address)
		}
	}
}

func FuzzReadMatrix(f *testing.F) {
	f.Add([]byte(`{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"le":"1"},"values":[[15,"1"],[1e300,"x"],["","1"]]}]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		lines, err := readMatrix(body, grid{first: 0, step: 15, n: 4})
		if err != nil {
			return
		}
		for _, line := range lines {
			if len(line.points) != 4 {
				t.Fatal("off the grid")
			}
		}
	})
}
