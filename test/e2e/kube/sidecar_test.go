package kube

import (
	"encoding/base64"
	"strings"
	"testing"
)

// oldSidecar has the control plane believe that the cluster knows no restartable
// init containers: the proxy is a container like others, the first one, and what
// ends by itself has none.
func oldSidecar(t *testing.T) {
	const ns = "old"
	kubectl(t, "-n", "tulle-system", "patch", "deployment", "tulle-control", "--type=json",
		"-p", `[{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"-native-sidecar=false"}]`)
	rolledOut(t, "tulle-system", "deployment/tulle-control")
	oneControl(t)
	namespace(t, ns, true)
	var all []workload
	names := []string{"deployment/web"}
	for node := range redirects {
		all, names = append(all, on(node, client)), append(names, "deployment/client-"+node)
	}
	apply(t, deploy(ns, append(all, web(2))...)+`---
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: old}
spec:
  backoffLimit: 0
  template:
    metadata: {labels: {scenario: once}}
    spec:
      restartPolicy: Never
      containers: [{name: app, image: 'tulle.test/app:1', imagePullPolicy: Never, args: [load, -n, "3", "http://web:8080/"]}]
`)
	rolledOut(t, ns, names...)
	for _, w := range []string{"web", "client-node1"} {
		for _, pod := range pods(t, ns, "scenario="+w) {
			got := kubectl(t, "-n", ns, "get", "pod", pod, "-o", "jsonpath={.spec.initContainers[*].name}:{.spec.containers[*].name}")
			if got != ":tulle-proxy app" {
				t.Errorf("pod %s has containers %q", pod, got)
			}
		}
	}
	for node := range redirects {
		fetch(t, ns, "deployment/client-"+node, "http://web:8080/")
	}
	restarted(t, ns, "client-node1", "tulle-proxy")
	fetch(t, ns, "deployment/client-node1", "http://web:8080/")
	secured(t, ns, "web")
	// What calls as soon as it starts does so when the proxy is ready.
	apply(t, `---
apiVersion: v1
kind: Pod
metadata: {name: eager, namespace: old}
spec: {restartPolicy: Never, containers: [{name: app, image: 'tulle.test/app:1', imagePullPolicy: Never, args: [fetch, "http://web:8080/"]}]}
`)
	eventually(t, "the first call of a pod is answered", func() (bool, string) {
		s := kubectl(t, "-n", ns, "get", "pod", "eager", "-o", `jsonpath={.status.containerStatuses[?(@.name=="app")].state}`)
		if strings.Contains(s, `"terminated"`) && !strings.Contains(s, `"exitCode":0`) {
			t.Fatalf("it was not: %s\n%s", s, kubectl(t, "-n", ns, "logs", "eager", "-c", "app"))
		}
		return strings.Contains(s, `"exitCode":0`), s
	})
	if got := kubectl(t, "-n", ns, "get", "pod", "eager", "-o", "jsonpath={.spec.containers[*].name}"); got != "tulle-proxy app" {
		t.Errorf("it has containers %q", got)
	}
	secured(t, ns, "web")
	// Beside a proxy that never ends, a Job would not: it has none, and an Event says so.
	eventually(t, "the Job ends", func() (bool, string) {
		s := kubectl(t, "-n", ns, "get", "job", "once", "-o", "jsonpath={.status.succeeded}")
		return s == "1", s + kubectl(t, "-n", ns, "get", "pods")
	})
	if got := kubectl(t, "-n", ns, "get", "pods", "-l", "scenario=once", "-o", "jsonpath={.items[*].spec.containers[*].name}"); got != "app" {
		t.Errorf("the Job's pod has containers %q", got)
	}
	eventually(t, "an Event says why the Job has no proxy", func() (bool, string) {
		events := kubectl(t, "-n", ns, "get", "events", "-o", "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}")
		return strings.Contains(events, "NotMeshed: ") && strings.Contains(events, "a Job would never end"), events
	})

	must(t, "install", "--auto-mesh", selector)
	oneControl(t)
	kubectl(t, "-n", ns, "rollout", "restart", "deployment/web")
	rolledOut(t, ns, "deployment/web")
	if got := kubectl(t, "-n", ns, "get", "pod", pods(t, ns, "scenario=web")[0], "-o", "jsonpath={.spec.initContainers[*].name}"); got != "tulle-proxy" {
		t.Errorf("what starts anew has init containers %q", got)
	}
	eventually(t, "the client's proxy knows the new pods", func() (bool, string) {
		r := inPod(t, ns, "deployment/client-node1", "fetch", "http://web:8080/")
		return r.code == 0, r.stdout + r.stderr
	})
	secured(t, ns, "web")
}

// oneControl waits until the control plane of before serves nobody any more: who
// asks it is given what it was told.
func oneControl(t *testing.T) {
	t.Helper()
	eventually(t, "one control plane is left", func() (bool, string) {
		p := kubectl(t, "-n", "tulle-system", "get", "pods", "-l", "app.kubernetes.io/name=tulle-control", "-o", "name")
		return strings.Count(p, "\n") == 1, p
	})
}

// otherBundle has somebody else write the webhook's certificate authority, so that
// the API server trusts another one: the control plane puts its own back.
func otherBundle(t *testing.T) {
	namespace(t, "bundle", true)
	bundle := func() string {
		return kubectl(t, "get", "mutatingwebhookconfiguration", "tulle-injector", "-o", "jsonpath={.webhooks[0].clientConfig.caBundle}")
	}
	own := bundle()
	foreign := kubectl(t, "-n", "kube-system", "get", "configmap", "kube-root-ca.crt", "-o", "jsonpath={.data.ca\\.crt}")
	kubectl(t, "patch", "mutatingwebhookconfiguration", "tulle-injector", "--type=json",
		"-p", `[{"op":"replace","path":"/webhooks/0/clientConfig/caBundle","value":"`+base64.StdEncoding.EncodeToString([]byte(foreign))+`"}]`)
	eventually(t, "the webhook's authority is the mesh's again", func() (bool, string) { b := bundle(); return b == own, b })
	apply(t, deploy("bundle", web(1), client))
	rolledOut(t, "bundle", "deployment/web", "deployment/client")
	fetch(t, "bundle", "deployment/client", "http://web:8080/")
	secured(t, "bundle", "web")
}
