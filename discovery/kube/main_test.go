package kube

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tulle-mesh/tulle/mesh/cluster"
)

func ptr[T any](v T) *T { return &v }

// newPod is a running pod "NS/NAME"; meshed unless plain.
func newPod(name string, ips ...string) *corev1.Pod {
	ns, name, _ := strings.Cut(name, "/")
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ns, Name: name, UID: types.UID(ns + "." + name), Labels: map[string]string{cluster.MeshedLabel: "true"},
			Annotations: map[string]string{cluster.InjectedAnnotation: "1", "other": strings.Repeat("x", 1000)},
		},
		Spec: corev1.PodSpec{
			NodeName: "node-a", ServiceAccountName: "web",
			InitContainers: []corev1.Container{{Name: cluster.ProxyContainer}},
			Containers:     []corev1.Container{{Name: "app"}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}

func plain(p *corev1.Pod) *corev1.Pod {
	p.Labels, p.Spec.InitContainers = nil, nil
	return p
}

func newService(name string, ips []string, ports ...corev1.ServicePort) *corev1.Service {
	ns, name, _ := strings.Cut(name, "/")
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: ports},
	}
	if len(ips) > 0 {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = ips[0], ips
	}
	return s
}

func port(name string, number int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: number, Protocol: corev1.ProtocolTCP}
}

// newSlice is of the service "NS/NAME", with a port of no name.
func newSlice(name, suffix string, targetPort int32, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	ns, name, _ := strings.Cut(name, "/")
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name + suffix, Labels: map[string]string{
			discoveryv1.LabelServiceName: name, "kubernetes.io/other": "x",
		}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints,
		Ports: []discoveryv1.EndpointPort{{Name: ptr(""), Port: ptr(targetPort), Protocol: ptr(corev1.ProtocolTCP)}},
	}
	if len(endpoints) > 0 && strings.Contains(endpoints[0].Addresses[0], ":") {
		s.AddressType = discoveryv1.AddressTypeIPv6
	}
	return s
}

// of is the endpoint of a pod "NS/NAME".
func of(pod, ip string) discoveryv1.Endpoint {
	ns, name, _ := strings.Cut(pod, "/")
	return discoveryv1.Endpoint{
		Addresses: []string{ip}, NodeName: ptr("node-a"),
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: name, UID: types.UID(ns + "." + name)},
	}
}

func with(e discoveryv1.Endpoint, ready, serving, terminating bool) discoveryv1.Endpoint {
	e.Conditions = discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}
	return e
}

// known answers as the cache would.
type known map[string]*pod

func knownPods(pods ...*corev1.Pod) known {
	k := known{}
	for _, p := range pods {
		trimmed, err := trimPod(p)
		if err != nil {
			panic(err)
		}
		k[p.Namespace+"/"+p.Name] = trimmed.(*pod)
	}
	return k
}

func (k known) builder() *builder {
	return &builder{
		trustDomain: "cluster.local",
		pod:         func(ns, name string) *pod { return k[ns+"/"+name] },
		podsAt: func(addr netip.Addr) (there []*pod) {
			for _, p := range k {
				if slices.Contains(p.addrs, addr) && !p.gone {
					there = append(there, p)
				}
			}
			return there
		},
	}
}

// eventually waits for a condition, which an informer brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
