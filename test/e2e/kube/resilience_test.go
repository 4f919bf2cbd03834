package kube

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
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
		noControl(t)
		kubectl(t, "-n", "tulle-system", "scale", "deployment/tulle-control", "--replicas=1")
		rolledOut(t, "tulle-system", "deployment/tulle-control")
	})
	// What has changed meanwhile arrives.
	kubectl(t, "-n", "alone", "rollout", "restart", "deployment/web")
	rolledOut(t, "alone", "deployment/web")
	fetch(t, "alone", clientPod(t, "alone"), "http://web:8080/")
}

// noControl ends the control plane: to its end, not only to where it serves on.
func noControl(t *testing.T) {
	t.Helper()
	kubectl(t, "-n", "tulle-system", "scale", "deployment/tulle-control", "--replicas=0")
	eventually(t, "the control plane is gone", func() (bool, string) {
		p := kubectl(t, "-n", "tulle-system", "get", "pods", "-l", "app.kubernetes.io/name=tulle-control", "-o", "name")
		return p == "", p
	})
}

// controlReplaced has a service replaced at the very moment when the control
// plane is: proxies find the new one before what they know is too old.
func controlReplaced(t *testing.T) {
	loaded(t, "replaced", 2)
	underLoad(t, "replaced", clientPod(t, "replaced"), "http://web:8080/", func() {
		for range 2 {
			kubectl(t, "-n", "tulle-system", "rollout", "restart", "deployment/tulle-control")
			rolledOut(t, "tulle-system", "deployment/tulle-control")
			kubectl(t, "-n", "replaced", "rollout", "restart", "deployment/web")
			rolledOut(t, "replaced", "deployment/web")
		}
	})
	secured(t, "replaced", "web")
}

