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
	podAt       func(netip.Addr) *pod             // nil: none known there
}

// build returns the service, nil if it is none that is dialled by address.
func (b *builder) build(s *corev1.Service, endpoints []*discoveryv1.EndpointSlice) *discovery.ClusterService {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil // a name in DNS, and nothing else
	}
	// In the order of names: the same service is to come out the same.
	slices.SortFunc(endpoints, func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	built := &discovery.ClusterService{
		Name: s.Name, Namespace: s.Namespace, Addrs: serviceAddrs(s),
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
// inside the cluster.
func serviceAddrs(s *corev1.Service) []netip.Addr {
	texts := slices.Concat([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs, s.Spec.ExternalIPs)
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		// A load balancer of mode Proxy is to be gone through.
		if ingress.IPMode == nil || *ingress.IPMode == corev1.LoadBalancerIPModeVIP {
			texts = append(texts, ingress.IP)
		}
	}
	var addrs []netip.Addr
	for _, text := range texts {
		addr, err := netip.ParseAddr(text)
		if err != nil { // "None", or none yet
			continue
		}
		if addr = addr.Unmap(); !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	return addrs
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
		p, ok := b.podOf(s.Namespace, e, addr)
		if !ok {
			continue
		}
		c := discovery.ClusterEndpoint{Addr: netip.AddrPortFrom(addr, port), ID: p.idAt(port, b.trustDomain), Terminating: terminating}
		if p != nil {
			c.Workload, c.Node = p.Name, p.node
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

// podOf returns the pod behind an endpoint, nil if it is none; false as long as
// it is not known which.
func (b *builder) podOf(namespace string, e *discoveryv1.Endpoint, addr netip.Addr) (*pod, bool) {
	if ref := e.TargetRef; ref != nil && ref.Kind == "Pod" {
		p := b.pod(namespace, ref.Name)
		if p == nil || p.gone || ref.UID != "" && p.uid != ref.UID {
			return nil, false
		}
		return p, true
	}
	return b.podAt(addr), true
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
