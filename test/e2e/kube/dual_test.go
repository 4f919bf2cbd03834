package kube

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// marker is in the path of every request of dualStack's, and nowhere else: what
// shows it is plaintext.
const marker = "/who?in-the-clear"

// dualStack has IPv6 be as good as IPv4, and no way around the proxies: under
// both redirects, by every kind of address.
func dualStack(t *testing.T) {
	const ns, out = "dual", "dual-out"
	namespace(t, ns, true)
	namespace(t, out, false)
	seen, stop := wiretap(t)
	defer stop()
	var all []workload
	var names []string
	var services strings.Builder
	for node := range redirects {
		only := workload{name: "only", args: "web6 :8080", port: 8080, probe: "{exec: {command: [/app, fetch, 'http://[::1]:8080/']}, periodSeconds: 1, timeoutSeconds: 10}"}
		for _, w := range []workload{on(node, web(1)), on(node, only), on(node, client)} {
			all = append(all, w)
			names = append(names, "deployment/"+w.name)
		}
		services.WriteString(families(ns, node))
	}
	apply(t, services.String()+deploy(ns, all...)+deploy(out, client, web(1)))
	rolledOut(t, ns, names...)
	rolledOut(t, out, "deployment/client", "deployment/web")

	calls := map[string][]call6{}
	for to := range redirects {
		calls[to] = callsOver6(t, ns, to)
	}
	for from := range redirects {
		for to := range redirects {
			succeedOver6(t, ns, from, to, calls[to])
		}
	}
	for node := range redirects {
		secured(t, ns, "web-"+node)
		secured(t, ns, "only-"+node)
	}
	if packets := seen(); packets != 0 {
		t.Errorf("%d packets between meshed pods were readable", packets)
	}
	shownAs6(t, ns, out, calls["node2"])

	mixedOver6(t, ns, out, calls, seen)
	strictOver6(t, ns, out, calls)
	controlOver6(t, ns)
}

// families are Services of all kinds to the servers of a node.
func families(namespace, node string) string {
	var b strings.Builder
	for _, s := range []struct{ name, server, spec string }{
		{"both", "web", "ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6]"},
		{"six", "web", "ipFamilyPolicy: SingleStack, ipFamilies: [IPv6]"},
		{"each", "web", "ipFamilyPolicy: RequireDualStack, clusterIP: None"},
		{"only6", "only", "ipFamilyPolicy: SingleStack, ipFamilies: [IPv6]"},
	} {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s-%s, namespace: %s}\nspec: {%s, selector: {scenario: %[5]s-%[2]s}, ports: [{name: main, port: 8080}]}\n",
			s.name, node, namespace, s.spec, s.server)
	}
	return b.String()
}

// call6 is a way to a server.
type call6 struct {
	family string // -4, -6: of both that the name has; "": there is but one
	host   string
	server string
}

// callsOver6 are all ways to the servers of a node, and two over IPv4 to what has
// both.
func callsOver6(t *testing.T, namespace, node string) []call6 {
	t.Helper()
	name := func(service string) string { return service + "-" + node + "." + namespace }
	address := func(service string) string {
		return kubectl(t, "-n", namespace, "get", "service", service+"-"+node, "-o", "jsonpath={.spec.clusterIPs[-1:]}")
	}
	return []call6{
		{"-6", name("both"), "web"}, {"-4", name("both"), "web"}, {"", address("both"), "web"},
		{"", name("six"), "web"}, {"", address("six"), "web"},
		{"-6", name("each"), "web"}, {"-4", name("each"), "web"}, {"", podIP6(t, namespace, "web-"+node), "web"},
		{"", name("only6"), "only"}, {"", address("only6"), "only"}, {"", podIP6(t, namespace, "only-"+node), "only"},
	}
}

func (c call6) url() string { return "http://" + net.JoinHostPort(c.host, "8080") + marker }

// fetchEach makes all the calls from a workload's pod, each on its own.
func fetchEach(t *testing.T, namespace, from string, calls []call6) []outcome {
	t.Helper()
	args := []string{"each"}
	for _, c := range calls {
		args = append(args, strings.Fields(c.family+" "+c.url())...)
	}
	r := inPod(t, namespace, "deployment/"+from, args...)
	var all []outcome
	for line := range strings.Lines(r.stdout) {
		all = append(all, decode[outcome](t, line))
	}
	if r.code != 0 || len(all) != len(calls) {
		t.Fatalf("%d calls from %s/%s: exit %d\n%s%s", len(calls), namespace, from, r.code, r.stdout, r.stderr)
	}
	return all
}

