package kube

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// sayPath writes down what is different in each case: who calls, and each
// endpoint with what is wrong with it.
func sayPath(p *mesh.Path) string {
	var b strings.Builder
	member := func(m mesh.PathMember) {
		words := []string{"\n ", m.Workload, m.Address, m.State}
		if m.Identity != "" {
			words = append(words, strings.TrimPrefix(m.Identity, "spiffe://cluster.local/ns/"))
		}
		for _, w := range []string{m.Plain, m.Remedy, m.Unused, m.SkipOutbound} {
			if w != "" {
				words = append(words, "("+w+")")
			}
		}
		if m.Strict {
			words = append(words, "strict")
		}
		b.WriteString(strings.Join(words, " "))
	}
	b.WriteString(p.Client.Name)
	for _, m := range p.Client.Members {
		member(m)
	}
	fmt.Fprintf(&b, "\n%s %s %s%v", p.Server.Kind, p.Server.Name, p.Server.Target, p.Server.Addresses)
	for _, port := range p.Ports {
		fmt.Fprintf(&b, "\n%d %s", port.Port, strings.TrimSpace(port.Protocol+" "+port.Declared))
		if port.Missing {
			fmt.Fprint(&b, " missing ", port.Others)
		}
		for _, m := range port.Endpoints {
			member(m)
		}
	}
	return b.String()
}

func namespaceOf(name string, annotations map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}
}

func owned(p *corev1.Pod, deployment string) *corev1.Pod {
	yes := true
	p.Labels = withEntry(p.Labels, cluster.HashLabel, "5d4f")
	p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: deployment + "-5d4f", Controller: &yes}}
	return p
}

func withEntry(m map[string]string, key, value string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}

// skip makes of a pod one that the injector let go around its proxy.
func skip(p *corev1.Pod, ports string) {
	p.Annotations[cluster.SkipInboundPorts] = ports
	for i, c := range p.Spec.InitContainers {
		if c.Name == cluster.ProxyContainer {
			p.Spec.InitContainers[i].Env = append(c.Env, corev1.EnvVar{Name: cluster.DirectPortsVariable, Value: ports})
		}
	}
}

