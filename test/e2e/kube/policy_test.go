package kube

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// policies has firewalls that know ports only: proxies meet at the application's
// own, so what NetworkPolicies say of that holds for meshed pods as for others.
func policies(t *testing.T) {
	const ns, out = "guarded", "unguarded"
	namespace(t, ns, true)
	namespace(t, out, false)
	two := web(1) // answers at a port that no policy will name, too
	two.pod = "      initContainers:\n      - {name: other, restartPolicy: Always, image: 'tulle.test/app:1', imagePullPolicy: Never, args: [web, ':8081'], " +
		"ports: [{name: other, containerPort: 8081}], readinessProbe: {tcpSocket: {port: other}, periodSeconds: 1, timeoutSeconds: 10}, " +
		"securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}\n"
	apply(t, deploy(ns, two, client, workload{name: "next", args: "web :8080", port: 8080})+deploy(out, client))
	rolledOut(t, ns, "deployment/web", "deployment/client", "deployment/next")
	rolledOut(t, out, "deployment/client")
	declared := "http://web." + ns + ":8080/"
	other := "http://" + net.JoinHostPort(podIP(t, ns, "web"), "8081") + "/"
	clients := []string{ns, out}
	for _, from := range clients {
		fetch(t, from, "deployment/client", declared)
		fetch(t, from, "deployment/client", other)
	}

	// Let in at the one port.
	apply(t, policy(ns, "in", "web", "Ingress", "ingress: [{ports: [{port: 8080}]}]"))
	enforce(t, ns)
	defer lift(t, ns)
	before := sent(t, ns, "client", "web", "mtls")
	for _, from := range clients {
		fetch(t, from, "deployment/client", declared)
		if r := inPod(t, from, "deployment/client", "fetch", other); r.code == 0 {
			t.Errorf("from %s, a port that the policy does not name answers: %s", from, r.stdout)
		}
	}
	if now := sent(t, ns, "client", "web", "mtls"); now <= before {
		t.Errorf("the client's proxy counts %d requests over mutual TLS before the policy, and %d then", before, now)
	}
	restarted(t, ns, "web", "app") // it is ready again by its probes
	eventually(t, "what is ready again answers", func() (bool, string) {
		r := inPod(t, ns, "deployment/client", "fetch", declared)
		return r.code == 0, r.stdout + r.stderr
	})

	// Let out to the one port, and to nothing that the proxy needs.
	apply(t, policy(ns, "out", "client", "Egress", "egress: [{to: [{podSelector: {matchLabels: {scenario: web}}}], ports: [{port: 8080}]}]"))
	enforce(t, ns)
	pod := clientPod(t, ns)
	kill(t, ns, "client", "tulle-proxy")
	eventually(t, "a proxy that reaches no control plane says so", func() (bool, string) {
		r := run(t, "", "kubectl", "-n", ns, "logs", pod, "-c", "tulle-proxy")
		return r.code == 0 && strings.Contains(r.stdout+r.stderr, "no certificate yet: traffic waits"), r.stdout + r.stderr
	})
	// And with what README says, to that as well.
	kubectl(t, "-n", ns, "apply", "-f", readmePolicy(t))
	enforce(t, ns)
	eventually(t, "the client's proxy is ready", func() (bool, string) {
		s := containerOf(t, ns, "client", "tulle-proxy")
		return s.Ready, fmt.Sprintf("%+v", s)
	})
	fetch(t, ns, "deployment/client", "http://web:8080/")
	if n := sent(t, ns, "client", "web", "mtls"); n == 0 {
		t.Error("what the policies let through is not over mutual TLS")
	}
	for _, url := range []string{other, "http://next:8080/"} {
		if r := inPod(t, ns, "deployment/client", "fetch", url); r.code == 0 {
			t.Errorf("%s, which no policy lets the client call, answers: %s", url, r.stdout)
		}
	}
	if plain := sent(t, ns, "client", "web", "plaintext"); plain > 0 {
		t.Errorf("%d requests went in plaintext", plain)
	}
}

