package view

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/dashboard"
	"github.com/tulle-mesh/tulle/mesh"
)

func meshed(name string) mesh.PathMember {
	return mesh.PathMember{Workload: name, Address: "10.0.0.1:80", Identity: "spiffe://cluster.local/ns/shop/sa/" + name, State: mesh.PathReady, Used: true}
}

func changed(m mesh.PathMember, change func(*mesh.PathMember)) mesh.PathMember {
	change(&m)
	return m
}

func outside(name, why, remedy string) mesh.PathMember {
	return changed(meshed(name), func(m *mesh.PathMember) { m.Identity, m.Plain, m.Remedy = "", why, remedy })
}

func TestProtect(t *testing.T) {
	strict := changed(meshed("db-0"), func(m *mesh.PathMember) { m.Strict = true })
	skipping := changed(meshed("web-1"), func(m *mesh.PathMember) { m.SkipOutbound = "80,4000-4010" })
	old := outside("old-1", "made before", "tulle mesh shop")
	for _, tt := range []struct {
		name             string
		client, endpoint mesh.PathMember
		port             uint16
		want             string
	}{
		{"both in the mesh", meshed("web-1"), meshed("db-0"), 80, "mtls|||"},
		{"both, strict", meshed("web-1"), strict, 80, "mtls|||"},
		{"endpoint outside", meshed("web-1"), old, 80, "plaintext|old-1|made before|tulle mesh shop"},
		{"client outside", old, meshed("db-0"), 80, "plaintext|old-1|made before|tulle mesh shop"},
		{"client outside, strict", old, strict, 80, "refused|old-1|made before, and db-0 refuses whoever proves no identity (strict)|tulle mesh shop"},
		{"both outside: the endpoint is told", old, outside("older-1", "host", ""), 80, "plaintext|older-1|host|"},
		{"the client's own proxy is gone around", skipping, meshed("db-0"), 4005,
			"plaintext|web-1|its annotation tulle.dev/skip-outbound-ports has 4005: connections go around its proxy|take the port out of that annotation (of the pod's template, or of the namespace)"},
		{"that, strict", skipping, strict, 80,
			"refused|web-1|its annotation tulle.dev/skip-outbound-ports has 80: connections go around its proxy, and db-0 refuses whoever proves no identity (strict)|take the port out of that annotation (of the pod's template, or of the namespace)"},
		{"another port is not skipped", skipping, meshed("db-0"), 81, "mtls|||"},
	} {
		security, whose, why, remedy := protect(&tt.client, &tt.endpoint, tt.port)
		if got := strings.Join([]string{security, whose, why, remedy}, "|"); got != tt.want {
			t.Errorf("%s:\n%s, want\n%s", tt.name, got, tt.want)
		}
	}
}