func TestPath(t *testing.T) {
	direct := owned(newPod("shop/direct-1", "10.0.0.5"), "direct")
	skip(direct, "9000")
	around := owned(newPod("shop/around-1", "10.0.0.6"), "around")
	around.Annotations[cluster.SkipOutboundPorts] = "80,4000-4010"
	onHost := owned(newPod("shop/agent-1", "192.0.2.1"), "agent")
	onHost.Spec.HostNetwork = true
	alone := owned(plain(newPod("shop/alone-1", "10.0.0.7")), "alone")
	alone.Labels = withEntry(alone.Labels, cluster.Inject, cluster.Disabled)
	far := of("shop/web-2", "10.0.0.2")
	far.NodeName = ptr("node-b")
	local := newService("shop/local", []string{"10.96.0.4"}, port("", 80))
	local.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
	other := newService("shop/other", nil, port("", 80))
	other.Spec.Type, other.Spec.ExternalName = corev1.ServiceTypeExternalName, "api.example.com"
	grpc := port("grpc", 9090)
	grpc.AppProtocol = ptr("grpc")
	both := newSlice("shop/both", "-a", 0, of("shop/direct-1", "10.0.0.5"), with(of("shop/web-1", "10.0.0.1"), false, true, true), with(of("shop/web-2", "10.0.0.2"), false, false, false))
	both.Ports = []discoveryv1.EndpointPort{{Name: ptr(""), Port: ptr[int32](9000)}, {Name: ptr("grpc"), Port: ptr[int32](9090)}}
	two, two6 := newSlice("shop/two", "-a", 8080, of("shop/two-1", "10.0.0.9")), newSlice("shop/two", "-b", 8080, of("shop/two-1", "fd00:1::9"))
	source, state, _ := start(t,
		owned(newPod("shop/two-1", "10.0.0.9", "fd00:1::9"), "two"), newService("shop/two", []string{"10.96.0.9", "fd00:96::9"}, port("", 80)), two, two6,
		namespaceOf("shop", map[string]string{cluster.Inject: cluster.Enabled, cluster.Policy: cluster.Strict}), namespaceOf("out", nil),
		owned(newPod("shop/web-1", "10.0.0.1"), "web"), owned(newPod("shop/web-2", "10.0.0.2"), "web"), owned(plain(newPod("shop/old-1", "10.0.0.3")), "old"),
		owned(plain(newPod("out/job-1", "10.0.0.4")), "job"), direct, around, onHost, alone, newPod("shop/db-0", "10.0.0.8"),
		newService("shop/web", []string{"10.96.0.1"}, port("", 80)), newSlice("shop/web", "-a", 8080, of("shop/web-1", "10.0.0.1"), far),
		newService("shop/mixed", []string{"10.96.0.2"}, port("", 80)),
		newSlice("shop/mixed", "-a", 80, of("shop/old-1", "10.0.0.3"), of("shop/agent-1", "192.0.2.1"), of("shop/alone-1", "10.0.0.7"), discoveryv1.Endpoint{Addresses: []string{"198.51.100.7"}}),
		newService("shop/both", []string{"10.96.0.3"}, port("", 80), grpc), both,
		local, newSlice("shop/local", "-a", 80, of("shop/web-1", "10.0.0.1"), far),
		other, newService("shop/db", []string{"None"}, port("", 5432)), newSlice("shop/db", "-a", 5432, of("shop/db-0", "10.0.0.8")),
		newService("shop/empty", []string{"10.96.0.5"}, port("", 80)),
	)
	eventually(t, "the namespace is strict", func() bool { strict, _ := state.Load().Strict("shop"); return strict })
	web := "web.shop\n  web-1 10.0.0.1 ready shop/sa/web strict\n  web-2 10.0.0.2 ready shop/sa/web strict\n"
	for _, tt := range []struct{ client, server, want string }{
		{"deploy/web", "svc/db", web + "headless db.shop [10.0.0.8]\n5432 \n  db-0 10.0.0.8:5432 ready shop/sa/web strict"},
		{"web", "db.shop.svc.cluster.local:5432", web + "headless db.shop [10.0.0.8]\n5432 \n  db-0 10.0.0.8:5432 ready shop/sa/web strict"},
		// A pod is no more than itself, by whatever name.
		{"web.shop", "db-0.db", web + "workload db-0.shop [10.0.0.8]\n0 \n  db-0 10.0.0.8 ready shop/sa/web strict"},
		{"deploy/web", "db-0.db.shop.svc.cluster.local:5432", web + "workload db-0.shop [10.0.0.8]\n5432 \n  db-0 10.0.0.8:5432 ready shop/sa/web strict"},
		{"deploy/web", "web-2", web + "workload web.shop [10.0.0.2]\n0 \n  web-2 10.0.0.2 ready shop/sa/web strict"},
		{"deploy/web", "web-2.shop:8080", web + "workload web.shop [10.0.0.2]\n8080 \n  web-2 10.0.0.2:8080 ready shop/sa/web strict"},
		{"deploy/web", "pod/db-0", web + "workload db-0.shop [10.0.0.8]\n0 \n  db-0 10.0.0.8 ready shop/sa/web strict"},
		{"job.out", "deploy/web", "job.out\n  job-1 10.0.0.4 ready (its namespace out is not in the mesh) (tulle mesh out)\nservice web.shop [10.96.0.1]\n80 \n" +
			"  web-1 10.0.0.1:8080 ready shop/sa/web strict\n  web-2 10.0.0.2:8080 ready shop/sa/web strict"},
		{"pod/around-1", "10.96.0.1:81", "around.shop\n  around-1 10.0.0.6 ready shop/sa/web (80,4000-4010) strict\nservice web.shop [10.96.0.1]\n81  missing [80]"},
		{"svc/web", "mixed", web + "service mixed.shop [10.96.0.2]\n80 \n" +
			"  old-1 10.0.0.3:80 ready (it was made before its namespace was meshed, and never replaced) (tulle mesh shop)\n" +
			"  agent-1 192.0.2.1:80 ready (it is in its node's network (hostNetwork), where there is no proxy) (to mesh it, give it a network of its own: hostNetwork: false)\n" +
			"  alone-1 10.0.0.7:80 ready (it has opted out (tulle.dev/inject: disabled)) (take that label or annotation off its template)\n" +
			"   198.51.100.7:80 ready (no pod has this address, so no proxy of the mesh is there)"},
		{"deploy/old", "both", "old.shop\n  old-1 10.0.0.3 ready (it was made before its namespace was meshed, and never replaced) (tulle mesh shop)\nservice both.shop [10.96.0.3]\n80 \n" +
			"  direct-1 10.0.0.5:9000 ready (its annotation tulle.dev/skip-inbound-ports has 9000: connections go around its proxy) (take the port out of that annotation (of the pod's template, or of the namespace))\n" +
			"  web-1 10.0.0.1:9000 ending shop/sa/web (it is being stopped; used only while no other is ready) strict\n" +
			"  web-2 10.0.0.2:9000 not ready shop/sa/web (kubectl -n shop describe pod web-2) (its readiness probe does not pass, or it has just begun) strict\n" +
			"9090 http/2 appProtocol\n" +
			"  direct-1 10.0.0.5:9090 ready shop/sa/web strict\n" +
			"  web-1 10.0.0.1:9090 ending shop/sa/web (it is being stopped; used only while no other is ready) strict\n" +
			"  web-2 10.0.0.2:9090 not ready shop/sa/web (kubectl -n shop describe pod web-2) (its readiness probe does not pass, or it has just begun) strict"},
		{"pod/db-0", "local:80", "db-0.shop\n  db-0 10.0.0.8 ready shop/sa/web strict\nservice local.shop [10.96.0.4]\n80 \n" +
			"  web-1 10.0.0.1:80 ready shop/sa/web strict\n  web-2 10.0.0.2:80 ready shop/sa/web (internalTrafficPolicy: Local keeps to the client's node) strict"},
		{"deploy/web", "svc/other", web + "external name other.shop api.example.com[]\n80 "},
		{"deploy/web", "svc/empty", web + "service empty.shop [10.96.0.5]\n80 "},
		{"deploy/web", "two", web + "service two.shop [10.96.0.9 fd00:96::9]\n80 \n  two-1 10.0.0.9:8080 ready shop/sa/web strict"},
		{"deploy/web", "http://[fd00:96::9]:80/", web + "service two.shop [10.96.0.9 fd00:96::9]\n80 \n  two-1 [fd00:1::9]:8080 ready shop/sa/web strict"},
		{"deploy/web", "[fd00:1::9]:8080", web + "workload two.shop [10.0.0.9 fd00:1::9]\n8080 \n  two-1 [fd00:1::9]:8080 ready shop/sa/web strict"},
		{"deploy/web", "10.0.0.8:5432", web + "workload db-0.shop [10.0.0.8]\n5432 \n  db-0 10.0.0.8:5432 ready shop/sa/web strict"},
	} {
		p, err := source.Path(tt.client, tt.server, "shop")
		if err != nil {
			t.Errorf("%s to %s: %v", tt.client, tt.server, err)
			continue
		}
		if got := sayPath(p); got != tt.want {
			t.Errorf("%s to %s:\n%s\nwant\n%s", tt.client, tt.server, got, tt.want)
		}
	}
	for _, tt := range []struct{ client, server, namespace, want string }{
		{"deploy/nobody", "svc/web", "shop", "kubectl -n shop get deploy,sts,ds,pods"},
		{"deploy/web", "svc/nobody", "shop", "kubectl -n shop get services,pods"},
		{"deploy/web", "deploy/db", "shop", "nothing is called"},
		{"deploy/web", "svc/web", "nowhere", "kubectl get namespaces"},
		{"configmap/web", "svc/web", "shop", "name a deploy/"},
		{"deploy/web", "203.0.113.9:80", "shop", "pass untouched"},
		{"deploy/web", "web.svc.example.com", "shop", "nothing is called"},
		{"deploy/web", "web.shpo", "shop", "nothing is called"}, // not web of this namespace
		{"deploy/web", "svc/db-0.db", "shop", "nothing is called"},
		{"deploy/web", "svc/web:70000", "shop", "1 to 65535"},
	} {
		if p, err := source.Path(tt.client, tt.server, tt.namespace); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s to %s in %s: %+v, %v; want %q", tt.client, tt.server, tt.namespace, p, err, tt.want)
		}
	}
}

