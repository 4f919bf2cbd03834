package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/dashboard"
)

// onAHostOfItsOwn runs the demo where nothing of this machine can be touched:
// in network, mount and process namespaces that stand for a host without uplink.
const onAHostOfItsOwn = `set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
ip link set lo up
"$@"
! ip link show tulle0 2>/dev/null
`

func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("runs real programs for some seconds")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root for namespaces; type: sudo ./just test")
	}
	for _, program := range []string{"redis-server", "unshare", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v; ./just test installs it", err)
		}
	}
	bin := t.TempDir()
	build(t, bin, "../../cmd/...")
	build(t, filepath.Join(bin, "test"), ".", "./shop")

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", onAHostOfItsOwn, "sh", filepath.Join(bin, "test", "demo"), "--for", "5s", "--rate", "100")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"0 failed", "load -> web", "web -> catalog", "catalog -> redis", "catalog-3"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the summary lacks %q:\n%s", want, out)
		}
	}
}

func build(t *testing.T, into string, packages ...string) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", into + "/"}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestVerdict(t *testing.T) {
	edge := func(source, service, security string, requests, failures uint64) dashboard.Edge {
		return dashboard.Edge{Source: source, Destination: service, Security: security,
			Figures: dashboard.Figures{TotalRequests: requests, TotalFailures: failures}}
	}
	replica := func(workload string, requests uint64) dashboard.Replica {
		return dashboard.Replica{Service: "catalog", Workload: workload, Figures: dashboard.Figures{TotalRequests: requests}}
	}
	good := func() (view, counted) {
		return view{
			edges:    []dashboard.Edge{edge("load", "web", "mtls", 100, 0), edge("web", "catalog", "mtls", 100, 0), edge("catalog", "redis", "mtls", 5, 0)},
			replicas: []dashboard.Replica{replica("catalog-1", 50), replica("catalog-2", 45), replica("catalog-3", 5)},
		}, counted{Sent: 100}
	}
	for _, c := range []struct {
		name  string
		spoil func(*view, *counted)
		want  string // in the verdict; "": all is well
	}{
		{"good", func(*view, *counted) {}, ""},
		{"a request failed", func(_ *view, c *counted) { c.Failed, c.Reason = 1, "refused" }, "1 of 100 requests failed, the first with: refused"},
		{"nothing sent", func(_ *view, c *counted) { c.Sent = 0 }, "sent nothing"},
		{"counts differ", func(_ *view, c *counted) { c.Sent = 101 }, "counted 101 requests, the mesh 100"},
		{"an edge is missing", func(v *view, _ *counted) { v.edges = v.edges[:2] }, "nothing from catalog to redis"},
		{"an edge is plaintext", func(v *view, _ *counted) { v.edges[2].Security = "plaintext" }, "catalog to redis was plaintext"},
		{"an edge has failures", func(v *view, _ *counted) { v.edges[1].TotalFailures = 2 }, "web to catalog: 2 of 100 failed"},
		{"the slow replica got its fair share", func(v *view, _ *counted) { v.replicas[2].TotalRequests = 50 }, "catalog-3 got 34.5 %"},
		{"there is no slow replica", func(v *view, _ *counted) { v.replicas = v.replicas[:2] }, "no replica catalog-3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen, counted := good()
			c.spoil(&seen, &counted)
			err := verdict(seen, counted)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("verdict: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("verdict: %v, want %q", err, c.want)
			}
		})
	}
}
