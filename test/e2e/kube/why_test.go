package kube

import (
	"fmt"
	"strings"
	"testing"
)

// explained asks `tulle why` about pairs that talk by mutual TLS, in plaintext
// and not at all, each for another reason.
func explained(t *testing.T) {
	const ns, out = "why", "why-out"
	namespace(t, ns, true)
	namespace(t, out, false)
	idle := workload{name: "idle", args: "web :8080", port: 8080, probe: "{httpGet: {path: /, port: 9999}, periodSeconds: 1, timeoutSeconds: 10}"}
	quiet := workload{name: "direct", args: "web :8080", port: 8080, notes: "tulle.dev/skip-inbound-ports: '8080'"}
	around := workload{name: "around", args: "hold", notes: "tulle.dev/skip-outbound-ports: '8080'"}
	onNode := workload{name: "onnode", args: "web :18080", port: 18080, pod: "      hostNetwork: true\n"}
	apply(t, deploy(ns, web(2), client, idle, quiet, around, onNode)+deploy(out, client)+fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: %[1]s}
spec: {type: ExternalName, externalName: web.%[1]s.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: %[1]s}
spec: {selector: {scenario: nobody}, ports: [{port: 80}]}
`, ns))
	rolledOut(t, ns, "deployment/web", "deployment/client", "deployment/direct", "deployment/around", "deployment/onnode")
	rolledOut(t, out, "deployment/client")

	// What cannot be had by mutual TLS is still served.
	fetch(t, ns, "deployment/client", "http://direct:8080/")
	fetch(t, ns, "deployment/around", "http://web:8080/")
	eventually(t, "figures of requests by mutual TLS", func() (bool, string) {
		fetch(t, ns, "deployment/client", "http://web:8080/")
		r := tulle(t, "why", "deploy/client", "svc/web", "-n", ns)
		return r.code == 0 && strings.Contains(r.stdout, "http/1, found out") && strings.Contains(r.stdout, "client."+ns+"  web."+ns+"  mTLS"), r.stdout + r.stderr
	})
	for _, c := range []struct {
		client, server string
		code           int
		want           []string
	}{
		{"deploy/client", "svc/web", 0, []string{"✓ client.why reaches web.why by mutual TLS, at 2 endpoints", "in the mesh as spiffe://cluster.local/ns/why/sa/default"}},
		{"client", "http://web.why.svc.cluster.local:8080/", 0, []string{"✓ "}},
		{"deploy/client", "svc/direct", 0, []string{"! client.why reaches direct.why in plaintext; direct-", "tulle.dev/skip-inbound-ports has 8080"}},
		{"deploy/around", "svc/web", 0, []string{"! around.why reaches web.why in plaintext; around-", "tulle.dev/skip-outbound-ports has 8080"}},
		{"deploy/client", "svc/onnode", 0, []string{"in plaintext; onnode-", "hostNetwork"}},
		{"client.why-out", "svc/web", 0, []string{"in plaintext; client-", "its namespace why-out is not in the mesh -> tulle mesh why-out"}},
		{"deploy/client", "svc/elsewhere", 0, []string{"only another name for web.why.svc.cluster.local", "-> tulle why client.why web.why"}},
		{"deploy/client", "svc/empty", 1, []string{"✗ nobody is behind empty.why", "kubectl -n why get endpointslices"}},
		{"deploy/client", "svc/idle", 1, []string{"✗ not even the only endpoint of idle.why is ready; idle-", "kubectl -n why describe pod idle-"}},
		{"deploy/client", "svc/web:81", 1, []string{"✗ web.why has no port 81, but 8080", "-> tulle why client.why web.why:8080"}},
	} {
		r := tulle(t, "why", c.client, c.server, "-n", ns)
		for _, want := range c.want {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("tulle why %s %s does not say %q", c.client, c.server, want)
			}
		}
		if r.code != c.code || t.Failed() {
			t.Errorf("tulle why %s %s: exit %d, want %d\n%s%s", c.client, c.server, r.code, c.code, r.stdout, r.stderr)
		}
	}
	refused(t, "kubectl -n why get deploy,sts,ds,pods", "why", "deploy/nobody", "svc/web", "-n", ns)
	refused(t, "kubectl -n why get services,pods", "why", "deploy/client", "svc/nobody", "-n", ns)
	refused(t, "kubectl get namespaces", "why", "deploy/client", "svc/web", "-n", "no-such-namespace")

	kubectl(t, "annotate", "namespace", ns, "tulle.dev/policy=strict")
	eventually(t, "strict: clients outside the mesh are refused", func() (bool, string) {
		r := tulle(t, "why", "client."+out, "svc/web", "-n", ns, "-o", "json")
		return r.code == 1 && strings.Contains(r.stdout, `"security":"refused"`) && strings.Contains(r.stdout, `"level":"failing"`), r.stdout + r.stderr
	})
	if r := tulle(t, "why", "deploy/client", "svc/web", "-n", ns); r.code != 0 {
		t.Errorf("strict, but both are in the mesh: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}