// What goes around an endpoint's proxy meets the application: it must not be
// greeted by the mesh's TLS.
func TestSkippedInboundPortsAreDialledInPlaintext(t *testing.T) {
	db := newPod("shop/db-0", "10.0.0.1")
	skip(db, "5432,9000-9010")
	// Where the annotation came later, the pod is redirected at every port.
	later := newPod("shop/later-0", "10.0.0.2")
	later.Annotations[cluster.SkipInboundPorts] = "5432"
	changed := newPod("shop/changed-0", "10.0.0.3")
	skip(changed, "5432")
	changed.Annotations[cluster.SkipInboundPorts] = "5432,7000"
	_, state, _ := start(t, db, later, changed, newService("shop/db", []string{"10.96.0.1"}, port("", 80), port("admin", 90)), func() *discoveryv1.EndpointSlice {
		s := newSlice("shop/db", "-a", 0, of("shop/db-0", "10.0.0.1"))
		s.Ports = []discoveryv1.EndpointPort{{Name: ptr(""), Port: ptr[int32](5432)}, {Name: ptr("admin"), Port: ptr[int32](8080)}}
		return s
	}())
	for address, want := range map[string]string{
		"10.96.0.1:80":  "db.shop 10.0.0.1:5432",
		"10.96.0.1:90":  "db.shop 10.0.0.1:8080 /ns/shop/sa/web",
		"10.0.0.1:5432": "db.shop 10.0.0.1:5432",
		"10.0.0.1:9005": "db-0.shop 10.0.0.1:9005", // of no service
		"10.0.0.1:7000": "db-0.shop 10.0.0.1:7000 /ns/shop/sa/web",
		"10.0.0.2:5432": "later-0.shop 10.0.0.2:5432 /ns/shop/sa/web",
		"10.0.0.3:5432": "changed-0.shop 10.0.0.3:5432 /ns/shop/sa/web",
		"10.0.0.3:7000": "changed-0.shop 10.0.0.3:7000 /ns/shop/sa/web",
	} {
		eventually(t, address+" is "+want, func() bool { return say(lookup(state, address)) == want })
	}
	if got := skipped(strings.Repeat("1-65535,", 3) + "1"); got != nil {
		t.Errorf("more than the injector lets pass: %v", got)
	}
}
