package check

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/cmd/tulle/host"
	"github.com/tulle-mesh/tulle/dashboard"
)

const (
	// joinTime is how long a proxy may take to find the control plane, that of a new
	// workload or each after the control plane's restart. It tries again after 5 s at most.
	joinTime = 6 * time.Second
	// silence is how long ago a proxy's last word may be; it gives one each second,
	// in a big mesh every 5 s.
	silence = 15 * time.Second
	// renewed is what a certificate has left whose renewal goes well: a third of its
	// day, less what chance takes off.
	renewed = 5 * time.Hour
)

// running tells whether a workload is to have a proxy.
func running(w *tullev1.Workload) bool {
	state := w.GetState()
	return state != "lost" && state != "ending" && !strings.HasPrefix(state, "exited")
}

// awaitProxies returns what the control plane knows of each workload's proxy, by
// replica. It waits a little for those that are not connected; nil if it cannot be asked.
func awaitProxies(ctx context.Context, c *Config, workloads []*tullev1.Workload) map[string]*dashboard.Proxy {
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	var known map[string]*dashboard.Proxy
	for {
		if now, err := proxies(ctx, c); err == nil {
			known = now
		} else if known == nil {
			return nil
		}
		missing := false
		for _, w := range workloads {
			p := known[w.GetReplica()]
			missing = missing || running(w) && (p == nil || p.State != "connected")
		}
		if !missing {
			return known
		}
		select {
		case <-ctx.Done():
			return known
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// proxies asks the dashboard's API.
func proxies(ctx context.Context, c *Config) (map[string]*dashboard.Proxy, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", host.APISocket(c.RunDir))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/api/v1/proxies", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer dashboard.Answer[dashboard.Proxy]
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it says %s", resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, err
	}
	byName := map[string]*dashboard.Proxy{}
	for i := range answer.Items {
		if p := &answer.Items[i]; byName[p.Workload] == nil || p.State == "connected" {
			byName[p.Workload] = p
		}
	}
	return byName, nil
}

// checkProxy looks at what the control plane knows of a proxy that serves. One that
// is refused goes on with what it knew last: nothing fails until something changes.
func checkProxy(r Result, p *dashboard.Proxy, now time.Time) Result {
	log := "why it says in: tulle logs --proxy " + r.Check
	if p == nil || p.State != "connected" {
		r.Verdict, r.Detail = Failed, "its proxy has no connection to the control plane: it serves with what it knew last, and nothing of it is seen"
		r.Fix = log + "; if it is of an earlier authority, run it again: tulle stop " + r.Check
		return r
	}
	if last, err := time.Parse(time.RFC3339, p.LastReport); err == nil && now.Sub(last) > silence {
		r.Verdict, r.Detail, r.Fix = Warning, fmt.Sprintf("its proxy has said nothing for %s", now.Sub(last).Round(time.Second)), log
		return r
	}
	expires, err := time.Parse(time.RFC3339, p.CertExpires)
	if err != nil {
		return r
	}
	switch left := expires.Sub(now); {
	case left <= 0:
		r.Verdict, r.Detail, r.Fix = Failed, "its certificate ended at "+p.CertExpires+": nobody of the mesh talks to it", log
	case left < renewed:
		r.Verdict, r.Detail, r.Fix = Warning, fmt.Sprintf("its certificate ends in %s and was not renewed", left.Round(time.Minute)), log
	}
	return r
}
