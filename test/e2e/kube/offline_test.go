package kube

import (
	"path/filepath"
	"strings"
	"testing"
)

// offline has `tulle inject` put the proxy into a file, as GitOps does, and applies
// that: to a namespace that nobody has annotated, and then to the same one, which
// is.
func offline(t *testing.T) {
	const ns = "offline"
	namespace(t, ns, false)
	manifest := offlineManifest(t, deploy(ns, web(2), client)+`---
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: offline}
spec:
  backoffLimit: 0
  template:
    metadata: {labels: {scenario: once}}
    spec:
      restartPolicy: Never
      containers: [{name: app, image: 'tulle.test/app:1', imagePullPolicy: Never, args: [hold]}]
`)
	apply(t, manifest)
	names := func(want string) {
		t.Helper()
		for _, w := range []string{"web", "client"} {
			for _, pod := range pods(t, ns, "scenario="+w) {
				if got := kubectl(t, "-n", ns, "get", "pod", pod, "-o", "jsonpath={.spec.initContainers[*].name}"); got != want {
					t.Errorf("pod %s has init containers %q, want %q", pod, got, want)
				}
			}
		}
	}
	rolledOut(t, ns, "deployment/web", "deployment/client")
	names("tulle-proxy")
	fetch(t, ns, "deployment/client", "http://web:8080/")
	secured(t, ns, "web")
	eventually(t, "tulle edges shows it", func() (bool, string) {
		out := must(t, "edges", "ns/"+ns, "-o", "wide")
		return strings.Contains(out, "web."+ns) && strings.Contains(out, "mTLS"), out
	})

	// The webhook finds what it would do done: neither a second proxy, nor a
	// difference that GitOps would put back.
	must(t, "mesh", ns)
	kubectl(t, "-n", ns, "rollout", "restart", "deployment/web", "deployment/client")
	rolledOut(t, ns, "deployment/web", "deployment/client")
	names("tulle-proxy")
	fetch(t, ns, "deployment/client", "http://web:8080/")
	secured(t, ns, "web")
	if again := offlineManifest(t, manifest); again != manifest {
		t.Errorf("put in again, the file comes out otherwise:\n%s", again)
	}
	if r := run(t, manifest, "kubectl", "diff", "-f", "-"); r.code > 1 || strings.Contains(r.stdout, "tulle-") {
		t.Errorf("the cluster has other proxies than the file says: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// offlineManifest has `tulle inject` read a file, and returns what it writes.
func offlineManifest(t *testing.T, manifest string, flags ...string) string {
	t.Helper()
	r := run(t, manifest, filepath.Join(bin, "tulle"), append([]string{"inject", "-f", "-"}, flags...)...)
	if r.code != 0 || r.stderr != "" {
		t.Fatalf("tulle inject: exit %d\n%s", r.code, r.stderr)
	}
	return r.stdout
}

// offlineInit does the same with init containers for a redirect, on a cluster whose
// nodes have agents: on either node, both do not redirect the same pod.
func offlineInit(t *testing.T) {
	const ns = "offline-init"
	namespace(t, ns, false)
	var all []workload
	var names []string
	for node := range redirects {
		for _, w := range []workload{on(node, web(1)), on(node, client)} {
			all, names = append(all, w), append(names, "deployment/"+w.name)
		}
	}
	apply(t, offlineManifest(t, deploy(ns, all...), "--no-cni"))
	rolledOut(t, ns, names...)
	for from := range redirects {
		if got := kubectl(t, "-n", ns, "get", "pods", "-l", "scenario=client-"+from, "-o", "jsonpath={.items[*].spec.initContainers[*].name}"); got != "tulle-init tulle-proxy" {
			t.Errorf("init containers %q", got)
		}
		for to := range redirects {
			fetch(t, ns, "deployment/client-"+from, "http://web-"+to+":8080/")
		}
	}
	for node := range redirects {
		secured(t, ns, "web-"+node)
	}
}
