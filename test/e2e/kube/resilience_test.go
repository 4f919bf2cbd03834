package kube

import (
	"os/exec"
	"strings"
	"testing"
)

// load is what the load program reports.
type load struct {
	Requests, Failures int
	Errors             map[string]int
}

// underLoad keeps requests running from a pod to a URL while do runs, and
// wants each answered.
func underLoad(t *testing.T, namespace, pod, url string, do func()) {
	t.Helper()
	args := []string{"-n", namespace, "exec", pod, "-c", "app", "--", "/app", "load", "-c", "2", "--progress", "/dev/shm/progress", "--until", "/dev/shm/stop", url}
	cmd := exec.CommandContext(t.Context(), "kubectl", args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	progress := func() string { return inPod(t, namespace, pod, "cat", "/dev/shm/progress").stdout }
	eventually(t, "the load runs", func() (bool, string) { p := progress(); return p != "", p })
	do()
	now := progress()
	eventually(t, "the load still runs", func() (bool, string) { p := progress(); return p != now, p })
	if r := inPod(t, namespace, pod, "touch", "/dev/shm/stop"); r.code != 0 {
		t.Fatalf("touch: %s%s", r.stdout, r.stderr)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("load: %v\n%s%s", err, stdout.String(), stderr.String())
	}
	got := decode[load](t, stdout.String())
	t.Logf("%d requests, %d failed", got.Requests, got.Failures)
	if got.Requests == 0 || got.Failures > 0 {
		t.Errorf("%d of %d requests failed: %v", got.Failures, got.Requests, got.Errors)
	}
	inPod(t, namespace, pod, "rm", "/dev/shm/stop", "/dev/shm/progress")
}

// loaded is a client with a folder for the load program's notes.
func loaded(t *testing.T, name string, replicas int) {
	t.Helper()
	namespace(t, name, true)
	apply(t, deploy(name, web(replicas), client))
	rolledOut(t, name, "deployment/web", "deployment/client")
}

// rollingRestart replaces a service's pods while they are being asked.
func rollingRestart(t *testing.T) {
	loaded(t, "rolling", 2)
	underLoad(t, "rolling", clientPod(t, "rolling"), "http://web:8080/", func() {
		kubectl(t, "-n", "rolling", "rollout", "restart", "deployment/web")
		rolledOut(t, "rolling", "deployment/web")
	})
}

func clientPod(t *testing.T, namespace string) string {
	t.Helper()
	return pods(t, namespace, "scenario=client")[0]
}

// controlAway deletes the control plane, and brings it back.
func controlAway(t *testing.T) {
	loaded(t, "alone", 2)
	underLoad(t, "alone", clientPod(t, "alone"), "http://web:8080/", func() {
		kubectl(t, "-n", "tulle-system", "scale", "deployment/tulle-control", "--replicas=0")
		eventually(t, "the control plane is gone", func() (bool, string) {
			p := strings.Join(pods(t, "tulle-system", "app.kubernetes.io/name=tulle-control"), " ")
			return p == "", p
		})
		kubectl(t, "-n", "tulle-system", "scale", "deployment/tulle-control", "--replicas=1")
		rolledOut(t, "tulle-system", "deployment/tulle-control")
	})
	// What has changed meanwhile arrives.
	kubectl(t, "-n", "alone", "rollout", "restart", "deployment/web")
	rolledOut(t, "alone", "deployment/web")
	fetch(t, "alone", clientPod(t, "alone"), "http://web:8080/")
}

// injectorAway has pods of meshed namespaces wait, and no others.
func injectorAway(t *testing.T) {
	namespace(t, "waits", true)
	namespace(t, "free", false)
	kubectl(t, "-n", "tulle-system", "scale", "deployment/tulle-control", "--replicas=0")
	eventually(t, "the control plane is gone", func() (bool, string) {
		p := strings.Join(pods(t, "tulle-system", "app.kubernetes.io/name=tulle-control"), " ")
		return p == "", p
	})
	apply(t, deploy("waits", client)+deploy("free", client))
	rolledOut(t, "free", "deployment/client")
	eventually(t, "the meshed pod is refused", func() (bool, string) {
		s := kubectl(t, "-n", "waits", "get", "events", "-o", "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}")
		return strings.Contains(s, "injector.tulle.dev"), s
	})
	if p := pods(t, "waits", "scenario=client"); len(p) > 0 {
		t.Errorf("pods %v started without a proxy", p)
	}
	kubectl(t, "-n", "tulle-system", "scale", "deployment/tulle-control", "--replicas=1")
	rolledOut(t, "tulle-system", "deployment/tulle-control")
	kubectl(t, "-n", "waits", "rollout", "restart", "deployment/client") // instead of waiting for the controller's patience
	rolledOut(t, "waits", "deployment/client")
}

// agentAway takes the agents off the nodes: meshed pods do not start, others
// do, and those that run are served.
func agentAway(t *testing.T) {
	loaded(t, "agentless", 1)
	namespace(t, "plain", false)
	kubectl(t, "-n", "tulle-system", "patch", "daemonset", "tulle-cni", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":"true"}}}}}`)
	eventually(t, "the agents are gone", func() (bool, string) {
		p := strings.Join(pods(t, "tulle-system", "app.kubernetes.io/name=tulle-cni"), " ")
		return p == "", p
	})
	fetch(t, "agentless", clientPod(t, "agentless"), "http://web:8080/")
	apply(t, deploy("plain", client))
	rolledOut(t, "plain", "deployment/client")
	apply(t, deploy("agentless", workload{name: "late", args: "hold"}))
	eventually(t, "the meshed pod says why it does not start", func() (bool, string) {
		s := kubectl(t, "-n", "agentless", "get", "events", "-o", "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}")
		return strings.Contains(s, "the pod is meshed, and its traffic cannot be redirected"), s
	})
	kubectl(t, "-n", "tulle-system", "patch", "daemonset", "tulle-cni", "--type=json", "-p", `[{"op":"remove","path":"/spec/template/spec/nodeSelector/nowhere"}]`)
	rolledOut(t, "tulle-system", "daemonset/tulle-cni")
	rolledOut(t, "agentless", "deployment/late")
}

// networkRewritten has the cluster's network plugin write its configuration
// anew, without ours: the agent chains itself again, and redirects the traffic
// of pods that started in between.
func networkRewritten(t *testing.T) {
	namespace(t, "rewritten", true)
	for _, node := range []string{"node1", "node2"} {
		onNode(t, node, "cp /run/pods.conflist /etc/cni/net.d/.new && mv /etc/cni/net.d/.new /etc/cni/net.d/10-pods.conflist")
		eventually(t, "chained again on "+node, func() (bool, string) {
			s := onNode(t, node, "cat /etc/cni/net.d/10-pods.conflist")
			return strings.Contains(s, "tulle-cni"), s
		})
	}
	apply(t, deploy("rewritten", web(1), client))
	rolledOut(t, "rewritten", "deployment/web", "deployment/client")
	fetch(t, "rewritten", clientPod(t, "rewritten"), "http://web:8080/")
	secured(t, "rewritten", "web")
}
