package kube

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// nearby has services that keep requests close to the client: in its zone, of which
// each node is one, as long as that has endpoints (trafficDistribution); on its node,
// come what may (internalTrafficPolicy).
func nearby(t *testing.T) {
	const ns = "nearby"
	namespace(t, ns, true)
	var all []workload
	var names []string
	for node := range redirects {
		server := on(node, web(1))
		server.labels = "part: near"
		for _, w := range []workload{server, on(node, client)} {
			all, names = append(all, w), append(names, "deployment/"+w.name)
		}
	}
	apply(t, deploy(ns, all...)+service(ns, "near", "part: near", "")+service(ns, "local", "part: near", "internalTrafficPolicy: Local"))
	rolledOut(t, ns, names...)
	server := func(node string) string { // not one that is about to end
		return kubectl(t, "-n", ns, "get", "pod", pods(t, ns, "scenario=web-"+node)[0], "-o", "jsonpath={.status.podIP}")
	}
	both := []string{server("node1"), server("node2")}
	for from := range redirects {
		answered(t, ns, from, "near", both...)
		answered(t, ns, from, "local", server(from))
	}

	kubectl(t, "-n", ns, "patch", "service", "near", "-p", `{"spec":{"trafficDistribution":"PreferClose"}}`)
	eventually(t, "each endpoint is for its own zone", func() (bool, string) {
		hints := kubectl(t, "-n", ns, "get", "endpointslices", "-l", "kubernetes.io/service-name=near",
			"-o", "jsonpath={range .items[*].endpoints[*]}{.addresses[0]} {.hints.forZones[*].name}{\"\\n\"}{end}")
		return strings.Contains(hints, server("node1")+" zone1\n") && strings.Contains(hints, server("node2")+" zone2\n"), hints
	})
	for from := range redirects {
		answered(t, ns, from, "near", server(from))
	}
	for node := range redirects {
		secured(t, ns, "web-"+node)
	}

	kubectl(t, "-n", ns, "scale", "deployment/web-node1", "--replicas=0")
	answered(t, ns, "node1", "near", server("node2"))
	answered(t, ns, "node2", "local", server("node2"))
	eventually(t, "nobody is behind the service that keeps to node1", func() (bool, string) {
		r := inPod(t, ns, "deployment/client-node1", "fetch", "http://local:8080/")
		return r.code != 0, r.stdout
	})
	kubectl(t, "-n", ns, "scale", "deployment/web-node1", "--replicas=1")
	rolledOut(t, ns, "deployment/web-node1")
	answered(t, ns, "node1", "near", server("node1"))
	answered(t, ns, "node1", "local", server("node1"))
	answered(t, ns, "node2", "near", server("node2"))
	secured(t, ns, "web-node2")
}

// service is a second one for pods that have one already.
func service(namespace, name, selector, more string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: %s}
spec:
  selector: {%s}
  ports: [{name: main, port: 8080, targetPort: main}]
  %s
`, name, namespace, selector, more)
}

// answered wants 40 requests from the client on a node to be answered by these
// servers, and no others, once the client's proxy has heard of them.
func answered(t *testing.T, namespace, node, service string, by ...string) {
	t.Helper()
	slices.Sort(by)
	eventually(t, fmt.Sprintf("%s is answered by %v on %s", service, by, node), func() (bool, string) {
		r := inPod(t, namespace, "deployment/client-"+node, "load", "-c", "1", "-n", "40", "http://"+service+":8080/")
		if r.code != 0 {
			return false, r.stdout + r.stderr
		}
		got := decode[struct {
			Failures int
			Answers  map[string]int
		}](t, r.stdout)
		return got.Failures == 0 && slices.Equal(slices.Sorted(maps.Keys(got.Answers)), by), r.stdout
	})
}
