package kube

import (
	"strings"
	"testing"
)

// injection has the control plane give pods their proxies, or leave them alone.
func injection(t *testing.T) {
	namespace(t, "auto", true)
	apply(t, deploy("auto", web(1), client,
		workload{name: "out", args: "hold", labels: "tulle.dev/inject: disabled"},
		workload{name: "node", args: "hold", pod: "      hostNetwork: true\n"},
	))
	rolledOut(t, "auto", "deployment/web", "deployment/client", "deployment/out", "deployment/node")
	for name, want := range map[string]string{"web": "tulle-proxy", "client": "tulle-proxy", "out": "", "node": ""} {
		got := kubectl(t, "-n", "auto", "get", "pods", "-l", "scenario="+name, "-o", "jsonpath={.items[*].spec.initContainers[*].name}")
		if got != want {
			t.Errorf("%s: init containers %q, want %q", name, got, want)
		}
	}
	eventually(t, "an Event about the pod in its node's network", func() (bool, string) {
		events := kubectl(t, "-n", "auto", "get", "events", "-o", "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}")
		return strings.Contains(events, "hostNetwork"), events
	})
	// Clients outside of the mesh are served, as long as nobody asks for strict.
	address := kubectl(t, "-n", "auto", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	fetch(t, "auto", "deployment/out", "http://web:8080/")
	fetch(t, "auto", "deployment/node", "http://"+address+":8080/") // it has its node's name server: none
	for _, bad := range []struct{ notes, why string }{
		{`tulle.dev/skip-inbound-ports: "70000"`, "70000"},
		{`tulle.dev/skip-outbound-ports: "0"`, "must be 1 to 65535"},
		{`tulle.dev/log-level: "quote\"and\nnewline"`, "log-level"},
		{`tulle.dev/frob: "1"`, "tulle.dev/frob"},
	} {
		pod := "---\napiVersion: v1\nkind: Pod\nmetadata: {name: bad, namespace: auto, annotations: {" + bad.notes + "}}\nspec: {containers: [{name: app, image: 'tulle.test/app:1'}]}\n"
		if r := run(t, pod, "kubectl", "apply", "-f", "-"); r.code == 0 || !strings.Contains(r.stderr, bad.why) {
			t.Errorf("annotation %s: exit %d, want a refusal with %q\n%s", bad.notes, r.code, bad.why, r.stderr)
		}
	}
}

// jobs end, as they did without a proxy, under either redirect.
func jobs(t *testing.T) {
	namespace(t, "jobs", true)
	apply(t, deploy("jobs", web(1)))
	rolledOut(t, "jobs", "deployment/web")
	apply(t, `---
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: jobs}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      nodeSelector: {kubernetes.io/hostname: node1}
      initContainers:
      - {name: first, image: 'tulle.test/app:1', imagePullPolicy: Never, args: [load, -n, "3", "http://web:8080/"]}
      containers:
      - {name: app, image: 'tulle.test/app:1', imagePullPolicy: Never, args: [fetch, "http://web:8080/"]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: often, namespace: jobs}
spec:
  schedule: "* * * * *"
  suspend: true
  jobTemplate:
    spec:
      backoffLimit: 0
      template:
        spec:
          restartPolicy: Never
          nodeSelector: {kubernetes.io/hostname: node2}
          containers: [{name: app, image: 'tulle.test/app:1', imagePullPolicy: Never, args: [fetch, "http://web:8080/"]}]
`)
	kubectl(t, "-n", "jobs", "create", "job", "now", "--from=cronjob/often")
	for _, job := range []string{"job/once", "job/now"} {
		eventually(t, job+" ends", func() (bool, string) {
			s := kubectl(t, "-n", "jobs", "get", job, "-o", "jsonpath={.status.succeeded} {.status.failed}")
			return strings.HasPrefix(s, "1"), s + "\n" + kubectl(t, "-n", "jobs", "get", "pods")
		})
	}
}

// strict refuses clients outside the mesh, save the kubelet and its probes.
func strict(t *testing.T) {
	namespace(t, "vault", true, "--strict")
	namespace(t, "outside", false)
	web := web(1)
	web.name = "http"
	apply(t, deploy("vault", web, client,
		workload{name: "grpc", args: "grpc :9000", port: 9000, probe: "{grpc: {port: 9000}, periodSeconds: 1, timeoutSeconds: 10}"},
		workload{name: "tcp", args: "smtpd :2525", port: 2525, probe: "{tcpSocket: {port: main}, periodSeconds: 1, timeoutSeconds: 10}"},
		workload{name: "exec", args: "web :8080", port: 8080, probe: "{exec: {command: [/app, fetch, 'http://127.0.0.1:8080/']}, periodSeconds: 1, timeoutSeconds: 10}"},
	)+deploy("outside", client))
	rolledOut(t, "vault", "deployment/http", "deployment/grpc", "deployment/tcp", "deployment/exec", "deployment/client")
	rolledOut(t, "outside", "deployment/client")
	for _, args := range [][]string{
		{"fetch", "http://http.vault:8080/"},
		{"call", "-now", "grpc.vault:9000"},
		{"dial", "tcp.vault:2525", "line"},
	} {
		if r := inPod(t, "vault", "deployment/client", args...); r.code != 0 {
			t.Errorf("a client in the mesh was not served by a strict namespace: %v: %s%s", args, r.stdout, r.stderr)
		}
		if r := inPod(t, "outside", "deployment/client", args...); r.code == 0 {
			t.Errorf("a client outside the mesh was served by a strict namespace: %v: %s", args, r.stdout)
		}
	}
}

// restricted is the strictest level of Pod Security.
func restricted(t *testing.T) {
	namespace(t, "careful", false)
	kubectl(t, "label", "namespace", "careful", "pod-security.kubernetes.io/enforce=restricted")
	must(t, "mesh", "careful")
	apply(t, deploy("careful", web(1), client))
	rolledOut(t, "careful", "deployment/web", "deployment/client")
	fetch(t, "careful", "deployment/client", "http://web:8080/")
	secured(t, "careful", "web")
}

// autoMesh brings in namespaces that a selector matches, and says so.
func autoMesh(t *testing.T) {
	for name, team := range map[string]string{"red": "red", "green": "green", "blue": "blue"} {
		namespace(t, name, false)
		if name == "blue" { // somebody has decided already
			kubectl(t, "annotate", "namespace", name, "tulle.dev/inject=disabled")
		}
		kubectl(t, "label", "namespace", name, "team="+team)
	}
	eventually(t, "an Event about the namespace", func() (bool, string) {
		events := kubectl(t, "-n", "default", "get", "events", "--field-selector", "involvedObject.name=red", "-o", "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}")
		return strings.Contains(events, "Meshed: ") && strings.Contains(events, "--auto-mesh"), events
	})
	for name, want := range map[string]string{"red": "tulle-proxy", "green": "", "blue": ""} {
		apply(t, deploy(name, client))
		rolledOut(t, name, "deployment/client")
		got := kubectl(t, "-n", name, "get", "pods", "-l", "scenario=client", "-o", "jsonpath={.items[*].spec.initContainers[*].name}")
		if got != want {
			t.Errorf("%s: init containers %q, want %q", name, got, want)
		}
	}
}
