package check

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// workloads asks each proxy whether it is ready, and the control plane what it
// hears of it.
func workloads(ctx context.Context, c *Config) []Result {
	known, err := list(ctx, c)
	if err != nil {
		return []Result{{Check: "list", Verdict: Failed, Detail: err.Error(), Fix: "tulle up -d"}}
	}
	proxies := awaitProxies(ctx, c, known.GetWorkloads())
	var results []Result
	for _, w := range known.GetWorkloads() {
		if strings.HasPrefix(w.GetState(), "exited") {
			continue
		}
		r := checkWorkload(ctx, w)
		if r.Verdict == OK && proxies != nil {
			r = checkProxy(r, proxies[w.GetReplica()], time.Now())
		}
		results = append(results, r)
	}
	if len(results) == 0 {
		results = []Result{{Check: "none is running", Verdict: OK, Fix: "tulle run web:8080 -- python3 -m http.server 8080"}}
	}
	return results
}

func checkWorkload(ctx context.Context, w *tullev1.Workload) Result {
	r := Result{Check: w.GetReplica(), Verdict: OK, Detail: w.GetState()}
	switch {
	case w.GetState() == "lost":
		r.Verdict, r.Detail = Failed, "its tulle run does not answer (stopped by Ctrl-Z?)"
		r.Fix = "tulle stop " + w.GetReplica()
		return r
	case w.GetState() == "starting" && time.Since(time.Unix(w.GetStartedUnix(), 0)) > 10*time.Second:
		r.Verdict, r.Detail = Warning, fmt.Sprintf("nothing listens on its declared ports %v yet", w.GetPorts())
		r.Fix = "see what it does with: tulle logs " + w.GetReplica() + "; it has to listen on 0.0.0.0, not 127.0.0.1"
	}
	if err := proxyReady(ctx, w.GetAddress4()); err != nil {
		r.Verdict, r.Detail = Failed, fmt.Sprintf("its proxy is not ready: %v", err)
		r.Fix = "tulle logs --proxy " + w.GetReplica()
	}
	return r
}

// proxyReady asks the proxy's admin port, from the host.
func proxyReady(ctx context.Context, address string) error {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	url := "http://" + netip.AddrPortFrom(addr, mesh.AdminPort).String() + "/ready"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it says %s", resp.Status)
	}
	return nil
}
