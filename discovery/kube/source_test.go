package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/discovery"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// start runs a Source on a cluster of objects until the test ends.
func start(t *testing.T, objects ...runtime.Object) (*Source, *discovery.State, *fake.Clientset) {
	t.Helper()
	client := fake.NewClientset(objects...)
	state, err := discovery.NewState(discovery.Config{TrustDomain: "cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	source, err := New(Config{Client: client, State: state, TrustDomain: "cluster.local", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := source.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	eventually(t, "ready", source.Ready)
	return source, state, client
}

func lookup(s *discovery.State, addr string) *tullev1.Destination {
	return s.Load().Match(netip.MustParseAddrPort(addr)).Destination()
}

// say is a Destination in one line.
func say(d *tullev1.Destination) string {
	words := []string{d.GetService()}
	for _, e := range d.GetEndpoints() {
		words = append(words, e.GetAddress())
		if e.GetIdentity() != "" {
			words = append(words, strings.TrimPrefix(e.GetIdentity(), "spiffe://cluster.local"))
		}
		if !e.GetReady() {
			words = append(words, "unready")
		}
	}
	return strings.Join(words, " ")
}

func TestSource(t *testing.T) {
	_, state, client := start(t,
		newService("shop/web", []string{"10.96.0.1"}, port("", 80)),
		newSlice("shop/web", "-a", 8080, of("shop/web-1", "10.0.0.1")),
		newPod("shop/web-1", "10.0.0.1"),
		newService("shop/db", []string{"None"}, port("", 5432)),
		newSlice("shop/db", "-a", 5432, of("shop/db-0", "10.0.0.2")),
		newPod("shop/db-0", "10.0.0.2"),
		plain(newPod("shop/old-1", "10.0.0.3")),
	)
	ctx := t.Context()
	expect := func(addr, want string) {
		t.Helper()
		eventually(t, addr+" is "+want, func() bool { return say(lookup(state, addr)) == want })
	}
	expect("10.96.0.1:80", "web.shop 10.0.0.1:8080 /ns/shop/sa/web")
	expect("10.96.0.1:81", "web.shop") // refused: no such port
	expect("10.0.0.2:5432", "db.shop 10.0.0.2:5432 /ns/shop/sa/web")
	expect("10.0.0.2:9999", "db-0.shop 10.0.0.2:9999 /ns/shop/sa/web") // of no service
	expect("10.0.0.3:80", "")                                          // outside the mesh
	expect("192.0.2.1:80", "")

	before := state.Load().Match(netip.MustParseAddrPort("10.96.0.1:80"))
	pods, endpoints := client.CoreV1().Pods("shop"), client.DiscoveryV1().EndpointSlices("shop")
	// The slice is there before its pod: no plaintext meanwhile.
	slice := newSlice("shop/db", "-a", 5432, of("shop/db-0", "10.0.0.2"), of("shop/db-1", "10.0.0.4"))
	if _, err := endpoints.Update(ctx, slice, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Create(ctx, newPod("shop/db-1", "10.0.0.4"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("10.0.0.4:5432", "db.shop 10.0.0.4:5432 /ns/shop/sa/web")
	if after := state.Load().Match(netip.MustParseAddrPort("10.96.0.1:80")); after != before {
		t.Error("a service that did not change has changed")
	}
	// The pod of an endpoint is made anew, outside the mesh.
	if err := pods.Delete(ctx, "web-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("10.96.0.1:80", "web.shop")
	if _, err := pods.Create(ctx, plain(newPod("shop/web-1", "10.0.0.1")), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("10.96.0.1:80", "web.shop 10.0.0.1:8080")
	// All of it goes.
	if err := client.CoreV1().Services("shop").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("10.96.0.1:80", "")
}

// Whoever may write slices names a pod of his own for the address of another one,
// before that pod is there, and while it is.
func TestForgedSlice(t *testing.T) {
	_, state, client := start(t,
		newService("evil/a", []string{"10.96.0.66"}, port("", 80)),
		newSlice("evil/a", "-x", 5432, of("evil/mine", "10.0.0.7")), plain(newPod("evil/mine", "10.0.0.66")),
		newService("shop/db", []string{"None"}, port("", 5432)),
	)
	expect := func(addr, want string) {
		t.Helper()
		eventually(t, addr+" is "+want, func() bool { return say(lookup(state, addr)) == want })
	}
	expect("10.0.0.7:5432", "a.evil 10.0.0.7:5432")
	ctx := t.Context()
	if _, err := client.DiscoveryV1().EndpointSlices("shop").Create(ctx, newSlice("shop/db", "-a", 5432, of("shop/db-0", "10.0.0.7")), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pods := client.CoreV1().Pods("shop")
	if _, err := pods.Create(ctx, newPod("shop/db-0", "10.0.0.7"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("10.96.0.66:80", "a.evil")
	expect("10.0.0.7:5432", "db.shop 10.0.0.7:5432 /ns/shop/sa/web")
	// A pod moves: both addresses concern who asked for either.
	if _, err := pods.Update(ctx, newPod("shop/db-0", "10.0.0.8"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("10.96.0.66:80", "a.evil 10.0.0.7:5432")
	expect("10.0.0.8:5432", "db-0.shop 10.0.0.8:5432 /ns/shop/sa/web")
}

// Two services claim an address: at every change of the cluster it is the same one's.
func TestClaimedAddress(t *testing.T) {
	claims := func(name string, created int64, clusterIP, endpoint, claimed string) []runtime.Object {
		s := newService(name, []string{clusterIP}, port("", 80))
		s.CreationTimestamp, s.Spec.ExternalIPs = metav1.Unix(created, 0), []string{claimed}
		return []runtime.Object{s, newSlice(name, "-x", 80, of(name, endpoint)), newPod(name, endpoint)}
	}
	objects := slices.Concat(claims("shop/bank", 20, "10.96.0.9", "10.0.0.7", "198.51.100.7"), claims("evil/evil", 10, "10.96.0.66", "10.0.0.66", "10.96.0.9"),
		claims("x/late", 30, "10.96.0.10", "10.0.0.70", "198.51.100.7"))
	source, state, client := start(t, objects...)
	for i := range 30 { // the order of a map
		one := port("", int32(i)+1)
		one.AppProtocol = ptr("tcp")
		other := newService("y/other", []string{"10.96.0.100"}, one)
		var err error
		if i == 0 {
			_, err = client.CoreV1().Services("y").Create(t.Context(), other, metav1.CreateOptions{})
		} else {
			_, err = client.CoreV1().Services("y").Update(t.Context(), other, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		changed := fmt.Sprint("10.96.0.100:", i+1)
		eventually(t, "the change is there", func() bool { return lookup(state, changed).GetProtocol() == tullev1.Protocol_PROTOCOL_TCP })
		for addr, want := range map[string]string{
			"10.96.0.9:80": "bank.shop 10.0.0.7:80 /ns/shop/sa/web", "198.51.100.7:80": "bank.shop 10.0.0.7:80 /ns/shop/sa/web",
		} {
			if got := say(lookup(state, addr)); got != want {
				t.Fatalf("%s is %s, want %s", addr, got, want)
			}
		}
	}
	for server, want := range map[string]string{"10.96.0.9:80": "bank.shop", "10.96.0.9": "bank.shop", "198.51.100.7": "bank.shop", "198.51.100.7:80": "bank.shop"} {
		if p, err := source.Path("pod/late", server, "x"); err != nil || p.Server.Name != want {
			t.Errorf("%s: %+v, %v", server, p, err)
		}
	}
	if _, err := source.Path("pod/late", "198.51.100.7:10250", "x"); err == nil || !strings.Contains(err.Error(), "198.51.100.7:10250") {
		t.Errorf("a port of no service: %v", err)
	}
}

func TestPolicies(t *testing.T) {
	named := func(name, policy string) *corev1.Namespace {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if policy != "" {
			ns.Annotations = map[string]string{cluster.Policy: policy, "other": "x"}
		}
		return ns
	}
	_, state, client := start(t, named("open", ""), named("closed", "strict"), named("typo", "Strict"))
	strict := func(ns string) bool { s, ok := state.Load().Strict(ns); return s && ok }
	for ns, want := range map[string]bool{"open": false, "closed": true, "typo": true, "none": false} {
		if strict(ns) != want {
			t.Errorf("%s: strict is %v", ns, !want)
		}
	}
	if _, err := client.CoreV1().Namespaces().Update(t.Context(), named("open", "strict"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "strict", func() bool { return strict("open") })
}

func TestPlace(t *testing.T) {
	far := newPod("shop/web-2", "10.0.0.2")
	far.Spec.NodeName = "node-b"
	source, _, _ := start(t, newPod("shop/web-1", "10.0.0.1"), far,
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-a", Labels: map[string]string{zoneLabel: "zone-1", "x": "y"}}})
	for addr, want := range map[string]discovery.Place{
		"10.0.0.1": {Node: "node-a", Zone: "zone-1"}, "10.0.0.2": {Node: "node-b"}, "10.0.0.9": {},
	} {
		if got := source.Place(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %+v, want %+v", addr, got, want)
		}
	}
	if got := source.PodAddrs("shop", "web-1", "shop.web-1"); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("10.0.0.1")}) {
		t.Errorf("%v", got)
	}
	if got := source.PodAddrs("shop", "web-1", "another"); got != nil {
		t.Errorf("of another pod of the same name: %v", got)
	}
	if m := source.Meshed(); !m["shop"] || len(m) != 1 {
		t.Errorf("%v", m)
	}
	list := source.Inventory()
	if len(list.GetWorkloads()) != 2 || list.GetWorkloads()[0].GetIdentity() != "spiffe://cluster.local/ns/shop/sa/web" {
		t.Errorf("%v", list)
	}
}