func TestJudge(t *testing.T) {
	path := func(change func(*mesh.Path)) mesh.Path {
		p := mesh.Path{
			Client: mesh.PathEnd{Name: "web.shop", Namespace: "shop", Kind: mesh.PathWorkload, Members: []mesh.PathMember{meshed("web-1")}},
			Server: mesh.PathEnd{Name: "db.shop", Namespace: "shop", Kind: mesh.PathService, Hint: "kubectl -n shop get endpointslices"},
			Ports:  []mesh.PathPort{{Port: 80, Endpoints: []mesh.PathMember{meshed("db-0"), meshed("db-1")}}},
		}
		if change != nil {
			change(&p)
		}
		return p
	}
	unready := changed(meshed("db-0"), func(m *mesh.PathMember) {
		m.Used, m.State, m.Unused, m.Remedy = false, "not ready", "its readiness probe does not pass", "kubectl describe pod db-0"
	})
	strict := changed(meshed("db-0"), func(m *mesh.PathMember) { m.Strict = true })
	edge := func(requests, failures uint64, security string, outcomes map[string]uint64) dashboard.Edge {
		return dashboard.Edge{Source: "web.shop", Destination: "db.shop", Security: security, Outcomes: outcomes, Figures: dashboard.Figures{Requests: requests, Failures: failures}}
	}
	for _, tt := range []struct {
		name    string
		path    mesh.Path
		traffic []dashboard.Edge
		proxies []dashboard.Proxy
		want    string
	}{
		{"all well", path(nil), []dashboard.Edge{edge(9, 0, "mtls", nil)}, nil, "fine: web.shop reaches db.shop by mutual TLS, at 2 endpoints -> "},
		{"an external name", path(func(p *mesh.Path) {
			p.Server.Kind, p.Server.Target, p.Ports = mesh.PathExternal, "api.example.com", nil
		}), nil, nil,
			"warning: db.shop is only another name for api.example.com: connections go to whatever that resolves to, and the mesh sees them as such -> kubectl -n shop get service db"},
		{"an external name of a service", path(func(p *mesh.Path) {
			p.Server.Kind, p.Server.Target, p.Ports = mesh.PathExternal, "pay.bank.svc.cluster.local", nil
		}), nil, nil,
			"warning: db.shop is only another name for pay.bank.svc.cluster.local: connections go to whatever that resolves to, and the mesh sees them as such -> tulle why web.shop pay.bank"},
		{"an external name that only looks like a service's", path(func(p *mesh.Path) {
			p.Server.Kind, p.Server.Target, p.Ports = mesh.PathExternal, "api.svc-eu.example.com", nil
		}), nil, nil,
			"warning: db.shop is only another name for api.svc-eu.example.com: connections go to whatever that resolves to, and the mesh sees them as such -> kubectl -n shop get service db"},
		{"no client", path(func(p *mesh.Path) { p.Client.Members, p.Client.Hint = nil, "kubectl get pods" }), nil, nil, "failing: nobody is there to call: web.shop has no pods -> kubectl get pods"},
		{"UDP only", path(func(p *mesh.Path) { p.Ports = nil }), nil, nil, "warning: db.shop has no TCP port: the mesh lets everything else pass untouched -> kubectl -n shop get endpointslices"},
		{"no such port", path(func(p *mesh.Path) { p.Ports = []mesh.PathPort{{Port: 81, Missing: true, Others: []uint16{80, 90}}} }), nil, nil,
			"failing: db.shop has no port 81, but 80, 90: connections are refused -> tulle why web.shop db.shop:80"},
		{"a port that is not declared", path(func(p *mesh.Path) { p.Ports[0].Others = []uint16{8080} }), nil, nil,
			"warning: db.shop declares 8080 only: whether somebody listens on 80, a connection will tell -> kubectl -n shop get endpointslices"},
		{"nobody behind it", path(func(p *mesh.Path) { p.Ports[0].Endpoints = nil }), nil, nil,
			"failing: nobody is behind db.shop: it has no endpoint, and connections are refused -> kubectl -n shop get endpointslices"},
		{"none ready", path(func(p *mesh.Path) { p.Ports[0].Endpoints = []mesh.PathMember{unready, unready} }), nil, nil,
			"failing: none of the 2 endpoints of db.shop is ready; db-0: its readiness probe does not pass -> kubectl describe pod db-0"},
		{"one of two ready", path(func(p *mesh.Path) { p.Ports[0].Endpoints[0] = unready }), nil, nil, "fine: web.shop reaches db.shop by mutual TLS, at 1 endpoint -> "},
		{"refused", path(func(p *mesh.Path) {
			p.Client.Members[0], p.Ports[0].Endpoints = outside("web-1", "made before", "tulle mesh shop"), []mesh.PathMember{strict}
		}), nil, nil,
			"failing: web.shop is refused at db.shop; web-1: made before, and db-0 refuses whoever proves no identity (strict) -> tulle mesh shop"},
		{"refused by one of two", path(func(p *mesh.Path) {
			p.Client.Members[0], p.Ports[0].Endpoints[0] = outside("web-1", "made before", "tulle mesh shop"), strict
		}), nil, nil,
			"failing: web.shop is refused by 1 of 2 endpoints at db.shop; web-1: made before, and db-0 refuses whoever proves no identity (strict) -> tulle mesh shop"},
		{"one of two clients outside", path(func(p *mesh.Path) {
			p.Client.Members = append(p.Client.Members, outside("web-2", "made before", "tulle mesh shop"))
		}), nil, nil,
			"warning: web.shop reaches db.shop in plaintext; web-2: made before -> tulle mesh shop"},
		{"plaintext to one of two", path(func(p *mesh.Path) { p.Ports[0].Endpoints[1] = outside("db-1", "host", "") }), nil, nil,
			"warning: web.shop reaches db.shop to 1 of 2 endpoints in plaintext; db-1: host -> "},
		{"one port of two", path(func(p *mesh.Path) { p.Ports = append(p.Ports, mesh.PathPort{Port: 90}) }), nil, nil,
			"warning: nobody is behind db.shop:90: it has no endpoint, and connections are refused; its other ports can be reached -> kubectl -n shop get endpointslices"},
		{"some requests fail", path(nil), []dashboard.Edge{edge(9, 2, "mtls", map[string]uint64{"reset": 3})}, nil,
			"warning: 2 requests of 9 failed in the last 5m (reset:3 since the proxies' start) -> tulle tap db.shop --client web.shop --status failed"},
		{"no request reaches it", path(nil), []dashboard.Edge{edge(9, 9, "mtls", map[string]uint64{"connect-failed": 9})}, nil,
			"failing: 9 requests of 9 failed in the last 5m (connect-failed:9 since the proxies' start) -> tulle tap db.shop --client web.shop --status failed"},
		{"no request reaches it, as one did last week", path(nil), []dashboard.Edge{edge(9, 9, "mtls", map[string]uint64{"connect-failed": 9, "app-failure": 1})}, nil,
			"failing: 9 requests of 9 failed in the last 5m (connect-failed:9 app-failure:1 since the proxies' start) -> tulle tap db.shop --client web.shop --status failed"},
		{"all fail, but it answers", path(nil), []dashboard.Edge{edge(1, 1, "mtls", map[string]uint64{"app-failure": 1})}, nil,
			"warning: 1 request of 1 failed in the last 5m (app-failure:1 since the proxies' start) -> tulle tap db.shop --client web.shop --status failed"},
		{"plaintext a moment ago", path(nil), []dashboard.Edge{edge(1, 0, "plaintext", nil), edge(9, 0, "mtls", nil)}, nil,
			"warning: 1 request went in plaintext in the last 5m, though by now all should be mutual TLS -> tulle edges web.shop"},
		{"a lost proxy", path(nil), nil, []dashboard.Proxy{{Workload: "web-1", State: "lost"}},
			"warning: the proxy of web-1 has gone without a word: nothing leaves or enters web-1 while it is away -> kubectl -n shop describe pod web-1"},
	} {
		w := &why{Range: "5m", Path: tt.path, Traffic: concerns(&tt.path, tt.traffic)}
		w.conclude(nil, tt.proxies)
		if got := w.Verdict.Level + ": " + w.Verdict.Text + " -> " + w.Verdict.Next; got != tt.want {
			t.Errorf("%s:\n%s, want\n%s", tt.name, got, tt.want)
		}
	}
}

