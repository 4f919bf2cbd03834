package kube

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// traffic brings a namespace with running workloads into the mesh, and sends
// what applications speak through it.
func traffic(t *testing.T) {
	namespace(t, "shop", false)
	apply(t, deploy("shop", web(2), client,
		workload{name: "grpc", args: "grpc :9000", port: 9000, probe: "{grpc: {port: 9000}, periodSeconds: 1, timeoutSeconds: 10}"},
		workload{name: "tcp", args: "serve :7000 line send:pong\\n eof", port: 7000, probe: "{tcpSocket: {port: main}, periodSeconds: 1, timeoutSeconds: 10}"},
		workload{name: "mail", args: "smtpd :2525", port: 2525},
	))
	all := []string{"deployment/web", "deployment/client", "deployment/grpc", "deployment/tcp", "deployment/mail"}
	rolledOut(t, "shop", all...)
	must(t, "mesh", "shop")
	for _, pod := range pods(t, "shop", "scenario") {
		if names := kubectl(t, "-n", "shop", "get", "pod", pod, "-o", "jsonpath={.spec.initContainers[*].name}"); names != "tulle-proxy" {
			t.Errorf("pod %s has init containers %q, want the proxy alone", pod, names)
		}
	}
	answers := map[string]bool{}
	for range 20 {
		answers[fetch(t, "shop", "deployment/client", "http://web:8080/")] = true
	}
	if len(answers) != 2 {
		t.Errorf("20 requests to two replicas were answered by %v", answers)
	}
	for _, c := range []struct {
		what, want string
		args       []string
	}{
		{"gRPC", "SERVING\nSERVING\nSERVING\n", []string{"call", "-n", "3", "grpc:9000"}},
		{"TCP", `received "pong\n"`, []string{"dial", "tcp.shop.svc.cluster.local:7000", "send:ping\\n", "line", "fin"}},
		{"a server that speaks first", "220 peer ready", []string{"dial", "mail:2525", "line", "send:QUIT\\r\\n"}},
	} {
		if r := inPod(t, "shop", "deployment/client", c.args...); r.code != 0 || !strings.Contains(r.stdout, c.want) {
			t.Errorf("%s: exit %d: %s%s", c.what, r.code, r.stdout, r.stderr)
		}
	}
	secured(t, "shop", "web")
	for _, view := range []string{"stat", "edges"} {
		eventually(t, "tulle "+view+" shows the service", func() (bool, string) {
			out := must(t, view, "-o", "wide")
			return strings.Contains(out, "web.shop"), out
		})
	}
	refused(t, "still have a proxy, in ", "uninstall")
	must(t, "unmesh", "shop")
	for _, pod := range pods(t, "shop", "scenario") {
		if names := kubectl(t, "-n", "shop", "get", "pod", pod, "-o", "jsonpath={.spec.initContainers[*].name}"); names != "" {
			t.Errorf("pod %s, out of the mesh, has init containers %q", pod, names)
		}
	}
	fetch(t, "shop", "deployment/client", "http://web:8080/")
	eventually(t, "the roots are gone with the last proxy", func() (bool, string) {
		left := kubectl(t, "-n", "shop", "get", "configmaps", "--ignore-not-found", "tulle-roots")
		return left == "", left
	})
}