// outcome is how one of several calls went.
type outcome struct{ Answer, Error string }

// succeedOver6 makes the calls from a node to another, and has the server see whom
// it has to: the client with eBPF, else its own proxy, at the pod's address.
func succeedOver6(t *testing.T, namespace, from, to string, calls []call6) {
	t.Helper()
	seen := map[string]string{} // by server and family, what it has to see
	for i, got := range fetchEach(t, namespace, "client-"+from, calls) {
		c := calls[i]
		who := c.server + "-" + to
		if redirects[to] == "ebpf" {
			who = "client-" + from
		}
		want, known := seen[who+c.family]
		if !known {
			if want = podIP6(t, namespace, who); c.family == "-4" {
				want = podIP(t, namespace, who)
			}
			seen[who+c.family] = want
		}
		if got.Error != "" || got.Answer != want {
			t.Errorf("from %s, GET %s %s: the server saw client %s %s, want %s", from, c.family, c.url(), got.Answer, got.Error, want)
		}
	}
}

// podIP6 is the other address of a pod, whose first is of IPv4.
func podIP6(t *testing.T, namespace, scenario string) string {
	t.Helper()
	ip := kubectl(t, "-n", namespace, "get", "pods", "-l", "scenario="+scenario, "-o", "jsonpath={.items[0].status.podIPs[1].ip}")
	if !strings.Contains(ip, ":") {
		t.Fatalf("%s/%s has the second address %q, want one of IPv6", namespace, scenario, ip)
	}
	return ip
}

// wiretap has the nodes count packets between pods that show the marker, of both
// families: seen says how many there were.
func wiretap(t *testing.T) (seen func() int, stop func()) {
	t.Helper()
	tables := []string{"iptables", "ip6tables"}
	change := func(how string) {
		for node := range redirects {
			for _, table := range tables {
				onNode(t, node, table+" -w -t raw "+how+" PREROUTING -p tcp -m string --algo bm --string '"+marker+"'")
			}
		}
	}
	change("-A")
	seen = func() int {
		sum := 0
		for node := range redirects {
			for _, table := range tables {
				for line := range strings.Lines(onNode(t, node, table+" -w -t raw -L PREROUTING -v -x -n")) {
					if fields := strings.Fields(line); strings.Contains(line, marker) {
						n, err := strconv.Atoi(fields[0])
						if err != nil {
							t.Fatalf("%v: %s", err, line)
						}
						sum += n
					}
				}
			}
		}
		return sum
	}
	return seen, func() { change("-D") }
}