// injectorAway has pods of meshed namespaces wait, and no others.
func injectorAway(t *testing.T) {
	namespace(t, "waits", true)
	namespace(t, "free", false)
	noControl(t)
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

// agentAway takes the agents off the nodes: meshed pods do not start, others do,
// and those that run are served. Where the plugin is not even in the chain, so
// that the runtime starts pods without asking, no container of theirs runs in
// plaintext. Then the agents come back, and all go on where they are.
func agentAway(t *testing.T) {
	loaded(t, "agentless", 1)
	namespace(t, "plain", false)
	namespace(t, "early", true)
	withoutAgents(t, func() {
		fetch(t, "agentless", clientPod(t, "agentless"), "http://web:8080/")
		apply(t, deploy("plain", client))
		rolledOut(t, "plain", "deployment/client")
		apply(t, deploy("agentless", workload{name: "late", args: "hold"}))
		eventually(t, "the meshed pod says why it does not start", func() (bool, string) {
			s := kubectl(t, "-n", "agentless", "get", "events", "-o", "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}")
			return strings.Contains(s, "the pod is meshed, and its traffic cannot be redirected"), s
		})
		unchained(t)
	})
	rolledOut(t, "agentless", "deployment/late")
	chained(t)
}

// agentKilled kills the agents' processes while pods come: those wait for the
// next agent, and none goes without a redirect.
func agentKilled(t *testing.T) {
	loaded(t, "killed", 1)
	underLoad(t, "killed", clientPod(t, "killed"), "http://web:8080/", func() {
		kubectl(t, "-n", "killed", "scale", "deployment/web", "--replicas=4")
		for _, node := range []string{"node1", "node2"} {
			killed := onNode(t, node, `for p in /proc/[0-9]*; do if [ "$(readlink $p/exe)" = /tulle-cni ] && kill -KILL ${p#/proc/}; then echo killed; fi; done`)
			if killed == "" {
				t.Errorf("no agent runs on %s", node)
			}
		}
		rolledOut(t, "killed", "deployment/web")
		rolledOut(t, "tulle-system", "daemonset/tulle-cni")
	})
	secured(t, "killed", "web")
}

// anotherAuthority brings an authority of the user's own while there is load:
// an intermediate, and its root beside the old one. Pods of before and after
// trust each other, and nothing restarts.
func anotherAuthority(t *testing.T) {
	loaded(t, "roots", 2)
	old := certificate(t)
	dir := t.TempDir()
	script := `set -e
req() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "$@"; }
req -x509 -days 30 -subj '/O=Scenario/CN=root' -keyout root.key -out root.crt -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
req -subj '/O=Scenario/CN=mesh' -keyout mesh.key -out mesh.csr
printf 'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n' >mesh.ext
openssl x509 -req -in mesh.csr -CA root.crt -CAkey root.key -CAcreateserial -days 30 -extfile mesh.ext -out mesh.crt
`
	if r := run(t, "", "sh", "-c", "cd "+dir+"\n"+script); r.code != 0 {
		t.Fatalf("make an authority: %s%s", r.stdout, r.stderr)
	}
	read := func(name string) []byte {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	patch, err := json.Marshal(map[string]any{"data": map[string][]byte{
		"tls.crt": read("mesh.crt"), "tls.key": read("mesh.key"), "ca.crt": append(read("root.crt"), old...),
	}})
	if err != nil {
		t.Fatal(err)
	}
	underLoad(t, "roots", clientPod(t, "roots"), "http://web:8080/", func() {
		kubectl(t, "-n", "tulle-system", "patch", "secret", "tulle-ca", "-p", string(patch))
		eventually(t, "the roots are in the namespace", func() (bool, string) {
			roots := kubectl(t, "-n", "roots", "get", "configmap", "tulle-roots", "-o", "jsonpath={.data.roots\\.pem}")
			return strings.Contains(roots, strings.TrimSpace(string(read("root.crt")))), roots
		})
		kubectl(t, "-n", "roots", "rollout", "restart", "deployment/web")
		rolledOut(t, "roots", "deployment/web")
	})
	secured(t, "roots", "web")
	pod := pods(t, "roots", "scenario=web")[0]
	eventually(t, "the new authority signs", func() (bool, string) {
		r := tulle(t, "identity", pod, "-o", "json")
		return strings.Contains(r.stdout, "mesh"), r.stdout + r.stderr
	})
}

// certificate is the authority's.
func certificate(t *testing.T) []byte {
	t.Helper()
	secret := decode[struct{ Data map[string][]byte }](t, kubectl(t, "-n", "tulle-system", "get", "secret", "tulle-ca", "-o", "json"))
	return secret.Data["tls.crt"]
}

// threeReplicas kills one of three control planes; who looks at the mesh sees
// all of it, whichever replica a proxy reports to.
func threeReplicas(t *testing.T) {
	must(t, "upgrade", "--ha")
	loaded(t, "many", 3)
	web := pods(t, "many", "scenario=web")
	all := func() {
		eventually(t, "the dashboard knows every proxy", func() (bool, string) {
			r := tulle(t, "proxies")
			for _, pod := range append(web, clientPod(t, "many")) {
				if !strings.Contains(r.stdout, pod) {
					return false, r.stdout + r.stderr
				}
			}
			return r.code == 0, r.stdout + r.stderr
		})
	}
	control := func() []string { return pods(t, "tulle-system", "app.kubernetes.io/name=tulle-control") }
	if n := len(control()); n != 3 {
		t.Errorf("%d replicas", n)
	}
	underLoad(t, "many", clientPod(t, "many"), "http://web:8080/", func() {
		all()
		kubectl(t, "-n", "tulle-system", "delete", "pod", control()[0], "--wait=false")
		rolledOut(t, "tulle-system", "deployment/tulle-control")
		all()
	})
	secured(t, "many", "web")
	must(t, "install", "--auto-mesh", selector)
	if r := run(t, "", "kubectl", "-n", "tulle-system", "get", "poddisruptionbudget", "tulle-control"); r.code == 0 {
		t.Errorf("one replica still has a budget: %s", r.stdout)
	}
}

// noPlugin has init containers redirect instead, and brings the plugin back.
func noPlugin(t *testing.T) {
	must(t, "install", "--no-cni", "--auto-mesh", selector)
	for _, node := range []string{"node1", "node2"} {
		if left := onNode(t, node, "ls /opt/cni/bin | grep tulle; grep -l tulle /etc/cni/net.d/* || true"); left != "" {
			t.Errorf("on %s is left: %s", node, left)
		}
	}
	namespace(t, "bare", true)
	apply(t, deploy("bare", web(1), client))
	rolledOut(t, "bare", "deployment/web", "deployment/client")
	if got := kubectl(t, "-n", "bare", "get", "pods", "-l", "scenario=web", "-o", "jsonpath={.items[*].spec.initContainers[*].name}"); got != "tulle-init tulle-proxy" {
		t.Errorf("init containers %q", got)
	}
	fetch(t, "bare", "deployment/client", "http://web:8080/")
	secured(t, "bare", "web")
	must(t, "install", "--auto-mesh", selector)
	kubectl(t, "-n", "bare", "rollout", "restart", "deployment/web")
	rolledOut(t, "bare", "deployment/web")
	fetch(t, "bare", "deployment/client", "http://web:8080/") // install has waited for its proxy
	secured(t, "bare", "web")
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

// powerCut takes the power from both nodes at once: pods come back, and not one
// request goes in plaintext from their very start.
func powerCut(t *testing.T) {
	namespace(t, "dark", true)
	var all []workload
	var names []string
	for node, other := range map[string]string{"node1": "node2", "node2": "node1"} {
		server := on(node, web(1))
		server.args = "web -delay 50ms :8080"
		for _, w := range []workload{server, on(node, client), on(node, workload{name: "caller", args: "load -c 1 http://web-" + other + ":8080/"})} {
			all = append(all, w)
			names = append(names, "deployment/"+w.name)
		}
	}
	apply(t, deploy("dark", all...))
	rolledOut(t, "dark", names...)
	for node := range redirects {
		onNode(t, node, "exec "+scripts+"/node "+strings.TrimPrefix(node, "node")+" again")
	}
	for _, namespace := range []string{"tulle-system", "dark"} {
		eventually(t, "the pods of "+namespace+" are back", func() (bool, string) {
			states := kubectl(t, "-n", namespace, "get", "pods", "-o", "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}{\"\\n\"}{end}")
			for line := range strings.Lines(states) {
				if f := strings.Fields(line); len(f) != 3 || f[1] == "0" || f[2] != "true" {
					return false, states
				}
			}
			return states != "", states
		})
	}
	for from := range redirects {
		for to := range redirects {
			eventually(t, "a request from "+from+" to "+to, func() (bool, string) { // the name server comes back in its own time
				r := inPod(t, "dark", "deployment/client-"+from, "fetch", "http://web-"+to+":8080/")
				return r.code == 0, r.stdout + r.stderr
			})
		}
	}
	for node := range redirects {
		secured(t, "dark", "web-"+node)
	}
}