// secured makes sure that what arrived at a workload's proxies came over mutual
// TLS, as their own counters say.
func secured(t *testing.T, namespace, name string) {
	t.Helper()
	var secure, plain int
	for _, pod := range pods(t, namespace, "scenario="+name) {
		metrics := kubectl(t, "get", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:4191/proxy/metrics", namespace, pod))
		for line := range strings.Lines(metrics) {
			if !strings.HasPrefix(line, "tulle_requests_total") || !strings.Contains(line, `direction="inbound"`) {
				continue
			}
			if strings.Contains(line, `security="mtls"`) {
				secure++
			} else {
				plain++
			}
		}
	}
	if secure == 0 || plain > 0 {
		t.Errorf("%s/%s: %d kinds of requests over mutual TLS, %d without", namespace, name, secure, plain)
	}
}

// addresses calls what is not simply a service: oneself, a pod, a name without
// an address of its own, a port that no Service names.
func addresses(t *testing.T) {
	namespace(t, "addresses", true)
	db := workload{name: "db", replicas: 2, args: "web :8080", port: 8080, headless: true, probe: "{httpGet: {path: /, port: main}, periodSeconds: 1, timeoutSeconds: 10}"}
	apply(t, deploy("addresses", web(1), client, workload{name: "quiet", args: "web :8099"})+db.manifest("addresses", "StatefulSet"))
	rolledOut(t, "addresses", "deployment/web", "deployment/client", "deployment/quiet", "statefulset/db")
	ip := func(label string) string {
		return kubectl(t, "-n", "addresses", "get", "pods", "-l", "scenario="+label, "-o", "jsonpath={.items[0].status.podIP}")
	}
	url := func(host string, port int) string { return "http://" + net.JoinHostPort(host, fmt.Sprint(port)) + "/" }
	for _, c := range []struct{ what, from, url, want string }{
		{"its own service", "deployment/web", url("web", 8080), ip("web")},
		{"its own address", "deployment/web", url(ip("web"), 8080), ip("web")},
		{"a pod's address", "deployment/client", url(ip("web"), 8080), ip("web")},
		{"an ordinal", "deployment/client", url("db-1.db", 8080), kubectl(t, "-n", "addresses", "get", "pod", "db-1", "-o", "jsonpath={.status.podIP}")},
		{"a port in no Service", "deployment/client", url(ip("quiet"), 8099), ip("quiet")},
	} {
		if got := fetch(t, "addresses", c.from, c.url); got != c.want {
			t.Errorf("%s, %s: answered by %q, want %q", c.what, c.url, got, c.want)
		}
	}
	// Which of its pods, the name server has decided; the mesh keeps to that.
	both := kubectl(t, "-n", "addresses", "get", "pods", "-l", "scenario=db", "-o", "jsonpath={.items[*].status.podIP}")
	if got := fetch(t, "addresses", "deployment/client", url("db", 8080)); !slices.Contains(strings.Fields(both), got) {
		t.Errorf("a headless service of %s was answered by %s", both, got)
	}
}

// nodes has clients in the network of a node call a meshed service, by its
// address and by a port of the node's, over IPv4 and IPv6, which kube-proxy sends to
// any node's pod.
func nodes(t *testing.T) {
	namespace(t, "ports", true)
	namespace(t, "nodes", false)
	apply(t, deploy("ports", web(2)))
	rolledOut(t, "ports", "deployment/web")
	kubectl(t, "-n", "ports", "patch", "service", "web", "-p", `{"spec":{"type":"NodePort","ipFamilyPolicy":"RequireDualStack"}}`)
	service := strings.Fields(kubectl(t, "-n", "ports", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP} {.spec.ports[0].nodePort}"))
	for _, node := range []string{"node1", "node2"} {
		apply(t, deploy("nodes", workload{name: node, args: "hold", pod: "      hostNetwork: true\n      nodeSelector: {kubernetes.io/hostname: " + node + "}\n"}))
	}
	rolledOut(t, "nodes", "deployment/node1", "deployment/node2")
	for _, from := range []string{"node1", "node2"} {
		urls := []string{"http://" + net.JoinHostPort(service[0], "8080") + "/"}
		for _, ip := range strings.Fields(kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].status.addresses[?(@.type==\"InternalIP\")].address}")) {
			urls = append(urls, "http://"+net.JoinHostPort(ip, service[1])+"/")
		}
		for _, url := range urls {
			eventually(t, "GET "+url+" from "+from, func() (bool, string) { // kube-proxy learns of the port in its own time
				r := inPod(t, "nodes", "deployment/"+from, "fetch", url)
				return r.code == 0, r.stdout + r.stderr
			})
		}
	}
}

// views reads the cluster's dashboard through the tunnel, with every command.
func views(t *testing.T) {
	namespace(t, "seen", true)
	slow := web(1) // some requests are enough to look at, and leave the machine to others
	slow.args = "web -delay 10ms :8080"
	apply(t, deploy("seen", slow, client))
	rolledOut(t, "seen", "deployment/web", "deployment/client")
	pod := pods(t, "seen", "scenario=web")[0]
	underLoad(t, "seen", clientPod(t, "seen"), "http://web:8080/", func() {
		for _, c := range []struct {
			want string
			args []string
		}{
			{"web.seen", []string{"stat"}},
			{"web.seen", []string{"stat", "ns/seen"}},
			{"web.seen", []string{"stat", "web.seen", "-o", "wide"}},
			{"mtls", []string{"edges", "svc/web", "-n", "seen", "-o", "json"}},
			{"client.seen", []string{"edges", "ns/seen"}},
			{pod, []string{"proxies"}},
			{"spiffe://cluster.local/ns/seen/sa/default", []string{"identity", "pod/" + pod}},
			{"spiffe://cluster.local/ns/seen/sa/default", []string{"identity", "deploy/web", "-n", "seen"}},
		} {
			eventually(t, "tulle "+strings.Join(c.args, " ")+" shows "+c.want, func() (bool, string) {
				r := tulle(t, c.args...)
				return r.code == 0 && strings.Contains(r.stdout, c.want), r.stdout + r.stderr
			})
		}
		follow(t, func(out string) bool { return strings.Contains(out, `"path":"/"`) }, "tap", "deploy/web", "-n", "seen", "-o", "json")
		follow(t, func(out string) bool {
			url, _, _ := strings.Cut(out, " ")
			if url == "" {
				return false
			}
			answer, err := http.Get(url)
			if err != nil {
				return false
			}
			defer func() { _ = answer.Body.Close() }()
			page, err := io.ReadAll(answer.Body)
			return err == nil && answer.StatusCode == http.StatusOK && strings.Contains(string(page), "Tulle")
		}, "dashboard")
		if out := must(t, "top", "ns/seen", "--for", "5s"); !strings.Contains(out, "GET") {
			t.Errorf("top saw nothing: %s", out)
		}
	})
}