// outbound is what a workload's proxies have counted of what it asked for.
func outbound(t *testing.T, namespace, scenario string) string {
	t.Helper()
	var b strings.Builder
	for _, pod := range pods(t, namespace, "scenario="+scenario) {
		for line := range strings.Lines(kubectl(t, "get", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:%d/proxy/metrics", namespace, pod, mesh.AdminPort))) {
			if strings.HasPrefix(line, "tulle_requests_total") && strings.Contains(line, `direction="outbound"`) {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// shownAs6 has the views take IPv6 addresses.
func shownAs6(t *testing.T, ns, out string, calls []call6) {
	t.Helper()
	eventually(t, "tulle edges shows mutual TLS only", func() (bool, string) {
		r := tulle(t, "edges", "ns/"+ns, "-o", "json")
		return r.code == 0 && strings.Contains(r.stdout, "mtls") && !strings.Contains(r.stdout, "plaintext"), r.stdout + r.stderr
	})
	for _, c := range calls {
		r := tulle(t, "why", "deploy/client-node1", c.url(), "-n", ns)
		if r.code != 0 || !strings.Contains(r.stdout, "by mutual TLS") {
			t.Errorf("tulle why deploy/client-node1 %s: exit %d\n%s%s", c.url(), r.code, r.stdout, r.stderr)
		}
		r = tulle(t, "why", "client."+out, c.url(), "-n", ns)
		if r.code != 0 || !strings.Contains(r.stdout, "in plaintext") {
			t.Errorf("tulle why client.%s %s: exit %d\n%s%s", out, c.url(), r.code, r.stdout, r.stderr)
		}
	}
}

// mixedOver6 has clients outside the mesh served, and seen on the wire, and servers
// outside called through the client's proxy.
func mixedOver6(t *testing.T, ns, out string, calls map[string][]call6, seen func() int) {
	t.Helper()
	for to := range redirects {
		for i, got := range fetchEach(t, out, "client", calls[to]) {
			if got.Error != "" {
				t.Errorf("from outside, GET %s %s: %s", calls[to][i].family, calls[to][i].url(), got.Error)
			}
		}
	}
	if seen() == 0 {
		t.Error("a client without a proxy was not seen on the wire, so nothing is known of those before")
	}
	outside := "http://" + net.JoinHostPort(podIP6(t, out, "web"), "8080") + marker
	for from := range redirects {
		if got, want := fetch(t, ns, "deployment/client-"+from, outside), podIP6(t, ns, "client-"+from); got != want {
			t.Errorf("from %s, a server outside the mesh saw client %s, want %s", from, got, want)
		}
		eventually(t, "the proxy on "+from+" has counted what went out over IPv6", func() (bool, string) {
			left := outbound(t, ns, "client-"+from)
			return strings.Contains(left, `security="plaintext"`), left
		})
	}
}

// strictOver6 refuses clients outside the mesh, whichever address they find, and
// serves those inside.
func strictOver6(t *testing.T, ns, out string, calls map[string][]call6) {
	t.Helper()
	kubectl(t, "annotate", "namespace", ns, cluster.Policy+"="+cluster.Strict)
	for to := range redirects {
		eventually(t, "strict: all calls from outside to "+to+" are refused", func() (bool, string) {
			var served []string
			for i, got := range fetchEach(t, out, "client", calls[to]) {
				if got.Error == "" {
					served = append(served, calls[to][i].family+" "+calls[to][i].url())
				}
			}
			return len(served) == 0, "served: " + strings.Join(served, ", ")
		})
		succeedOver6(t, ns, "node1", to, calls[to])
		// The proxy's own ports are no way in, either.
		for _, port := range []int{mesh.InboundPort, mesh.OutboundPort} {
			url := "http://" + net.JoinHostPort(podIP6(t, ns, "web-"+to), strconv.Itoa(port)) + marker
			if r := inPod(t, out, "deployment/client", "fetch", url); r.code == 0 {
				t.Errorf("%s served a client outside of a strict namespace: %s", url, r.stdout)
			}
		}
	}
}

// controlOver6 gives the control plane's Service an IPv6 address: proxies get
// their names there as well, and nobody else's.
func controlOver6(t *testing.T, ns string) {
	t.Helper()
	policy := func(name string) {
		kubectl(t, "-n", cluster.Namespace, "patch", "service", cluster.Control, "-p", `{"spec":{"ipFamilyPolicy":"`+name+`"}}`)
	}
	policy("RequireDualStack")
	defer policy("SingleStack")
	control := kubectl(t, "-n", cluster.Namespace, "get", "service", cluster.Control, "-o", "jsonpath={.spec.clusterIPs[1]}")
	at := net.JoinHostPort(control, strconv.Itoa(mesh.ControlPort))
	pod, other := pods(t, ns, "scenario=client-node1")[0], pods(t, ns, "scenario=client-node2")[0]
	certify := func(owner string) result {
		token := strings.TrimSpace(kubectl(t, "-n", ns, "create", "token", "default", "--audience", cluster.TokenAudience, "--bound-object-kind=Pod", "--bound-object-name="+owner))
		return run(t, token, "kubectl", "-n", ns, "exec", "-i", pod, "-c", "app", "--", "/app", "certify", at)
	}
	eventually(t, "a certificate over IPv6", func() (bool, string) { // once the nodes know of the address
		r := certify(pod)
		return r.code == 0 && strings.Contains(r.stdout, "spiffe://cluster.local/ns/"+ns+"/sa/default"), r.stdout + r.stderr
	})
	if r := certify(other); r.code == 0 {
		t.Errorf("another pod's token, over IPv6, got a certificate: %s", r.stdout)
	}
	kubectl(t, "-n", ns, "rollout", "restart", "deployment/client-node1", "deployment/client-node2")
	rolledOut(t, ns, "deployment/client-node1", "deployment/client-node2")
	for from := range redirects {
		for to := range redirects {
			if got := fetchEach(t, ns, "client-"+from, []call6{{"-6", "both-" + to, "web"}})[0]; got.Error != "" {
				t.Errorf("from %s to %s: %s", from, to, got.Error)
			}
		}
	}
	must(t, "check")
}
