package check

import (
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/cmd/tulle/host"
	"github.com/tulle-mesh/tulle/dashboard"
)

func TestCheckProxy(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) string { return now.Add(d).Format(time.RFC3339) }
	for name, tc := range map[string]struct {
		p      *dashboard.Proxy
		want   Verdict
		detail string
	}{
		"well":             {&dashboard.Proxy{State: "connected", LastReport: at(-2 * time.Second), CertExpires: at(20 * time.Hour)}, OK, "ready"},
		"no certificate":   {&dashboard.Proxy{State: "connected", LastReport: at(0)}, OK, "ready"},
		"never came":       {nil, Failed, "no connection to the control plane"},
		"lost":             {&dashboard.Proxy{State: "lost"}, Failed, "no connection to the control plane"},
		"ended":            {&dashboard.Proxy{State: "ended"}, Failed, "no connection to the control plane"},
		"silent":           {&dashboard.Proxy{State: "connected", LastReport: at(-time.Minute), CertExpires: at(20 * time.Hour)}, Warning, "said nothing for 1m0s"},
		"not renewed":      {&dashboard.Proxy{State: "connected", LastReport: at(0), CertExpires: at(2 * time.Hour)}, Warning, "ends in 2h0m0s"},
		"certificate over": {&dashboard.Proxy{State: "connected", LastReport: at(0), CertExpires: at(-time.Hour)}, Failed, "ended at"},
	} {
		r := checkProxy(Result{Check: "web-1", Verdict: OK, Detail: "ready"}, tc.p, now)
		if r.Verdict != tc.want || !strings.Contains(r.Detail, tc.detail) || (r.Verdict != OK) != strings.Contains(r.Fix, "tulle logs --proxy web-1") {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// TestAwaitProxies: one that connects a moment later is no finding.
func TestAwaitProxies(t *testing.T) {
	dir, err := os.MkdirTemp("", "tulle") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if got := awaitProxies(t.Context(), &Config{RunDir: dir}, nil); got != nil {
		t.Errorf("without an API: %v", got)
	}
	l, err := net.Listen("unix", host.APISocket(dir))
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		state := "lost"
		if asked++; asked > 2 {
			state = "connected"
		}
		_, _ = w.Write([]byte(`{"items":[{"workload":"web-1","state":"` + state + `"},{"workload":"web-1","state":"ended"}]}`))
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() { _ = server.Close(); <-served }()
	got := awaitProxies(t.Context(), &Config{RunDir: dir}, []*tullev1.Workload{{Replica: "web-1", State: "ready"}, {Replica: "old-1", State: "exited (0)"}, {Replica: "gone-1", State: "lost"}})
	if got["web-1"] == nil || got["web-1"].State != "connected" || asked != 3 {
		t.Errorf("asked %d times: %+v", asked, got["web-1"])
	}
}
