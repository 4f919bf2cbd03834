package kube

import (
	"net"
	"slices"
	"strings"
	"testing"
)

// The cluster's nodes, each with the redirect that it can have: ./cluster/node
// gives every second one no bpffs.
var redirects = map[string]string{"node1": "ebpf", "node2": "nftables"}

// on is a workload whose pods run on one node.
func on(node string, w workload) workload {
	w.name += "-" + node
	w.pod += "      nodeSelector: {kubernetes.io/hostname: " + node + "}\n"
	return w
}

// redirected has both redirects work with each other, and with what they are on
// their own node only.
func redirected(t *testing.T) {
	namespace(t, "redirects", true)
	var all []workload
	var names []string
	opaque := web(1)
	opaque.name, opaque.notes = "opaque", `tulle.dev/opaque-ports: "8080"`
	grpc := workload{name: "grpc", args: "grpc :9000", port: 9000, probe: "{grpc: {port: 9000}, periodSeconds: 1, timeoutSeconds: 10}"}
	mail := workload{name: "mail", args: "smtpd :2525", port: 2525, probe: "{tcpSocket: {port: main}, periodSeconds: 1, timeoutSeconds: 10}"}
	for node := range redirects {
		for _, w := range []workload{on(node, web(1)), on(node, opaque), on(node, grpc), on(node, mail), on(node, client)} {
			all = append(all, w)
			names = append(names, "deployment/"+w.name)
		}
	}
	apply(t, deploy("redirects", all...))
	rolledOut(t, "redirects", names...)
	for from := range redirects {
		for to, backend := range redirects {
			for _, service := range []string{"web", "opaque"} {
				server := service + "-" + to
				// Who calls, the application sees with eBPF; else it sees its proxy, at the
				// pod's own address.
				want := podIP(t, "redirects", server)
				if backend == "ebpf" {
					want = podIP(t, "redirects", "client-"+from)
				}
				if got := fetch(t, "redirects", "deployment/client-"+from, "http://"+server+":8080/who"); got != want {
					t.Errorf("from %s, %s saw client %s, want %s", from, server, got, want)
				}
			}
			for _, args := range [][]string{{"call", "-n", "2", "grpc-" + to + ":9000"}, {"dial", "mail-" + to + ":2525", "line"}} {
				if r := inPod(t, "redirects", "deployment/client-"+from, args...); r.code != 0 {
					t.Errorf("from %s, %v: exit %d\n%s%s", from, args, r.code, r.stdout, r.stderr)
				}
			}
		}
	}
	for node, backend := range redirects {
		secured(t, "redirects", "web-"+node)
		if log := agentLog(t, node); !strings.Contains(log, `msg="redirect chosen" backend=`+backend) {
			t.Errorf("the agent of %s does not say that it chose %s:\n%s", node, backend, log)
		}
	}
	if log := agentLog(t, "node2"); !strings.Contains(log, "no bpffs is mounted") {
		t.Errorf("the agent of node2 does not say why it is not eBPF:\n%s", log)
	}
}

func podIP(t *testing.T, namespace, scenario string) string {
	t.Helper()
	return kubectl(t, "-n", namespace, "get", "pods", "-l", "scenario="+scenario, "-o", "jsonpath={.items[0].status.podIP}")
}

// agentPod returns the name of a node's agent.
func agentPod(t *testing.T, node string) string {
	t.Helper()
	return kubectl(t, "-n", "tulle-system", "get", "pods", "-l", "app.kubernetes.io/name=tulle-cni", "--field-selector", "spec.nodeName="+node, "-o", "jsonpath={.items[0].metadata.name}")
}

func agentLog(t *testing.T, node string) string {
	t.Helper()
	return kubectl(t, "-n", "tulle-system", "logs", agentPod(t, node))
}

// unchained starts pods while the plugin is off the chain, and nobody there to put
// it back.
func unchained(t *testing.T) {
	t.Helper()
	for node := range redirects {
		onNode(t, node, "cp /run/pods.conflist /etc/cni/net.d/.new && mv /etc/cni/net.d/.new /etc/cni/net.d/10-pods.conflist")
	}
	apply(t, deploy("early", on("node1", client), on("node2", client), on("node1", web(1)), on("node2", web(1))))
	for node := range redirects {
		eventually(t, "the proxy on "+node+" says that it is not redirected", func() (bool, string) {
			r := run(t, "", "kubectl", "-n", "early", "logs", "deployment/client-"+node, "-c", "tulle-proxy")
			return strings.Contains(r.stdout, "is not redirected to its proxy"), r.stdout + r.stderr
		})
	}
	states := kubectl(t, "-n", "early", "get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].started}")
	if want := []string{"false", "false", "false", "false"}; !slices.Equal(strings.Fields(states), want) {
		t.Errorf("containers started: %s, want none before its pod is redirected", states)
	}
}

// chained has the pods of unchained talk to each other, in the mesh.
func chained(t *testing.T) {
	t.Helper()
	for node := range redirects {
		rolledOut(t, "early", "deployment/client-"+node, "deployment/web-"+node)
		for to := range redirects {
			fetch(t, "early", "deployment/client-"+node, "http://"+net.JoinHostPort("web-"+to, "8080")+"/")
		}
	}
	for node := range redirects {
		secured(t, "early", "web-"+node)
	}
}

// withoutAgents takes the agents off the nodes while do runs.
func withoutAgents(t *testing.T, do func()) {
	t.Helper()
	kubectl(t, "-n", "tulle-system", "patch", "daemonset", "tulle-cni", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":"true"}}}}}`)
	eventually(t, "the agents are gone", func() (bool, string) {
		p := strings.Join(pods(t, "tulle-system", "app.kubernetes.io/name=tulle-cni"), " ")
		return p == "", p
	})
	do()
	kubectl(t, "-n", "tulle-system", "patch", "daemonset", "tulle-cni", "--type=json", "-p", `[{"op":"remove","path":"/spec/template/spec/nodeSelector/nowhere"}]`)
	rolledOut(t, "tulle-system", "daemonset/tulle-cni")
}

// collected waits until node1 has forgotten a pod that has gone. Others may still be
// on their way.
func collected(t *testing.T) {
	namespace(t, "gone", true)
	inbound := func() []string { return strings.Fields(onNode(t, "node1", "ls /sys/fs/bpf/tulle-cni/inbound")) }
	before := inbound()
	apply(t, deploy("gone", on("node1", client)))
	rolledOut(t, "gone", "deployment/client-node1")
	of := slices.DeleteFunc(inbound(), func(pin string) bool { return slices.Contains(before, pin) })
	if len(of) != 1 {
		t.Fatalf("for one more pod there is more in the kernel: %q, want one pin", of)
	}
	kubectl(t, "-n", "gone", "delete", "deployment", "client-node1", "--grace-period=1")
	eventually(t, "what the kernel had of the pod is gone", func() (bool, string) {
		now := inbound()
		return !slices.Contains(now, of[0]), strings.Join(now, " ")
	})
}