// policy is a NetworkPolicy for one of the scenario's workloads.
func policy(namespace, name, workload, kind, rules string) string {
	return fmt.Sprintf(`---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: %s, namespace: %s}
spec: {podSelector: {matchLabels: {scenario: %s}}, policyTypes: [%s], %s}
`, name, namespace, workload, kind, rules)
}

// readmePolicy is a file with the one that README tells operators to apply.
func readmePolicy(t *testing.T) string {
	t.Helper()
	readme, err := os.ReadFile(filepath.Join(chart, "../../../../../README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(readme, -1) {
		if strings.Contains(string(block[1]), "kind: NetworkPolicy") {
			file := filepath.Join(t.TempDir(), "policy.yaml")
			if err := os.WriteFile(file, block[1], 0o600); err != nil {
				t.Fatal(err)
			}
			return file
		}
	}
	t.Fatal("README has no NetworkPolicy")
	return ""
}

// sent counts the requests of a workload's one pod to a service that were answered,
// as its own proxy counts them.
func sent(t *testing.T, namespace, from, to, security string) (n int) {
	t.Helper()
	pod := pods(t, namespace, "scenario="+from)[0]
	metrics := kubectl(t, "get", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:4191/proxy/metrics", namespace, pod))
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "tulle_requests_total{") && strings.Contains(line, `direction="outbound"`) &&
			strings.Contains(line, `outcome="success"`) &&
			strings.Contains(line, `service="`+to+"."+namespace+`"`) && strings.Contains(line, `security="`+security+`"`) {
			count, err := strconv.Atoi(line[strings.LastIndex(line, " ")+1 : len(line)-1])
			if err != nil {
				t.Fatalf("%v in %s", err, line)
			}
			n += count
		}
	}
	return n
}

// containerState is what the kubelet says of one.
type containerState struct {
	Name, ContainerID string
	RestartCount      int
	Ready             bool
}

// containerOf finds a container of a workload's one pod.
func containerOf(t *testing.T, namespace, workload, name string) containerState {
	t.Helper()
	pod := decode[struct {
		Status struct{ InitContainerStatuses, ContainerStatuses []containerState }
	}](t, kubectl(t, "-n", namespace, "get", "pod", pods(t, namespace, "scenario="+workload)[0], "-o", "json"))
	for _, s := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("pod of %s/%s has no container %s", namespace, workload, name)
	return containerState{}
}

// kill kills a container, and waits until the kubelet has started it anew.
func kill(t *testing.T, namespace, workload, name string) {
	t.Helper()
	before := containerOf(t, namespace, workload, name)
	_, id, _ := strings.Cut(before.ContainerID, "://")
	node := kubectl(t, "-n", namespace, "get", "pod", pods(t, namespace, "scenario="+workload)[0], "-o", "jsonpath={.spec.nodeName}")
	killed := onNode(t, node, fmt.Sprintf(`for p in /proc/[0-9]*; do if grep -qs %s $p/cgroup && kill -KILL ${p#/proc/}; then echo killed; fi; done`, id))
	if id == "" || killed == "" {
		t.Fatalf("no process of container %s of %s/%s runs on %s", name, namespace, workload, node)
	}
	eventually(t, "container "+name+" of "+workload+" is started anew", func() (bool, string) {
		s := containerOf(t, namespace, workload, name)
		return s.RestartCount > before.RestartCount && s.ContainerID != before.ContainerID && s.ContainerID != "", fmt.Sprintf("%+v", s)
	})
}

// restarted kills a container, and waits until it is ready again.
func restarted(t *testing.T, namespace, workload, name string) {
	t.Helper()
	kill(t, namespace, workload, name)
	eventually(t, "container "+name+" of "+workload+" is ready again", func() (bool, string) {
		s := containerOf(t, namespace, workload, name)
		return s.Ready, fmt.Sprintf("%+v", s)
	})
}
