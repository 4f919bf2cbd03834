package kube

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/tulle-mesh/tulle/discovery"
	"github.com/tulle-mesh/tulle/mesh"
)

// builder makes what discovery knows of one service from what Kubernetes does.
type builder struct {
	trustDomain string
	pod         func(namespace, name string) *pod // nil: not known (yet)
	podsAt      func(netip.Addr) []*pod           // of several one is gone soon
}

// build returns the service, nil if it is none that is dialled by address.
func (b *builder) build(s *corev1.Service, endpoints []*discoveryv1.EndpointSlice) *discovery.ClusterService {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil // a name in DNS, and nothing else
	}
	// In the order of names: the same service is to come out the same.
	slices.SortFunc(endpoints, func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	built := &discovery.ClusterService{
		Name: s.Name, Namespace: s.Namespace, Created: s.CreationTimestamp.Unix(),
		Addrs: clusterAddrs(s), Ingress: ingressAddrs(s), External: externalAddrs(s),
		NodeLocal: s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
	}
	for _, port := range s.Spec.Ports {
		if port.Protocol == corev1.ProtocolTCP || port.Protocol == "" {
			built.Ports = append(built.Ports, b.port(s, port, endpoints))
		}
	}
	return built
}

// serviceAddrs returns every address at which kube-proxy answers for the service
// inside the cluster, its own ones first.
func serviceAddrs(s *corev1.Service) []netip.Addr {
	return unique(slices.Concat(clusterAddrs(s), ingressAddrs(s), externalAddrs(s)))
}

// clusterAddrs are the service's own addresses.
func clusterAddrs(s *corev1.Service) []netip.Addr {
	return parseAddrs(append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...))
}

// ingressAddrs are those of its load balancers, as controllers wrote them down.
// For a headless service kube-proxy answers nowhere.
func ingressAddrs(s *corev1.Service) []netip.Addr {
	var texts []string
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		// A load balancer of mode Proxy is to be gone through.
		if ingress.IPMode == nil || *ingress.IPMode == corev1.LoadBalancerIPModeVIP {
			texts = append(texts, ingress.IP)
		}
	}
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	return parseAddrs(texts)
}

// externalAddrs are those that its author claimed: any at all.
func externalAddrs(s *corev1.Service) []netip.Addr {
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	return parseAddrs(s.Spec.ExternalIPs)
}

func parseAddrs(texts []string) (addrs []netip.Addr) {
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil { // "None", or none yet
			addrs = append(addrs, addr.Unmap())
		}
	}
	return unique(addrs)
}

// unique leaves out what came before.
func unique(addrs []netip.Addr) (kept []netip.Addr) {
	for _, addr := range addrs {
		if !slices.Contains(kept, addr) {
			kept = append(kept, addr)
		}
	}
	return kept
}

func (b *builder) port(s *corev1.Service, port corev1.ServicePort, endpoints []*discoveryv1.EndpointSlice) discovery.ClusterPort {
	built := discovery.ClusterPort{Port: uint16(port.Port), Protocol: protocolOf(port.AppProtocol)}
	for _, slice := range endpoints {
		if slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		number, appProtocol, ok := slicePort(slice, port)
		if !ok {
			continue
		}
		built.Protocol = cmp.Or(built.Protocol, protocolOf(appProtocol))
		for i := range slice.Endpoints {
			for _, e := range b.endpoint(s, &slice.Endpoints[i], number, &built.Protocol) {
				// An endpoint may be in two slices for a moment.
				if !slices.ContainsFunc(built.Endpoints, func(o discovery.ClusterEndpoint) bool { return o.Addr == e.Addr }) {
					built.Endpoints = append(built.Endpoints, e)
				}
			}
		}
	}
	return built
}