// serveWhy answers with a path and its views.
func serveWhy(t *testing.T, path mesh.Path) string {
	t.Helper()
	return serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/api/v1/")
		if name == "path" {
			if q := r.URL.Query(); q.Get("client") == "nobody" {
				w.WriteHeader(http.StatusNotFound)
				_, _ = w.Write([]byte(`{"error":"nothing is called so; see: kubectl get pods"}`))
				return
			}
			_ = json.NewEncoder(w).Encode(path)
			return
		}
		body, err := os.ReadFile(filepath.Join("testdata", "why", name+".json"))
		if err != nil {
			t.Errorf("asked for %s", r.URL)
		}
		_, _ = w.Write(body)
	}))
}

func TestWhy(t *testing.T) {
	t.Setenv("TZ", "UTC")
	path := func(name string) (p mesh.Path) {
		t.Helper()
		body, err := os.ReadFile(filepath.Join("testdata", "why", name+".path.json"))
		if err == nil {
			err = json.Unmarshal(body, &p)
		}
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for name, tt := range map[string]struct {
		args string
		code int
	}{
		"mutual":     {"deploy/web svc/catalog -n shop", 0},
		"strict":     {"deploy/old svc/catalog:8080", 1},
		"plain":      {"web billing", 0},
		"headless":   {"web db -o wide", 0},
		"many":       {"web many", 0},
		"mutual-2":   {"deploy/web svc/catalog -o json", 0},
		"nothing-at": {"web catalog", 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := serveWhy(t, path(strings.TrimSuffix(name, "-2")))
			stdout, stderr, code := run(t, t.Context(), append([]string{"why", "--run", dir}, strings.Fields(tt.args)...)...)
			if code != tt.code || stderr != "" {
				t.Errorf("exit code %d, want %d; stderr %q", code, tt.code, stderr)
			}
			if strings.HasSuffix(tt.args, "json") {
				var w why
				if err := json.Unmarshal([]byte(stdout), &w); err != nil || w.Verdict.Text == "" || len(w.Hops) == 0 || len(w.Errors) == 0 {
					t.Errorf("%v: %s", err, stdout)
				}
				return
			}
			compare(t, filepath.Join("testdata", "why", name+".txt"), withoutClock(stdout))
		})
	}
	dir := serveWhy(t, mesh.Path{})
	for args, want := range map[string]struct {
		code int
		text string
	}{
		"why nobody web --run " + dir:          {1, "tulle: nothing is called so; see: kubectl get pods\n"},
		"why web":                              {2, "why takes two names, who calls and who is called: tulle why web catalog"},
		"why a b c":                            {2, "why takes two names"},
		"why a b -o yaml":                      {2, "must be table, wide or json"},
		"why a b --since 3h":                   {2, "must be a duration from 5s to 1h"},
		"why web catalog --run " + t.TempDir(): {1, "the control plane is not running; start it with: sudo tulle up"},
	} {
		stdout, stderr, code := run(t, t.Context(), strings.Fields(args)...)
		if code != want.code || !strings.Contains(stderr, want.text) || strings.Count(stderr, "\n") != 1 || stdout != "" {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
}

// withoutClock leaves out the times of failures.
func withoutClock(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if len(line) > 12 && line[2] == ':' && line[5] == ':' {
			line = "HH:MM:SS" + line[strings.IndexByte(line, ' '):]
		}
		b.WriteString(line)
	}
	return b.String()
}
