package kube

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tulle-mesh/tulle/discovery"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// pod is what the cache keeps of a Pod: a twentieth of it.
type pod struct {
	metav1.TypeMeta
	metav1.ObjectMeta // name and namespace

	uid       types.UID
	addrs     []netip.Addr
	account   string
	node      string
	owner     string
	version   string                   // of the injector, if it is in the mesh
	started   int64                    // Unix seconds
	protocols map[uint16]mesh.Protocol // what its annotations say
	direct    []cluster.Ports          // of its own that others reach without its proxy
	around    []cluster.Ports          // to which it goes without its proxy
	meshed    bool
	gone      bool // its containers have ended, its address may be another's
	host      bool // it is in its node's network
	optedOut  bool // it has asked to be left alone
}

// DeepCopyObject makes a pod a runtime.Object. It is never changed, so it is its
// own copy.
func (p *pod) DeepCopyObject() runtime.Object { return p }

// trimPod is the transform of the informer. It sees objects before anybody else.
func trimPod(object any) (any, error) {
	p, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil // trimmed already, or a tombstone
	}
	trimmed := &pod{
		ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, ResourceVersion: p.ResourceVersion},
		uid:        p.UID,
		account:    p.Spec.ServiceAccountName,
		node:       p.Spec.NodeName,
		meshed:     isMeshed(p),
		gone:       p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}
	if trimmed.account == "" {
		trimmed.account = "default"
	}
	trimmed.host = p.Spec.HostNetwork
	if !trimmed.host { // there the addresses are the node's
		trimmed.addrs = podAddrs(p)
	}
	trimmed.owner = ownerOf(p)
	if trimmed.meshed {
		trimmed.version = p.Annotations[cluster.InjectedAnnotation]
		trimmed.protocols = declaredProtocols(p.Annotations)
		trimmed.direct = directPorts(p)
		trimmed.around = skipped(p.Annotations[cluster.SkipOutboundPorts])
	}
	trimmed.optedOut = p.Labels[cluster.Inject] == cluster.Disabled || p.Annotations[cluster.Inject] == cluster.Disabled
	if p.Status.StartTime != nil {
		trimmed.started = p.Status.StartTime.Unix()
	}
	return trimmed, nil
}

// isMeshed tells whether a pod was admitted with a proxy. The label alone could
// be a copy from elsewhere.
func isMeshed(p *corev1.Pod) bool {
	proxy := func(c corev1.Container) bool { return c.Name == cluster.ProxyContainer }
	return p.Labels[cluster.MeshedLabel] == "true" && !p.Spec.HostNetwork &&
		(slices.ContainsFunc(p.Spec.InitContainers, proxy) || slices.ContainsFunc(p.Spec.Containers, proxy))
}

func podAddrs(p *corev1.Pod) []netip.Addr {
	var addrs []netip.Addr
	for _, ip := range p.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs
}

func ownerOf(p *corev1.Pod) string {
	var kind, name string
	if c := metav1.GetControllerOf(p); c != nil {
		kind, name = c.Kind, c.Name
	}
	return cluster.Owner(kind, name, p.Labels[cluster.HashLabel], p.Name)
}

// declaredProtocols reads what the injector has checked. What it would have
// refused (a label and a container written by hand) declares nothing.
func declaredProtocols(annotations map[string]string) map[uint16]mesh.Protocol {
	declared, err := cluster.ParseProtocols(annotations[cluster.Protocols])
	if err != nil {
		declared = nil
	}
	opaque, err := cluster.ParsePorts(annotations[cluster.OpaquePorts])
	if err != nil {
		return declared
	}
	if declared == nil {
		declared = make(map[uint16]mesh.Protocol)
	}
	for _, ports := range opaque {
		for port := int(ports.First); port <= int(ports.Last); port++ {
			declared[uint16(port)] = mesh.TCP
		}
	}
	return declared
}

// directPorts are the ports at which others reach the application without its
// proxy: those of the annotation, if it still says what it said when the pod was
// admitted and its redirect made. A wrong guess here would be plaintext into a
// proxy; without one, mutual TLS meets an application that refuses it.
func directPorts(p *corev1.Pod) []cluster.Ports {
	value := p.Annotations[cluster.SkipInboundPorts]
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if c.Name != cluster.ProxyContainer {
			continue
		}
		for _, e := range c.Env {
			if e.Name == cluster.DirectPortsVariable && e.Value == value {
				return skipped(value)
			}
		}
	}
	return nil
}

// maxSkipped is how many ports the injector lets a pod skip in one direction.
const maxSkipped = 1024

// skipped reads what the injector has checked and written out. What it would
// have refused counts for nothing, as it does to the redirect.
func skipped(value string) []cluster.Ports {
	if value == "" {
		return nil
	}
	ports, err := cluster.ParsePorts(value)
	n := 0
	for _, p := range ports {
		n += int(p.Last) - int(p.First) + 1
	}
	if err != nil || n > maxSkipped {
		return nil
	}
	return ports
}

// idAt is who answers at one of the pod's ports: nobody of the mesh where its
// proxy is gone around.
func (p *pod) idAt(port uint16, trustDomain string) mesh.ID {
	if p != nil && cluster.ContainPort(p.direct, port) {
		return mesh.ID{}
	}
	return p.id(trustDomain)
}

// id is who the pod is; the zero ID if it is not in the mesh.
func (p *pod) id(trustDomain string) mesh.ID {
	if p == nil || !p.meshed {
		return mesh.ID{}
	}
	return mesh.ID{TrustDomain: trustDomain, Namespace: p.Namespace, Account: p.account}
}

// clusterPod returns the pod as discovery knows it; nil if it has nothing to do
// with the mesh, or has no address.
func (p *pod) clusterPod(trustDomain string) *discovery.ClusterPod {
	if !p.meshed || p.gone || len(p.addrs) == 0 {
		return nil
	}
	return &discovery.ClusterPod{
		Name: p.Name, Namespace: p.Namespace, Addrs: p.addrs, ID: p.id(trustDomain), Owner: p.owner,
		Protocols: p.protocols, Direct: p.direct,
	}
}