// slicePort finds a service's port in a slice, by its name.
func slicePort(slice *discoveryv1.EndpointSlice, port corev1.ServicePort) (number uint16, appProtocol *string, ok bool) {
	for _, p := range slice.Ports {
		name, protocol := "", corev1.ProtocolTCP
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		if name != port.Name || protocol != corev1.ProtocolTCP {
			continue
		}
		number = uint16(port.Port) // a slice may leave the port to the service
		if p.Port != nil {
			number = uint16(*p.Port)
		}
		return number, p.AppProtocol, true
	}
	return 0, nil, false
}

// endpoint returns what one entry of a slice stands for: nothing if nobody
// should be sent there.
func (b *builder) endpoint(s *corev1.Service, e *discoveryv1.Endpoint, port uint16, protocol *mesh.Protocol) []discovery.ClusterEndpoint {
	terminating, ok := condition(s, e)
	if !ok {
		return nil
	}
	var built []discovery.ClusterEndpoint
	for _, text := range e.Addresses {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			continue
		}
		addr = addr.Unmap()
		p, unknown := b.podOf(s.Namespace, e, addr)
		if unknown != "" {
			continue
		}
		c := discovery.ClusterEndpoint{Addr: netip.AddrPortFrom(addr, port), ID: p.idAt(port, b.trustDomain), Terminating: terminating}
		if p != nil {
			c.Workload, c.Node, c.Own = p.Name, p.node, p.Namespace == s.Namespace
			*protocol = cmp.Or(*protocol, p.protocols[port])
		}
		if e.NodeName != nil {
			c.Node = *e.NodeName
		}
		if e.Hints != nil {
			for _, zone := range e.Hints.ForZones {
				c.Zones = append(c.Zones, zone.Name)
			}
			for _, node := range e.Hints.ForNodes {
				c.Nodes = append(c.Nodes, node.Name)
			}
		}
		built = append(built, c)
	}
	return built
}

// condition tells whether an endpoint may be used, and whether only if there is
// no other: as kube-proxy does with those that end but still serve.
func condition(s *corev1.Service, e *discoveryv1.Endpoint) (terminating, ok bool) {
	is := func(b *bool, otherwise bool) bool {
		if b == nil {
			return otherwise
		}
		return *b
	}
	ready := is(e.Conditions.Ready, true)
	if ready || s.Spec.PublishNotReadyAddresses {
		return false, true
	}
	return true, is(e.Conditions.Terminating, false) && is(e.Conditions.Serving, false)
}

// podOf returns the pod behind an endpoint, nil if it is none; or why it cannot
// be told whose the address is, and nobody is to be sent there.
func (b *builder) podOf(namespace string, e *discoveryv1.Endpoint, addr netip.Addr) (p *pod, unknown string) {
	there := b.podsAt(addr)
	ref := e.TargetRef
	if ref == nil || ref.Kind != "Pod" {
		switch len(there) {
		case 0:
			return nil, ""
		case 1:
			return there[0], ""
		}
		return nil, "several pods have its address, which goes from one to another"
	}
	p = b.pod(namespace, ref.Name)
	if p == nil || p.gone || ref.UID != "" && p.uid != ref.UID {
		return nil, "its pod has ended, or has just begun"
	}
	// The slice may be older than the pods, or name one of its author's for the
	// address of somebody else's, who is not to be taken for it.
	if len(there) > 0 && !slices.ContainsFunc(there, func(o *pod) bool { return o.Namespace == p.Namespace && o.Name == p.Name }) {
		return nil, "its address is another pod's: " + there[0].Namespace + "/" + there[0].Name
	}
	return p, ""
}

// protocolOf reads a port's appProtocol. Names that say nothing about the first
// bytes on the wire, and TLS, are left to be found out.
func protocolOf(app *string) mesh.Protocol {
	if app == nil {
		return mesh.Unknown
	}
	switch *app {
	case "http", "kubernetes.io/ws", "ws":
		return mesh.HTTP1
	case "kubernetes.io/h2c", "h2c", "http2", "grpc":
		return mesh.HTTP2
	case "tcp", "mysql", "postgresql", "redis", "mongo", "kafka", "amqp", "mqtt", "smtp", "imap", "pop3", "ldap", "nats":
		return mesh.TCP
	}
	return mesh.Unknown
}
